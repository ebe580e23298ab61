"""The page of a search: `report` writes it, from the charts beside the front, the shape of each network, and the table
of all trials.
"""

from search.reporting.page.shapes import NetworkShape, network_shapes
from search.reporting.page.trials import TrialRow, trial_rows

__all__ = ["NetworkShape", "TrialRow", "network_shapes", "trial_rows"]
