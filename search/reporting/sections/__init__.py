"""Sections of the page of a search: its charts beside the front, the shape of each network, the table of all trials."""

from search.reporting.sections.shapes import NetworkShape, network_shapes
from search.reporting.sections.trials import TrialRow, trial_rows

__all__ = ["NetworkShape", "TrialRow", "network_shapes", "trial_rows"]
