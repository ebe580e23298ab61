"""Discriminant score of whole feature maps, as the authors compute it. Hou & Kung, arXiv 2005.13796 (ICPR 2020).

The authors treat every position of a map as a feature of its own and back-propagate tr(YY'A), A = (XX' + rho I)^-1, to
masks on the channels of single batches. `flattened_scores` is that gradient in closed form.
"""

import torch
from torch import Tensor

from pruning.calibration.second_moments import ridge_for


def label_codes(labels: Tensor, classes: int, unit: bool = True) -> Tensor:
    """Return centred one-hot codes of shape (samples, classes), float64.

    Args:
        labels: class indices, shape (samples,).
        classes: number of classes; a class without samples has a column of zeros.
        unit: divide each class's column by the square root of its count before centring, so that classes of any
            size weigh the same and 0 <= DI <= classes - 1.
    """
    codes = torch.nn.functional.one_hot(labels, classes).double()
    if unit:
        codes = codes / codes.sum(dim=0).clamp_min(1).sqrt()
    return codes - codes.mean(dim=0)


def flattened_scores(maps: Tensor, codes: Tensor, ridge: float) -> Tensor:
    """Score each channel of whole feature maps: -dL/dm_c of L = tr(YY'A) at the mask m = 1. Shape (C,), float64.

    With T = A Y Y'A (samples x samples) the score is 2 * sum over positions p of x_cp' T x_cp; its time does not
    depend on the number of classes.

    Args:
        maps: shape (N, C, positions), any float precision; they are centred here.
        codes: centred label codes Y, shape (N, K), float64.
        ridge: rho, relative to the mean of the Gram matrix's diagonal.
    """
    samples, channels, _ = maps.shape
    centred = (maps - maps.mean(dim=0)).reshape(samples, -1)
    gram = (centred @ centred.T).cpu().double()
    rho = ridge_for(gram, ridge)
    factor = torch.linalg.cholesky(gram + rho * torch.eye(samples, dtype=torch.float64))
    solved = torch.cholesky_solve(codes, factor)
    kernel = rho * (solved @ solved.T)  # the factor rho makes scores independent of the maps' scale: batches add up
    products = (centred * (kernel.to(centred) @ centred)).reshape(samples, channels, -1)
    return 2 * products.sum(dim=(0, 2)).cpu().double()
