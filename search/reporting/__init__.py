"""How a search is shown: its plan, its progress, its result. `rows` has the tables of a result; `summary`, `page` and
`picture` render it.
"""

from search.reporting.catalogue import describe_methods, describe_presets
from search.reporting.picture import Picture, picture_of, write_png
from search.reporting.targets import Answer, answers

__all__ = ["Answer", "Picture", "answers", "describe_methods", "describe_presets", "picture_of", "write_png"]
