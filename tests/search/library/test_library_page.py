"""The blocks of docs/library.md run as they stand, on a small network."""

import re
from pathlib import Path

import pytest
import torch
from tiny_nets import Residual
from torch import nn

PAGE = Path(__file__).parents[3] / "docs" / "library.md"
*BLOCKS, NOTEBOOK = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["prune", "tuner"])
def test_the_page_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    torch.manual_seed(0)
    trained: list[nn.Module] = []
    loader = [(torch.rand(32, 3, 8, 8), torch.arange(32) % 5)]
    names = {
        "net": Residual(),
        "train_loader": loader,
        "train": trained.append,
        "score": lambda net: 1 / (1 + float(nn.functional.cross_entropy(net(loader[0][0]), loader[0][1]).detach())),
    }
    block = block.replace('selection["conv1"]', 'selection["stem"]').replace("trials=12", "trials=3")
    exec(block, names)
    if "tuner" in names:  # the search of which the last block reads the result
        exec(NOTEBOOK, names)
        assert len(names["frame"]) == 3
    assert trained
    assert all(isinstance(net, nn.Module) for net in trained)


def test_each_way_takes_five_lines() -> None:
    for block in BLOCKS:
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "print"))]
        assert len(lines) <= 5
