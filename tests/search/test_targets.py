"""Several budgets answered by one search: where its trials go, and what each target gets."""

import csv
import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chain_space import chain
from made_up_search import MadeUpSearch, problem_of, search_of

from configs.loading import parse_flags
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from search import SearchResult
from search.cli import main
from search.reporting.targets import answers, target_statements
from search.searchers.samplers import CLUSTERING, SAMPLERS
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.space import SearchSpace
from spaces.targets import parse_targets

SPACE = chain(8, 64, floor=4)
HALF = SPACE.dense_cost.flops // 2
RATES = {group.name: random.Random(group.name).uniform(1, 12) for group in SPACE.variable}


def search(url: str = "", budgets: Sequence[Budget] = (), even: bool = True, **settings: Any) -> MadeUpSearch:
    """Run a whole search by formula."""
    problem = problem_of(SPACE, budgets or (Budget("flops", HALF),), **{"trials": 24, **settings})
    made = search_of(problem, url=url, even=even)
    run(made, SimulatedRunner(outcome=SaturatingAccuracy(SPACE, RATES)))
    return made


def run(made: MadeUpSearch, runner: SimulatedRunner) -> None:
    runner.run(made, SimpleNamespace(space=made.problem.space, threads=0))  # type: ignore[arg-type]


def limits(made: MadeUpSearch, quantity: str = "flops") -> list[float]:
    return [b.limit for r in made.results for b in r.trial.goal.budgets if b.quantity == quantity]


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"gp"}))  # half a second a proposal
def test_every_candidate_is_drawn_to_a_target_and_all_get_an_equal_share(sampler: str) -> None:
    trials = 18
    targets = tuple(target.resolve(SPACE.dense_cost) for target in parse_targets("8,20,50%"))
    made = search(targets=targets, sampler=sampler, trials=trials)
    assert Counter(limits(made)) == dict.fromkeys((target.limit for target in targets), trials // 3)
    baselines = Counter(r.trial.goal.budgets[0] for r in made.results if r.trial.baseline)
    assert baselines == dict.fromkeys(targets, 3)


def test_a_target_in_params_beside_a_budget_on_flops() -> None:
    made = search(budgets=(Budget("flops", HALF), Budget("params", 20_000)), targets=(Budget("params", 9_001),))
    assert set(limits(made, "params")) == {9_001}
    assert all(r.cost.params <= 9_001 and r.cost.flops <= HALF for r in made.results if r.cost)


def test_a_limit_is_met_to_the_flop_whatever_its_share_rounds_to() -> None:
    odd = tuple(Budget("flops", HALF * share // 100 - 1) for share in (97, 29, 7))
    assert set(limits(search(targets=odd, trials=12))) == {target.limit for target in odd}


def test_an_exhausted_target_leaves_its_trials_to_the_others() -> None:
    def searched(space: SearchSpace, *targets: Budget) -> MadeUpSearch:
        made = search_of(problem_of(space, targets[:1], trials=9, allocation="search", targets=targets))
        run(made, SimulatedRunner())
        return made

    single = chain(groups=1, width=12, floor=3)
    dense, least = single.dense_cost.flops, single.smallest_cost.flops  # the second target has one network
    made = searched(single, Budget("flops", dense), Budget("flops", least))
    # And the first too: one group at the whole budget is one width, by l2, by di, and as di finds it.
    assert len(made.results) == 6
    wide = chain(groups=3, width=12, floor=3)
    half, least = wide.dense_cost.flops // 2, wide.smallest_cost.flops
    made = searched(wide, Budget("flops", half), Budget("flops", least))
    assert Counter(limits(made)) == {half: 6, least: 3}


def test_too_few_trials_for_the_targets_are_told(caplog: pytest.LogCaptureFixture) -> None:
    targets = tuple(target.resolve(SPACE.dense_cost) for target in parse_targets("8,20,50%"))
    made = search(targets=targets, trials=2)
    assert [r.trial.baseline for r in made.results] == ["uniform", "own"]
    (message,) = caplog.messages
    assert f"none for the baselines own di at target {targets[1]}, {targets[2]} and uniform di at" in message


@pytest.mark.parametrize("sampler", sorted(set(CLUSTERING) - {"gp"}))
def test_the_trials_come_out_even_in_log_cost(sampler: str) -> None:
    assert largest_step(search(sampler=sampler, trials=40)) < 2.0


def test_without_it_tpe_clusters() -> None:
    assert largest_step(search(sampler="tpe", trials=40, even=False)) > 4.0


def largest_step(made: MadeUpSearch) -> float:
    """Return the largest step in log cost from one network to the next, relative to even steps."""
    logs = sorted({math.log(r.cost.flops) for r in made.results if r.cost})
    steps = [high - low for low, high in itertools.pairwise(logs)]
    return max(steps) * len(steps) / (logs[-1] - logs[0])


def test_new_targets_are_answered_from_the_old_trials_with_baselines_of_their_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    before = search(url, trials=12)
    targets = (Budget("flops", HALF), Budget("flops", HALF // 5))
    after = search(url, trials=18, targets=targets)
    assert after.results[:12] == before.results
    assert set(limits(after)[12:]) == {target.limit for target in targets}
    counts = Counter(limits(after))  # an old trial at a target counts for it
    assert counts[targets[0].limit] == counts[targets[1].limit]
    baselines = [r.trial.goal.budgets[0].limit for r in after.results[12:] if r.trial.baseline]
    assert baselines == [targets[1].limit] * 3  # those at half the network are known already
    again = search(url, trials=18, targets=targets)
    assert again.results == after.results


@pytest.mark.usefixtures("without_programs")
def test_each_target_is_answered_shown_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    flags = "--model tiny_nets:residual --data digits --image-size 8 --batch-size 32 --precision float32 --device cpu "
    flags += "--runner local --latency-device none --method l2,random --trials 8 --confirm 2 --targets 30,90%"
    flags += f" --out {folder}"
    assert main(flags.split()) == 0
    out = capsys.readouterr().out
    result = SearchResult.from_json((folder / "result.json").read_text())
    found = answers(result)
    assert [answer.target for answer in found] == [b.resolve(result.dense.cost) for b in parse_targets("30,90%")]
    assert result.budgets == (found[0].target,)
    for answer in found:
        assert answer.best is not None
        assert answer.best.cost is not None
        assert answer.baseline is not None
        assert answer.target.allows(answer.best.cost)
        assert answer.best.label in {member.label for member in result.reported}
        assert answer.baseline.trial.baseline
        assert answer.baseline.test_accuracy is not None
        assert (folder / result.paths[f"best at {answer.target}"] / "model.safetensors").is_file()
        assert f"best at {answer.target}" in out
        assert answer.best.confirmation is not None
        assert len(answer.best.confirmation.accuracies) == 2
        if not answer.best.trial.baseline:
            control = result.retrained_baseline_of(answer.best)
            assert control is not None
            assert control.confirmation is not None
            assert control.cost is not None
            assert control.cost.flops <= answer.best.cost.flops
            best = answer.baseline.trial
            assert (control.trial.baseline, control.trial.method) == (best.baseline, best.method)
    assert result.best_at("30%") == found[1].best
    assert result.chosen is not None
    assert found[0].best is not None
    assert (result.chosen.settled_accuracy or 0.0) >= (found[0].best.settled_accuracy or 0.0)
    for words in ("Best at each target", "Best at 30.0% of flops: network", "with 2 fresh seeds, it has"):
        assert words in out
    assert "30.0% of flops" in (folder / "report.html").read_text()
    with (folder / "front.csv").open() as file:
        marked = [target for row in csv.DictReader(file) for target in row["best_at"].split(", ") if target]
    assert sorted(marked) == sorted(str(answer.target) for answer in found)
    told = mlflow_tags(folder)
    (parent,) = [tags for name, tags in told.items() if not name.startswith("trial ")]
    for answer in found:
        assert parent[f"target.{answer.target}"].startswith("Best at ")
        assert answer.best is not None
        assert str(answer.target) in told[f"trial {answer.best.trial.number:04d}"]["best_at"].split(", ")
    assert parse_flags(["--resume", str(folder), "--trust-code", "--budget", "50%"]).targets == ""
    assert parse_flags(["--resume", str(folder), "--trust-code", "--targets", "20,40%"]).targets == "20,40%"


def mlflow_tags(folder: Path) -> dict[str, dict[str, str]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    runs = client.search_runs([client.get_experiment_by_name("slimfront").experiment_id])
    return {run.info.run_name: run.data.tags for run in runs}


def test_the_best_at_a_target_on_params_is_reported_though_the_front_is_over_flops(
    finished_search: SearchResult,
) -> None:
    dear = dataclasses.replace(finished_search.results[3], cost=Cost(flops=1_500_000, params=100))
    target = Budget("params", 150)
    result = dataclasses.replace(finished_search.with_results([dear]), targets=(target,))
    assert dear.label not in {member.label for member in result.front}
    assert result.best_at(target) == dear
    assert result.reported == (*result.front, dear)
    (answer,) = answers(result)
    assert (answer.baseline, answer.verdict) == (None, "no baseline")
    assert SearchResult.from_json(result.to_json()).targets == (target,)
    nothing = dataclasses.replace(result, targets=(Budget("params", 10),))
    assert nothing.reported == tuple(nothing.front)
    assert target_statements(nothing) == ["At 0.4% of params no network was found."]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--targets 20,120%", "budget '120%' is above the dense network"),
        ("--targets 0.1,0.5", "has no known unit"),
        ("--targets 0.1gflops,1mparams", "give all in one unit"),
        ("--targets 20,20%", "names one budget twice"),
        ("--targets 5gflops", "target 5gflops is above the dense network, which has"),
        ("--targets 20,60% --budget 50%", "is above the budget"),
        ("--targets 0.1,60%", "is under the smallest network of this space"),
    ],
)
@pytest.mark.parametrize("start", [[], ["plan"]])
def test_targets_that_cannot_be_are_one_line_and_code_2(
    start: list[str], flags: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny = "--model tiny_nets:residual --data digits --image-size 8 --device cpu --precision float32"
    tiny += f" --out {tmp_path / 'run'}"
    assert main([*start, *flags.split(), *tiny.split()]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
