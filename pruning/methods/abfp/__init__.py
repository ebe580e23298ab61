"""Auto-balanced filter pruning: training moves energy from weak filters to strong ones before each cut.

Read `AutoBalanced.run` first.
"""

from pruning.methods.abfp.method import AutoBalanced

__all__ = ["AutoBalanced"]
