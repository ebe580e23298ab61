"""ChannelGroup: channels that must be cut together, and the widths they may have."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be cut together, because additions, products or depthwise layers tie them.

    Attributes:
        name: the first layer that writes these channels.
        width: number of channels of the dense network.
        floor, ceiling: smallest and largest width allowed.
        divisor: allowed widths are its multiples, and the ceiling.
        blocks: grouped convolutions split the channels into this many equal runs, which stay equally wide.
        producers: layers whose output channels these are; consumers: layers that read them.
        start: id of its channel 0 in the axis maps of the space.
        fixed: why its width cannot vary; empty when it can.
    """

    name: str
    width: int
    floor: int
    ceiling: int
    divisor: int = 1
    conv_groups: int = 1
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    start: int = 0
    fixed: str = ""

    @property
    def lowest(self) -> int:
        """The smallest legal width."""
        return min(ceil(self.floor / self.divisor) * self.divisor, self.ceiling)

    @property
    def steps(self) -> int:
        """How many divisor steps lead from the smallest to the largest legal width."""
        return ceil((self.ceiling - self.lowest) / self.divisor)

    def legal(self, width: int) -> bool:
        """Whether the group may have this width."""
        inside = self.lowest <= width <= self.ceiling
        return inside and (width % self.divisor == 0 or width == self.ceiling)
