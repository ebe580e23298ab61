"""The method of a user's own that docs/methods.md takes a reader through."""

import re
import textwrap
from pathlib import Path

import torch
from torch import nn

from pruning.base import METHODS, Goal
from spaces.tracing.tracer import trace

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"
NAME = "my_pruning:Trimming"


def test_the_file_of_the_page_works_from_a_folder_outside_the_repository(tmp_path, monkeypatch, tiny_context):
    section = PAGE.read_text(encoding="utf-8").partition("## Add your own")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "my_pruning.py").write_text(textwrap.dedent(code))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    space, context = trace(net, torch.zeros(1, 3, 8, 8)), tiny_context(epochs=0)
    method = METHODS[NAME](images=32)
    (snapshot,) = method.run(net, space, Goal(space.full | {"0": 2}), context)
    images = torch.cat([batch for batch, _ in context.calibration_batches(32)])
    active = [float((net[0](images)[:, channel] > 0).double().mean()) for channel in range(6)]
    assert sorted(snapshot.selection["0"].tolist()) == sorted(sorted(range(6), key=lambda c: active[c])[-2:])
    assert snapshot.net[0].out_channels == 2
