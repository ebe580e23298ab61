"""Approximated Oracle Filter Pruning (AOFP): channels are tried out and cut while the net trains.

Read `ApproximatedOracle.run` first.
"""

from pruning.methods.aofp.method import ApproximatedOracle

__all__ = ["ApproximatedOracle"]
