"""A record of the search in MLflow, written while it runs. Begin with `MlflowTracker`."""

from search.tracking.mlflow_tracker import MlflowTracker, TrackingError

__all__ = ["MlflowTracker", "TrackingError"]
