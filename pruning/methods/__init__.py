"""Pruning methods: each makes narrow networks from a wide one. `METHODS` in `pruning.base` lists them by name."""

from pruning.methods.abfp.method import AutoBalanced
from pruning.methods.aofp.method import ApproximatedOracle
from pruning.methods.csgd.method import CentripetalSGD
from pruning.methods.di.method import DiscriminantInformation
from pruning.methods.kse.method import KernelSparsityEntropy
from pruning.methods.score_and_slice import (
    MedianFilters,
    RandomChannels,
    RankedMaps,
    ScoreAndSlice,
    SlimmingScales,
    TaylorGates,
    UniformL1,
    UniformL2,
)
from pruning.methods.scratch import FromScratch

__all__ = [
    "ApproximatedOracle",
    "AutoBalanced",
    "CentripetalSGD",
    "DiscriminantInformation",
    "FromScratch",
    "KernelSparsityEntropy",
    "MedianFilters",
    "RandomChannels",
    "RankedMaps",
    "ScoreAndSlice",
    "SlimmingScales",
    "TaylorGates",
    "UniformL1",
    "UniformL2",
]
