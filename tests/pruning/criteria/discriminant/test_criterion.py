import pytest
import torch

from pruning.base import PruningError
from pruning.calibration.activation_moments import gather
from pruning.criteria.discriminant.criterion import Discriminant, consumer_gram
from spaces.tracing.tracer import trace


@pytest.mark.parametrize("score", ["greedy", "drop", "differential"])
@pytest.mark.parametrize("labels", [0.0, 0.5, 1.0])
def test_scores_are_ranks(tiny_residual, tiny_context, score, labels) -> None:
    context = tiny_context()
    space = trace(tiny_residual, context.images)
    scores = Discriminant(score=score, label_weight=labels, images=48).scores(tiny_residual, space, context)
    assert {name: sorted(ranks.tolist()) for name, ranks in scores.items()} == {
        group.name: list(range(group.width)) for group in space.variable
    }


def test_a_channel_that_nobody_reads_is_removed_first(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    with torch.no_grad():
        tiny_residual.conv2.weight[:, 5] = 0
    criterion = Discriminant(label_weight=0.0, images=48)
    scores = criterion.scores(tiny_residual, trace(tiny_residual, context.images), context)
    assert int(scores["conv1"].argmin()) == 5


def test_moments_of_the_context_are_used_if_their_recipe_is_the_same(tiny_residual, tiny_context) -> None:
    context, criterion = tiny_context(), Discriminant(images=48)
    space = trace(tiny_residual, context.images)
    context.prepared = criterion.activation_moments(tiny_residual, space, context)
    assert criterion.activation_moments(tiny_residual, space, context) is context.prepared
    assert context.calibrations == 1
    Discriminant(images=32).scores(tiny_residual, space, context)
    assert context.calibrations == 2


def test_whole_maps_are_scored_with_the_labels_of_the_settings_in_the_authors_batches() -> None:
    flat = {"features": "flatten", "where": "output", "label_weight": 1.0, "score": "differential"}
    unit, onehot = (Discriminant(**flat, labels=labels).recipe() for labels in ("unit", "onehot"))
    assert (unit.unit, onehot.unit, unit.batch) == (True, False, 128)
    assert Discriminant(labels="unit").recipe() == Discriminant(labels="onehot").recipe()  # moments serve both


def test_the_consumer_gram_gives_the_energy_of_the_outputs(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    space = trace(tiny_residual, context.images)
    moments = gather(tiny_residual, space, Discriminant(images=48).recipe(), context)
    (site,) = (site for site in moments.sites if site.module == "head")
    weight = tiny_residual.head.weight.detach().double()
    torch.testing.assert_close(consumer_gram(tiny_residual, site, space), weight.T @ weight)
    even = consumer_gram(tiny_residual, site, space, even_outputs=True)
    energy = torch.einsum("oc,cd,od->o", weight, site.moments.scatter, weight)
    torch.testing.assert_close(even, (weight / energy.sqrt()[:, None]).T @ (weight / energy.sqrt()[:, None]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "fast"}, "score='fast' of di is not known; choose one of greedy, drop, differential"),
        ({"ridge": 0.0}, "ridge=0.0 of di must be above 0"),
        ({"label_weight": 1.5}, r"label_weight=1.5 of di must lie in \[0, 1\]"),
        ({"where": "output"}, "where='output' of di observes no consumer"),
        ({"features": "flatten"}, "features='flatten' of di knows labels only"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message) -> None:
    with pytest.raises(PruningError, match=message):
        Discriminant(**settings)
