"""A network of two inputs and two outputs, as a detector with a side input has them."""

import torch
from torch import Tensor, nn

SAMPLES = 24


class TwoInputs(nn.Module):
    """Two branches that add up, a map and logits; the branches and the sum share their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 12, 3, padding=1)
        self.depth = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.body = nn.Conv2d(12, 16, 3, padding=1)
        self.boxes = nn.Conv2d(16, 4, 1)
        self.classes = nn.Linear(16, 5)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.norm(self.image(image) + self.depth(depth)))
        features = torch.relu(self.body(features))
        return {"boxes": self.boxes(features), "classes": self.classes(features.mean((2, 3)))}


def inputs(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(samples, 3, 6, 6, generator=generator), torch.rand(samples, 1, 6, 6, generator=generator)
