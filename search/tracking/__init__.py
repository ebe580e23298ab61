"""A record of the search in MLflow, written while it runs. Start with `MlflowTracker`."""

from search.tracking.mlflow_tracker import MlflowTracker, TrackingError

__all__ = ["MlflowTracker", "TrackingError"]
