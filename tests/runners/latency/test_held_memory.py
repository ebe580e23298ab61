import subprocess
import sys

import pytest

from runners.latency.held_memory import keep_freed_memory

# Page faults a call, of a net whose activations are larger than what glibc maps block by block at first.
FAULTS = """
import resource, sys, torch
from runners.latency.held_memory import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
torch.set_num_threads(1)
net, images = torch.nn.Conv2d(3, 16, 3, padding=1).eval(), torch.zeros(8, 3, 64, 64)
def faults(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.no_grad():
        for _ in range(calls):
            blocks = [net(images) for _ in range(8)]
            del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(3)
print(faults(20))
"""


def faults(*arguments: str) -> int:
    command = [sys.executable, "-c", FAULTS, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library cannot be told to keep memory")
def test_a_net_meets_no_page_faults_once_it_is_warm() -> None:
    assert faults("keep") < 100 < faults()
