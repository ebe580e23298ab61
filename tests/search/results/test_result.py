import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pruning.base import Goal
from runners.learning_curve import LearningCurve
from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult, TrialState
from search.results.result import DenseResult, SearchResult
from search.results.serialization import ResultError, trial_result_from_dict, trial_result_to_dict
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.widths import Widths

BUDGET = Budget("flops", 100)


def made(number: int, flops: int, accuracy: float, baseline: str = "", **changes: Any) -> TrialResult:
    trial = Trial(number, "l2" if baseline else "di", Goal(Widths({"conv": 4}), (BUDGET,)), {"ridge": 0.1}, 7, baseline)
    result = TrialResult(trial, TrialState.COMPLETE, accuracy, Cost(flops, 9), Widths({"conv": 4}), seconds=1.25)
    return dataclasses.replace(result, **changes)


def search(*results: TrialResult, **changes: Any) -> SearchResult:
    dense = DenseResult(0.95, 0.94, Cost(200, 40), LearningCurve((0.5, 0.95), train=0.96, val_images=100))
    return dataclasses.replace(SearchResult({"model": "lenet5"}, (BUDGET,), dense, results), **changes)


def failed(number: int) -> TrialResult:
    return TrialResult(Trial(number, "di", Goal(None, (BUDGET,))), TrialState.FAILED, error="out of memory")


def test_json_round_trip_is_exact_and_holds_no_weights() -> None:
    reports = (EpochReport(0, 0, 0.1 + 0.2, 0.5), EpochReport(0, 1, 1 / 3, 1.0))
    first = made(0, 90, 1 / 3, curve=reports, note={"moves": 3}, test_accuracy=0.5, path="front/0.safetensors")
    before = search(
        first,
        failed(1),
        made(2, 50, 0.2, "uniform"),
        config={"budget": ("100flops",), "out": Path("runs") / "a"},
        seconds=12.5,
        versions={"torch": "2.6"},
        paths={"json": Path("result.json")},
        interrupted=True,
    )
    after = SearchResult.from_json(before.to_json())

    assert after == before
    assert after.to_json() == before.to_json()
    assert (after.front, after.chosen) == (before.front, before.chosen)
    assert after.config == {"budget": ["100flops"], "out": "runs/a"}
    weighty = search(dataclasses.replace(first, checkpoint=b"weights"))
    assert "weights" not in weighty.to_json()
    assert SearchResult.from_json(weighty.to_json()).results == (first,)


def test_numbers_that_are_not_finite_become_null() -> None:
    broken = dataclasses.replace(failed(0), curve=(EpochReport(0, 1, math.nan, 2.0),), note={"loss": math.inf})
    data = json.loads(json.dumps(trial_result_to_dict(broken), allow_nan=False))
    back = trial_result_from_dict(data)
    assert math.isnan(back.curve[0].accuracy)
    assert back.note == {"loss": None}


def test_the_json_says_front_and_choice_by_label() -> None:
    data = search(made(0, 50, 0.5, "uniform"), made(1, 90, 0.9)).to_dict()
    assert (data["schema"], data["front"], data["chosen"]) == (3, ["0", "1"], "1")
    assert data["baseline_comparison"]["won"] is True


@pytest.mark.parametrize("text", ["", "{}", "[]", "no json"])
def test_a_text_that_is_no_result_is_a_clear_error(text: str) -> None:
    with pytest.raises(ResultError, match=r"no search result .* give the result.json"):
        SearchResult.from_json(text)


def test_another_schema_version_is_refused() -> None:
    text = search().to_json().replace('"schema": 3', '"schema": 99', 1)
    with pytest.raises(ResultError, match="schema 99, this version reads 3"):
        SearchResult.from_json(text)


def test_a_record_of_another_schema_version_or_a_damaged_one_is_refused() -> None:
    data = trial_result_to_dict(made(0, 50, 0.5))
    with pytest.raises(ResultError, match="schema 99, this version reads 3"):
        trial_result_from_dict({**data, "schema": 99})
    with pytest.raises(ResultError, match="schema 'older than 3', this version reads 3"):
        trial_result_from_dict({name: value for name, value in data.items() if name != "schema"})
    with pytest.raises(ResultError, match="has no 'curve'"):
        trial_result_from_dict({name: value for name, value in data.items() if name != "curve"})
    with pytest.raises(ResultError, match="this is no TrialResult .accuracy: "):
        trial_result_from_dict({**data, "accuracy": "high"})


def test_a_record_holds_neither_weights_nor_the_training_segment() -> None:
    trial = dataclasses.replace(made(0, 50, 0.5).trial, segment=TrainingSegment(1, 2, b"weights"))
    network = made(0, 60, 0.6, checkpoint=b"weights", intermediate_index=1)
    result = dataclasses.replace(made(0, 50, 0.5), trial=trial, checkpoint=b"weights", intermediate_networks=(network,))
    data = json.loads(json.dumps(trial_result_to_dict(result)))
    assert "weights" not in json.dumps(data)
    assert trial_result_from_dict(data) == made(
        0, 50, 0.5, intermediate_networks=(dataclasses.replace(network, checkpoint=None),)
    )


def test_whole_numbers_stay_whole_so_that_the_key_of_a_trial_does_not_change() -> None:
    for trial in (
        Trial(0, "abfp", Goal(None, (BUDGET,))),
        Trial(0, "abfp", Goal(None, (Budget("latency", 0.5),)), {"steps": 3, "rate": 1.0}),
        Trial(0, "l2", Goal(Widths({"conv": 4})), training={"epochs": 2, "lr": 1.0}),
    ):
        back = trial_result_from_dict(
            json.loads(json.dumps(trial_result_to_dict(TrialResult(trial, TrialState.FAILED))))
        )
        assert back.trial == trial
        assert back.trial.key() == trial.key()


def test_chosen_is_the_most_accurate_inside_the_budgets_and_the_cheaper_of_equals() -> None:
    over, equal, cheaper = made(0, 101, 0.99), made(1, 90, 0.9), made(2, 80, 0.9)
    assert search(over, equal, cheaper, made(3, 10, 0.1)).chosen is cheaper
    assert search(failed(0)).chosen is None
    params = search(equal, cheaper, budgets=(BUDGET, Budget("params", 8)))
    assert params.chosen is None


def test_confirmed_results_replace_those_of_the_same_trials() -> None:
    before = search(made(0, 50, 0.5), made(1, 90, 0.9))
    confirmed = dataclasses.replace(before.results[1], test_accuracy=0.88)
    after = before.with_results([confirmed])
    assert [result.test_accuracy for result in after.results] == [None, 0.88]
    assert after.chosen == confirmed


def test_a_search_that_beats_its_baselines_says_by_how_much() -> None:
    uniform, chosen = made(0, 99, 0.80, "uniform"), made(1, 95, 0.85)
    comparison = search(uniform, made(2, 40, 0.6, "uniform"), chosen).baseline_comparison
    assert (comparison.won, comparison.baseline_trial, comparison.dominated, comparison.baselines) == (True, 0, 1, 2)
    assert "85.00% at 95 FLOPs against 80.00% at 99" in comparison.statement
    assert "dominate 1" in comparison.statement


@pytest.mark.parametrize(("test_accuracy", "verdict"), [(0.9, "confirms it"), (0.7, "does not confirm it")])
def test_the_test_accuracy_has_the_last_word(test_accuracy: float, verdict: str) -> None:
    uniform = made(0, 99, 0.80, "uniform", test_accuracy=0.8)
    chosen = made(1, 95, 0.85, test_accuracy=test_accuracy)
    assert f"test {verdict}" in search(uniform, chosen).baseline_comparison.statement


def test_the_search_is_compared_with_the_best_of_its_baselines_and_says_so_where_it_has_not_won() -> None:
    uniform, own, other = made(0, 99, 0.70, "uniform"), made(1, 90, 0.80, "own"), made(2, 95, 0.75)
    found = search(uniform, own, other)
    assert found.best_baseline == own
    assert (found.best_at("0.000000099gflops", baselines=True), found.best_at(Budget("flops", 95))) == (own, own)
    comparison = found.baseline_comparison
    assert (comparison.won, comparison.baseline_trial, comparison.dominated, comparison.baselines) == (False, 1, 1, 2)
    assert comparison.statement.startswith(
        "The search did not beat its best baseline, l2 with own widths (80.00% on validation, 90 FLOPs)."
    )
    won = search(uniform, own, made(2, 95, 0.85)).baseline_comparison
    assert "beats the best baseline, l2 with own widths, on validation: 85.00% at 95 FLOPs" in won.statement


def test_without_a_baseline_there_is_no_comparison() -> None:
    comparison = search(made(1, 95, 0.75)).baseline_comparison
    assert (comparison.baseline_trial, comparison.won) == (None, False)


def test_an_intermediate_network_may_be_on_the_front_and_chosen(search_with_intermediates: SearchResult) -> None:
    assert [member.label for member in search_with_intermediates.front] == ["3", "0", "3.2", "1"]
    cheaper = dataclasses.replace(search_with_intermediates, budgets=(Budget("flops", 1_100_000),))
    assert cheaper.chosen is not None
    assert cheaper.chosen.label == "3.2"
    assert [member.label for member in search_with_intermediates.front if cheaper.is_chosen(member)] == ["3.2"]
    assert cheaper.to_dict()["chosen"] == "3.2"


def test_every_member_of_the_front_is_inside_the_budgets(search_with_intermediates: SearchResult) -> None:
    above = search_with_intermediates.results[3].intermediate_networks[0]
    assert above.accuracy > max(member.accuracy for member in search_with_intermediates.front)  # type: ignore[type-var, operator]
    assert above not in search_with_intermediates.front.members


def test_intermediate_networks_survive_json(search_with_intermediates: SearchResult) -> None:
    after = SearchResult.from_json(search_with_intermediates.to_json())
    assert after == search_with_intermediates
    assert [network.label for network in after.results[3].intermediate_networks] == ["3.1", "3.2", "3.3"]


def test_a_confirmed_intermediate_network_replaces_itself_alone(search_with_intermediates: SearchResult) -> None:
    member = search_with_intermediates.results[3].intermediate_networks[1]
    confirmed = search_with_intermediates.with_results(
        [dataclasses.replace(member, test_accuracy=0.94), search_with_intermediates.results[3]]
    )
    assert [network.test_accuracy for network in confirmed.results[3].networks] == [0.84, None, 0.94, None]


def trained_on(network: TrialResult, *readings: float) -> TrialResult:
    """The network after final training with these readings, the last of which is its accuracy."""
    trial, epochs = network.trial, len(readings)
    curve = tuple(EpochReport(trial.number, epoch, reading, 1.0) for epoch, reading in enumerate(readings, start=2))
    rungs = ((1, 0.5), (1 + epochs, readings[-1]))
    return dataclasses.replace(network, accuracy=readings[-1], curve=curve, rungs=rungs, final_epochs=epochs)


def test_the_chosen_network_is_on_the_front_though_another_has_steadier_readings() -> None:
    finished = trained_on(made(0, 90, 0.9, "uniform"), 0.8, 0.9)
    found = search(finished, made(1, 90, 0.9))
    assert [member.label for member in found.front] == ["0"]
    assert found.chosen == finished
    assert not found.baseline_comparison.won


def test_a_network_that_is_behind_a_baseline_over_the_last_epochs_has_not_won() -> None:
    lucky, steady = trained_on(made(0, 80, 0.9), 0.7, 0.9), trained_on(made(1, 85, 0.89, "uniform"), 0.89, 0.89)
    found = search(lucky, steady)
    assert found.chosen == lucky  # the only one on the front
    assert not found.baseline_comparison.won
    assert "l2 with uniform widths (89.00% on validation over the last epochs, 85 FLOPs)" in (
        found.baseline_comparison.statement
    )
