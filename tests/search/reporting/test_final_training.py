"""The table and the sentences of the final training."""

from dataclasses import replace

from pruning.base import Goal
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.reporting.final_training import final_training_statements, final_training_table
from search.results.result import DenseResult, SearchResult
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.widths import Widths

DENSE = DenseResult(0.9, 0.89, Cost(1000, 100))


def network(
    number: int, flops: int, rungs: tuple[tuple[int, float], ...], final_epochs: int, **trial: object
) -> TrialResult:
    made = Trial(number, "di", Goal(Widths({"a": 2})), **trial)  # type: ignore[arg-type]
    accuracy = max(reached for _, reached in rungs)
    curve = tuple(EpochReport(number, epochs, reached, 1.0) for epochs, reached in rungs)
    cost, widths = Cost(flops, 10), Widths({"a": 2})
    return TrialResult(made, TrialState.COMPLETE, accuracy, cost, widths, curve, rungs=rungs, final_epochs=final_epochs)


BASELINE = network(0, 195, ((1, 0.6),), 0, baseline="own")
HEIR = network(5, 198, ((1, 0.7), (6, 0.8)), 6, parent="3", final=True)
WIDER = network(3, 490, ((1, 0.7), (9, 0.82)), 8)
SHORT = network(4, 190, ((1, 0.4),), 0)
SEARCH = SearchResult(
    {"objective": "accuracy,flops"},
    (Budget("flops", 500),),
    DENSE,
    (BASELINE, WIDER, SHORT, HEIR),
    targets=(Budget("flops", 500), Budget("flops", 200)),
)


def test_every_network_is_shown_before_and_after_the_most_expensive_first() -> None:
    table = final_training_table(SEARCH)
    assert table is not None
    assert [row[:6] for row in table.rows] == [
        ("3 di", "49.0%", "itself", "70.00%", "8", "82.00%"),
        ("5 di", "19.8%", "network 3", "-", "6", "80.00%"),
    ]


def test_the_best_network_is_compared_with_the_best_baseline_at_equal_training() -> None:
    first, *others = final_training_statements(SEARCH)
    assert first == "Final training: 14 of 17 epochs of training in all; 1 network cut from a finished one."
    compared = "network 5 has 70.00%, ahead of the best baseline (own di) with 60.00%."
    assert others == [f"At 20.0%, after equal training of 1 epoch: {compared}"]


def test_nothing_is_said_without_final_training() -> None:
    alone = replace(SEARCH, results=(SHORT,))
    assert final_training_table(alone) is None
    assert final_training_statements(alone) == []


def test_one_lucky_reading_does_not_choose_among_finished_networks() -> None:
    before = [EpochReport(7, epoch, 0.7, 1.0) for epoch in range(1, 9)]
    lucky, steady = (
        replace(
            network(number, 197, ((10, last),), 10),
            curve=(*before, *(EpochReport(number, 9 + place, reached, 1.0) for place, reached in enumerate(readings))),
        )
        for number, last, readings in ((7, 0.85, (0.7, 0.85)), (8, 0.8, (0.8, 0.8)))
    )
    assert lucky.settled_accuracy == (0.7 + 0.85) / 2  # the last two of ten epochs count
    assert replace(SEARCH, results=(lucky, steady)).best_at("20%") == steady


def test_a_cheaper_network_replaces_a_finished_one_only_beyond_the_noise() -> None:
    wide, cheap = network(3, 490, ((10, 0.80),), 10), network(5, 198, ((10, 0.81),), 10)
    few, many = (replace(SEARCH, results=(wide, cheap), val_images=images) for images in (400, 40_000))
    assert few.best_at("50%") == wide  # one point, and a standard error of two
    assert many.best_at("50%") == cheap
    assert few.best_at("20%") == many.best_at("20%") == cheap
