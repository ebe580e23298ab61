"""ChannelGroup: channels that must be cut together, and the widths that the group may have."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be cut together, because additions, products or depthwise layers tie them.

    Attributes:
        name: the first layer that writes these channels.
        width: number of channels of the dense network.
        floor, ceiling: smallest and largest width allowed.
        divisor: the allowed widths are its multiples, and the ceiling.
        conv_groups: number of equal groups into which grouped convolutions split the channels; each of these groups
            loses as many channels as the others.
        producers, consumers: layers whose output channels, and whose input channels, belong to the group.
        start: channel id of its first channel in the axis maps of the space; the ids of a group are consecutive.
        fixed: the reason why its width cannot vary; empty for a variable group.
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
