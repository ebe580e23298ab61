"""Discriminant Information (DI): channels are ranked by what a ridge regression loses without them.

Read `DiscriminantInformation.run` first.
"""

from pruning.methods.di.method import DiscriminantInformation

__all__ = ["DiscriminantInformation"]
