"""Fine-tuning settings that are searched: drawn, applied, shown, trained with again."""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up_search import problem_of, search_of

from pruning.base import Goal
from runners.config import TrainConfig
from runners.evaluation.context import SearchContext
from runners.evaluation.evaluate import evaluate
from runners.simulated.runner import SimulatedRunner
from runners.trial import Trial, TrialResult, TrialState
from search import SearchResult
from search.cli import main
from search.finalization.retraining import retraining_trial
from search.reporting.wording import training_text
from search.results.serialization import from_plain, to_plain
from search.searchers.samplers import SAMPLERS
from spaces.budget import Budget


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"gp"}))  # half a second a proposal
def test_every_proposal_has_values_in_range_and_baselines_are_trained_as_set(
    sampler: str, tiny_search_context: SearchContext
) -> None:
    space = tiny_search_context.space
    budget = Budget("flops", space.dense_cost.flops // 2)
    problem = problem_of(
        space,
        (budget,),
        trials=40,
        sampler=sampler,
        train=TrainConfig(epochs=4),
        search_training="lr,distill-weight,epochs",
    )
    search = search_of(problem)
    SimulatedRunner().run(search, SimpleNamespace(space=space, threads=0))  # type: ignore[arg-type]
    drawn = [r.trial.training for r in search.results if not r.trial.baseline]
    assert {tuple(r.trial.training) for r in search.results if r.trial.baseline} == {()}
    assert drawn[0] == {"lr": 0.008, "distill_weight": 0.0, "epochs": 4}  # starts with what is set
    for setting in problem.config.searched_training:
        values = [own[setting.name] for own in drawn]
        assert all(setting.low <= value <= setting.high for value in values)
        assert len(set(values)) > 2
    assert all(isinstance(own["epochs"], int) for own in drawn)


def test_the_same_network_trained_otherwise_is_another_candidate_and_survives_the_record() -> None:
    plain = Trial(0, "l2", Goal(None, (Budget("flops", 10),)))
    other = dataclasses.replace(plain, training={"epochs": 2})
    assert plain.key() != other.key()
    back = from_plain(Trial, json.loads(json.dumps(to_plain(other))))
    assert (back, back.key()) == (other, other.key())
    old = {name: value for name, value in to_plain(plain).items() if name != "training"}
    assert from_plain(Trial, old) == plain  # of a record that was written before


def outcome(search_context: SearchContext, **training: float) -> TrialResult:
    trial = Trial(0, "l2", Goal(search_context.space.largest), seed=1, training=training)
    running = evaluate(trial, search_context)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def test_a_trial_trains_with_its_own_values(tiny_search_context: SearchContext) -> None:
    assert [report.epoch for report in outcome(tiny_search_context).curve][-1] == 1
    longer = outcome(tiny_search_context, epochs=3)
    assert [report.epoch for report in longer.curve][-1] == 3
    set_so = dataclasses.replace(
        tiny_search_context, train=dataclasses.replace(tiny_search_context.train, lr=0.05, epochs=3)
    )
    assert outcome(tiny_search_context, lr=0.05, epochs=3).checkpoint == outcome(set_so).checkpoint
    assert outcome(tiny_search_context, lr=0.05, epochs=3).checkpoint != longer.checkpoint
    distilled = outcome(tiny_search_context, distill_weight=0.9, epochs=3)
    assert distilled.state is TrialState.COMPLETE
    assert distilled.checkpoint != longer.checkpoint
    assert tiny_search_context.train.epochs == 1


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"lr": -1.0}, "--lr is -1.0 and must be a positive number"),
        ({"distill_weight": 2.0}, "--distill-weight is 2.0 and must be in [0, 1]"),
    ],
)
def test_a_value_out_of_range_fails_the_trial_with_the_rule(
    tiny_search_context: SearchContext, training: dict[str, float], words: str
) -> None:
    result = outcome(tiny_search_context, **training)
    assert result.state is TrialState.FAILED
    assert words in result.error


def test_training_again_keeps_the_values(tiny_search_context: SearchContext) -> None:
    trial = Trial(3, "l2", Goal(None, (Budget("flops", 10**6),)), training={"epochs": 2})
    member = TrialResult(
        trial,
        TrialState.COMPLETE,
        0.5,
        tiny_search_context.space.cost(tiny_search_context.space.smallest),
        tiny_search_context.space.smallest,
    )
    assert retraining_trial(member).training == {"epochs": 2}


@pytest.mark.usefixtures("without_programs")
def test_a_search_shows_how_its_networks_were_fine_tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    tiny = "--model tiny_nets:residual --data digits --image-size 8 --batch-size 32 --precision float32 --device cpu "
    tiny += "--runner local --latency-device none --final-epochs none"
    flags = f"--budget 60% --method random --trials 6 --epochs 2 --search-training lr,epochs {tiny}".split()
    assert main(["plan", *flags]) == 0
    page = capsys.readouterr().out
    for words in ("fine-tuning, not of baselines", "lr", "0.002 to 0.032, log", "1 to 2, log"):
        assert words in page
    assert main([*flags, "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    result = SearchResult.from_json((folder / "result.json").read_text())
    tuned = [member for member in result.results if member.trial.training]
    assert len(tuned) == sum(not member.trial.baseline for member in result.results)
    for member in tuned:
        assert member.curve[-1].epoch == member.trial.training["epochs"]
    for member in (network for network in result.front if network.trial.training):
        assert f"  network {member.label}: {training_text(member.trial.training)}" in out
        assert training_text(member.trial.training) in (folder / "report.html").read_text()
        metrics = json.loads((folder / "front" / f"trial-{member.stem}" / "metrics.json").read_text())
        assert metrics["training"] == member.trial.training
    with (folder / "front.csv").open() as file:
        written = [json.loads(row["training"]) for row in csv.DictReader(file)]
    assert written == [dict(member.trial.training) for member in result.front]
    assert main(["--resume", str(folder), "--trust-code", "--search-training", "lr"]) == 2
    assert "--search-training is 'lr,epochs' there and 'lr' here" in capsys.readouterr().err


@pytest.mark.parametrize("start", [[], ["plan"]])
def test_a_setting_that_cannot_be_searched_is_one_line_and_code_2(
    start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*start, "--budget", "50%", "--search-training", "momentum"]) == 2
    error = capsys.readouterr().err
    assert "knows no 'momentum'; known: lr, distill-weight, epochs" in error
    assert error.count("\n") == 1
