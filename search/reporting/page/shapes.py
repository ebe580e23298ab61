"""The shape of a network at a glance: a bar per group of channels, its dense width behind the width that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from runners.trial import TrialResult
from search.reporting.wording import percent, scaled
from search.results.result import SearchResult

HEIGHT = 100  # of the widest bar, in the units of the drawing
PITCH, GAP = 14, 4  # from one bar to the next at least, and the space between them
BREADTH = 160  # of the drawing at least
MOST = 40  # networks that are drawn; a front of hundreds would fill the page


@dataclass(frozen=True)
class WidthBar:
    """The bar of one group, in the units of the drawing.

    Attributes:
        text: the same in words.
    """

    x: float
    dense_height: float
    kept_height: float
    text: str


@dataclass(frozen=True)
class NetworkShape:
    """The bars of one network, in the order of its layers.

    Attributes:
        text: what the picture shows, for a reader who does not see it.
    """

    name: str
    text: str
    bars: Sequence[WidthBar]
    chosen: bool
    height: int = HEIGHT

    @property
    def breadth(self) -> int:
        """The breadth of the drawing."""
        return _pitch(len(self.bars)) * len(self.bars)

    @property
    def bar(self) -> int:
        """The breadth of a bar."""
        return _pitch(len(self.bars)) - GAP


def network_shapes(result: SearchResult) -> list[NetworkShape]:
    """Return the shapes of the report's networks whose widths are known, most accurate first.

    Of more than `MOST` networks, the chosen one and about so many others stand for all, evenly spread.
    """
    known = [network for network in reversed(result.reported) if network.widths]
    step = -(-len(known) // MOST)
    return [
        _shape(result, network) for index, network in enumerate(known) if index % step == 0 or result.is_chosen(network)
    ]


def _shape(result: SearchResult, network: TrialResult) -> NetworkShape:
    widths = {} if network.widths is None else dict(network.widths)
    dense = {group["group"]: int(group["width"]) for group in result.space.get("groups", ())}
    widest = max([*dense.values(), *widths.values()], default=1)
    bars = []
    for index, (group, kept) in enumerate(widths.items()):
        before = dense.get(group, kept)
        text = f"{group}: {kept} of {before} channels, {percent(kept / before, 0)}"
        bars.append(WidthBar(_pitch(len(widths)) * index, HEIGHT * before / widest, HEIGHT * kept / widest, text))
    cost = "" if network.cost is None else f", {scaled(network.cost.flops, 'FLOPs')}"
    kept_share = sum(widths.values()) / max(1, sum(dense.get(group, kept) for group, kept in widths.items()))
    name = f"trial {network.label}: {network.trial.method}, {percent(network.accuracy)}{cost}"
    text = f"Widths of {name}: {len(bars)} groups keep {percent(kept_share, 0)} of their channels"
    return NetworkShape(name, text, bars, result.is_chosen(network))


def _pitch(bars: int) -> int:
    return max(PITCH, BREADTH // max(1, bars))
