"""A made-up device with steps, for `--latency-command "python tests/stepped_device.py {model} 32"`.

It is bound by the weights that it loads, in tiles of STEP channels: every weight of a network takes the time of one
whose input and output channels are rounded up to the next multiple of STEP. So 33 channels take as long as 64, and
latency does not follow FLOPs. It reads a safetensors file (`--latency-format safetensors`) and prints milliseconds,
without noise:

    0.05 + 1e-6 * sum over weights of two or more dimensions of ceil(out, STEP) * ceil(in, STEP) * kernel positions
"""

import json
import math
import sys


def milliseconds(path, step):
    """Return the milliseconds of the network in a file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) > 1]
    return 0.05 + 1e-6 * sum(
        math.prod([*(step * math.ceil(n / step) for n in shape[:2]), *shape[2:]]) for shape in shapes
    )


if __name__ == "__main__":
    print(milliseconds(sys.argv[1], int(sys.argv[2])))
