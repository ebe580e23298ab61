"""The end of a search: train the front again, read test once, export, write files; start with `finalizer.Finalizer`."""

from search.finalization.finalizer import Ending, Finalizer
from search.finalization.retraining import Retrainer

__all__ = ["Ending", "Finalizer", "Retrainer"]
