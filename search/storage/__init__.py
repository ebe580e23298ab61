"""The records of a search, in memory and on disk; start with `history.History` and `study_storage.StudyStorage`."""

from search.storage.checkpoints import CheckpointFolder, CheckpointStore, InMemory
from search.storage.history import History
from search.storage.pending import PendingTrials
from search.storage.study_storage import StudyError, StudyStorage

__all__ = ["CheckpointFolder", "CheckpointStore", "History", "InMemory", "PendingTrials", "StudyError", "StudyStorage"]
