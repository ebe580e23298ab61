"""For callers with a live network: `prune` cuts it once; `width_tuner.WidthTuner` searches by ask and tell."""

from search.library.prune import Pruned, prune

__all__ = ["Pruned", "prune"]
