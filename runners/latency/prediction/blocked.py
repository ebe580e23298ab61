"""Blocked layers: the work of a net in a runtime that convolves blocks of channels, as ONNX Runtime does on processors.

With AVX-512 ONNX Runtime keeps maps in blocks of 16 channels, with AVX2 of 8, and the last block of a map is filled up.
Only convolutions whose input channels are a multiple of 4, or fewer than a block, work on such maps, and depthwise ones
only with a multiple of 4 (onnxruntime/core/optimizer/nchwc_transformer.cc). The others multiply matrices, and both
their maps change their layout. So seconds grow by whole blocks, and jump where channels are no multiple of 4.

Activations and BatchNorm take no calls of their own: they are part of the convolutions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runners.latency.prediction.kernels import Kernel

Floats = NDArray[np.float64]
BLOCKS = (8, 16)  # channels of a block, by the vectors of the processor
ALIGNED = 4  # channels, of which a block convolution reads a multiple
TERMS = 9  # of `blocked_basis`
CONSTANT, LINEAR, FILLED, BLOCKED, DIRECT, PLAIN, IS_PLAIN, BLOCKED_DEPTHWISE, PLAIN_DEPTHWISE = range(TERMS)


def blocked_basis(channels: Floats, block: int) -> Floats:
    """Return the terms of numbers of channels, along a new last axis of length TERMS.

    Numbers that are not whole stand for widths that are still to be chosen, and count as multiples of 4.
    """
    filled = block * np.ceil(channels / block - 1e-9)
    whole = np.abs(channels - np.rint(channels)) < 1e-6
    odd = whole & (np.rint(channels) % ALIGNED != 0)
    plain = odd & (channels >= block)
    terms = np.empty((*channels.shape, TERMS))
    terms[..., CONSTANT], terms[..., LINEAR], terms[..., FILLED] = 1.0, channels, filled
    terms[..., BLOCKED] = filled * (~odd & (channels >= block))
    terms[..., DIRECT] = channels * (channels < block)
    terms[..., PLAIN], terms[..., IS_PLAIN] = channels * plain, plain
    terms[..., BLOCKED_DEPTHWISE], terms[..., PLAIN_DEPTHWISE] = filled * ~odd, channels * odd
    return terms


def blocked_terms(kernels: Sequence[Kernel]) -> Floats:
    """Return the amounts of work as coefficients of blocked layers, shape (kinds of work, kernels, TERMS, TERMS).

    The kinds are calls, weights and elements read; multiplications on blocks, on few channels and by matrices; calls by
    matrices, and the elements whose layout changes for them; multiplications of depthwise layers on blocks and plain,
    and the channels of plain ones; elements of all other layers.
    """
    terms = np.zeros((12, len(kernels), TERMS, TERMS))
    for index, kernel in enumerate(kernels):
        work, own = kernel.work, terms[:, index]
        if work.depthwise:
            own[0, CONSTANT, CONSTANT] = 1.0
            own[7, PLAIN_DEPTHWISE, CONSTANT] = work.inputs + work.outputs
            own[8, BLOCKED_DEPTHWISE, CONSTANT], own[9, PLAIN_DEPTHWISE, CONSTANT] = work.products, work.products
            own[10, PLAIN_DEPTHWISE, CONSTANT] = 1.0
        elif kernel.name == "linear":
            own[1, LINEAR, LINEAR] = work.weights
        elif work.products:
            own[0, CONSTANT, CONSTANT] = 1.0
            own[1, FILLED, FILLED] = work.weights
            own[2, BLOCKED, CONSTANT] = own[2, DIRECT, CONSTANT] = work.inputs
            own[3, BLOCKED, FILLED], own[4, DIRECT, FILLED] = work.products, work.products
            own[5, PLAIN, LINEAR], own[6, IS_PLAIN, CONSTANT] = work.products, 1.0
            own[7, PLAIN, CONSTANT], own[7, IS_PLAIN, LINEAR] = work.inputs, work.outputs
        else:
            own[11, LINEAR, CONSTANT] = work.inputs
    return terms
