"""How many times as fast training steps are in the other compute formats as in contiguous float32, on this processor.

python tests/benchmarks/precisions.py
"""

import torch

from runners.training.compute_format import PLAIN, ComputeFormat, step_seconds
from spaces.space import ModelSpec
from spaces.zoo.models import build

FORMATS = (ComputeFormat(torch.bfloat16), ComputeFormat(torch.bfloat16, True), ComputeFormat(None, True))
NETWORKS = {  # name -> shape of an image, and images a step
    "cifar_resnet18": ((3, 32, 32), 16),
    "resnet20": ((3, 32, 32), 16),
    "lenet5": ((1, 28, 28), 16),
    "cifar_vgg16_bn": ((3, 32, 32), 16),
    "densenet40": ((3, 32, 32), 8),
    "mobilenet_v2": ((3, 64, 64), 16),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| network |", " | ".join(map(str, FORMATS)), "|")
    for name, (shape, count) in NETWORKS.items():
        net, images = build(ModelSpec(name, 10, shape)), torch.rand(count, *shape)
        plain = step_seconds(net, images, PLAIN)
        factors = (f"{plain / step_seconds(net, images, chosen):.2f}" for chosen in FORMATS)
        print(f"| {name} |", " | ".join(factors), "|", flush=True)
