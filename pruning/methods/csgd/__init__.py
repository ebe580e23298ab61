"""Centripetal SGD: training makes the filters of a cluster equal, and merging them then loses nothing.

Read `CentripetalSGD.run` first.
"""

from pruning.methods.csgd.method import CentripetalSGD

__all__ = ["CentripetalSGD"]
