import pytest
import tiny_nets
import torch
from ranked_nets import halved
from torch import nn

from pruning.base import PruningError
from pruning.quantization.precision import UNRANKED, Precision, filter_ranks
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.tracing.tracer import trace


@pytest.mark.parametrize("filters", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize(("low", "high"), [(2, 4), (4, 8), (3, 16), (5, 5)])
def test_the_mean_is_met_up_to_one_filter_and_never_exceeded(filters, low, high):
    ranks = torch.rand(filters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for share in (0.0, 0.1, 0.25, 0.5, 0.99, 1.0):
        mean = low + share * (high - low)
        bits = Precision(mean, low, high).of_filters(ranks).double()
        assert set(bits.tolist()) <= {low, high}
        assert mean - (high - low) / filters < float(bits.mean()) + 1e-9 <= mean + 2e-9
        best = torch.argsort(ranks, descending=True)[: int((bits == high).sum())]
        assert low == high or set(best.tolist()) == set(torch.nonzero(bits == high).flatten().tolist())


def test_filters_without_rank_get_the_high_bits_and_count_in_no_mean():
    ranks = torch.tensor([0.1, UNRANKED, 0.9, 0.5, UNRANKED, 0.3])
    assert Precision(6, 4, 8).of_filters(ranks).tolist() == [4, 8, 8, 8, 8, 4]
    assert Precision(4, 4, 8).of_filters(ranks).tolist() == [4, 8, 4, 4, 8, 4]


def test_filters_rank_as_the_channels_they_write():
    net = tiny_nets.Residual().eval()
    space = trace(net, torch.zeros(1, *tiny_nets.IMAGE))
    order = torch.tensor([3.0, 7.0, 0.0, 5.0, 1.0, 6.0, 2.0, 4.0], dtype=torch.float64)
    ranks = {"stem": order, "inner": torch.arange(6, dtype=torch.float64)}
    selection = select_channels(space, ranks, {"stem": 4, "inner": 3})
    assert selection["stem"].tolist() == [1, 3, 5, 7]
    found = filter_ranks(slice_channels(net, space, selection), space, selection, ranks)
    assert (found["stem"] * 8).tolist() == [7, 5, 6, 4]
    assert (found["outer"] * 8).tolist() == [7, 5, 6, 4]  # the same channels
    assert (found["inner"] * 6).tolist() == [3, 4, 5]
    assert found["fc"].tolist() == [UNRANKED] * 5


def test_a_flattened_consumer_and_depthwise_and_grouped_layers_are_ranked():
    kinds = {
        tiny_nets.Concat: {"left", "right", "join"},
        tiny_nets.Grouped: {"first", "grouped", "last"},
        tiny_nets.Depthwise: {"expand", "depthwise", "squeeze", "excite", "project"},
    }
    for kind, ranked in kinds.items():
        narrow, _, _, ranks = halved(kind().eval())
        assert {name for name, values in ranks.items() if (values > UNRANKED).all()} == ranked
        assert all(len(values) == len(narrow.get_submodule(name).weight) for name, values in ranks.items())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight
        self.again = self.last

    def forward(self, x):
        return self.again(self.second(self.first(x)))


def test_shared_layers_and_weights_stay_plain():
    net = Shared()
    space = trace(tiny_nets.Residual().eval(), torch.zeros(1, *tiny_nets.IMAGE))
    assert filter_ranks(net, space, {}, {}) == {}


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ((9, 4, 8), "bits=9 is no mean.*between them"),
        ((3, 4, 8), "bits=3 is no mean"),
        ((6, 8, 4), "low_bits=8 and high_bits=4"),
        ((1, 1, 8), "low_bits=1"),
        ((8, 4, 17), "high_bits=17"),
    ],
)
def test_bits_that_cannot_be_met_are_refused(precision, message):
    with pytest.raises(PruningError, match=message):
        Precision(*precision)


def test_a_layer_without_filters_is_refused():
    with pytest.raises(PruningError, match="without filters"):
        Precision(5, 4, 8).of_filters(torch.zeros(0))
