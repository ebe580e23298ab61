"""The closed form of the score of whole feature maps, compared with the definition."""

import torch

from pruning.calibration.flattened_maps import flattened_scores, label_codes

CLASSES = 4


def test_flattened_score_equals_autograd_through_masks_on_the_maps() -> None:
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(12, 5, 9, generator=generator, dtype=torch.float64)
    codes = label_codes(torch.arange(12) % CLASSES, CLASSES)
    mask = torch.ones(5, dtype=torch.float64, requires_grad=True)
    flat = ((maps - maps.mean(dim=0)) * mask[None, :, None]).reshape(12, -1)
    rho = 0.7 * float((flat @ flat.T).diagonal().mean().detach())
    solved = torch.linalg.solve(flat @ flat.T + rho * torch.eye(12, dtype=torch.float64), codes)
    (gradient,) = torch.autograd.grad((codes * solved).sum(), mask)
    torch.testing.assert_close(flattened_scores(maps, codes, 0.7), -rho * gradient)


def test_a_missing_class_gives_a_zero_column() -> None:
    codes = label_codes(torch.tensor([0, 1, 0, 1]), 3)
    assert codes[:, 2].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert torch.isfinite(codes).all()
