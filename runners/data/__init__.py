"""Labelled images of a search: named datasets, folders and user datasets, split into train, val and test.

Start with `load_data`.
"""

from runners.data.augmentation import Augmentation
from runners.data.loading import DATASETS, ImageData, load_data
from runners.data.reading import LazySplit
from runners.data.source import Source
from runners.data.splits import DataError, Split, TensorSplit

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataError",
    "ImageData",
    "LazySplit",
    "Source",
    "Split",
    "TensorSplit",
    "load_data",
]
