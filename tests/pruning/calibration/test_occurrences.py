import torch

from pruning.calibration.activation_moments import gather
from pruning.calibration.occurrences import Occurrences
from pruning.calibration.reconstruction import RECIPE, reconstruct
from pruning.criteria.discriminant.criterion import Discriminant, consumer_gram
from pruning.rewriting.surgery import slice_channels
from runners.evaluation.context import TrialContext
from spaces.tracing.tracer import trace


def test_occurrences_of_flattened_maps_follow_one_another():
    found = Occurrences.of(torch.tensor([7, 7, 4, 4]))
    assert found.channels.tolist() == [7, 4]
    assert found.index.tolist() == [[0, 1], [2, 3]]
    assert found.in_order
    assert found.counted.all()


def test_a_channel_that_occurs_less_often_begins_again():
    found = Occurrences.of(torch.tensor([7, -1, 4, 7]))
    assert found.index.tolist() == [[0, 3], [2, 2]]
    assert found.counted.tolist() == [[True, True], [True, False]]
    assert found.select(torch.arange(4.0)[None], 1).tolist() == [[[0, 3], [2, 2]]]


class Copies(torch.nn.Module):
    """A layer that reads the channels of `a`, those of `b` and the first ones again as x, y and z in some order."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.Conv2d(1, 4, 3, padding=1)
        self.read = torch.nn.Conv2d(16, 8, 1)
        self.head = torch.nn.Linear(8, 4)
        self.order = order

    def forward(self, x):
        x, y = self.a(x).relu(), self.b(x).relu()
        parts = {"x": x, "y": y, "z": torch.nn.functional.avg_pool2d(x, 3, 1, 1)}
        return self.head(self.read(torch.cat([parts[name] for name in self.order], 1)).mean((2, 3)))


def with_weights_of(net, other):
    """Let a net that reads y, x, z compute what one that reads x, y, z does."""
    net.load_state_dict(other.state_dict())
    x, y, z = other.read.weight.split((6, 4, 6), 1)
    net.read.weight = torch.nn.Parameter(torch.cat([y, x, z], 1))
    return net


def test_scores_and_reconstruction_do_not_depend_on_what_stands_between_copies(tiny_search_context):
    first = Copies("xyz").eval()
    second = with_weights_of(Copies("yxz"), first).eval()
    context = TrialContext(tiny_search_context.data, tiny_search_context.train, 0)
    ranks, outputs = [], []
    for net in (first, second):
        space = trace(net, torch.zeros(1, 1, 8, 8))
        ranks.append(Discriminant(images=64).scores(net, space, context))
        selection = {"a": torch.tensor([0, 2, 3, 5]), "b": torch.tensor([1, 2])}
        narrow = slice_channels(net, space, selection).eval()
        reconstruct(narrow, net, space, selection, gather(net, space, RECIPE, context))
        with torch.no_grad():
            outputs.append(narrow(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)))
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    torch.testing.assert_close(outputs[0], outputs[1])


def test_what_a_layer_makes_of_a_channel_is_summed_over_its_copies(tiny_search_context):
    net = Copies("xyz").eval()
    space = trace(net, torch.zeros(1, 1, 8, 8))
    context = TrialContext(tiny_search_context.data, tiny_search_context.train, 0)
    moments = gather(net, space, RECIPE, context)
    (site,) = [site for site in moments.sites if site.module == "read"]
    gram = consumer_gram(net, site, space)
    x, y, z = (part.flatten(1).double() for part in net.read.weight.detach().split((6, 4, 6), 1))
    torch.testing.assert_close(gram.diagonal(), torch.cat([x.square().sum(0) + z.square().sum(0), y.square().sum(0)]))
    assert moments.recipe == RECIPE
