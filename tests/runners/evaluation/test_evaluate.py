"""A trial gives a checked result or a reason; its method sees training images only."""

import copy
import dataclasses
import errno
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_trials import NARROW, finish, finish_segment, trial
from torch import nn

from pruning.base import METHODS, Action, Distillation, Goal, Rates, Snapshot
from pruning.checkpoint import from_bytes
from pruning.quantization.layers import size_mb
from pruning.traits import pausable, screenable
from runners.evaluation.context import SearchContext, TrialContext, TrialInputs
from runners.evaluation.evaluate import evaluate
from runners.evaluation.proxy import proxy_target
from runners.training.compute_format import PLAIN, ComputeFormat
from runners.training.scoring import accuracy
from runners.trial import SavedTraining, Teaching, TrainingSegment, Trial, TrialState
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.errors import ConfigError
from spaces.space import SearchSpace

Run = Callable[..., Iterator[Snapshot]]


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], Trial]:
    """Register a method that runs the given function; return a trial of it."""

    def register(run: Run) -> Trial:
        class Custom:
            def run(self, *arguments: Any) -> Iterator[Snapshot]:
                return run(*arguments)

        monkeypatch.setattr("runners.evaluation.evaluate.METHODS", {"custom": Custom})
        return trial("custom", Goal())

    return register


def test_a_complete_trial_carries_curve_cost_and_a_net_that_loads(tiny_search_context: SearchContext) -> None:
    reports, result = finish(tiny_search_context)
    assert result.state is TrialState.COMPLETE, result.error
    assert [report.epoch for report in reports] == [0, 1]
    assert result.curve == tuple(reports)
    assert result.accuracy == reports[-1].accuracy
    assert result.widths == NARROW
    assert result.note == {"criterion": "l2", "compensate": False, "widths_from": "given"}
    assert 0 < result.train_seconds <= result.seconds
    assert result.checkpoint is not None
    narrow = from_bytes(result.checkpoint, tiny_search_context.net)
    assert count_cost(narrow, (1, 8, 8)) == result.cost == tiny_search_context.space.cost(NARROW)
    assert accuracy(narrow, tiny_search_context.data.val, device=torch.device("cpu")) == result.accuracy


@pytest.mark.parametrize("options", [{}, {"model_ema_decay": 0.5}])
@pytest.mark.parametrize("method_name", ["l2", "di"])
def test_a_trial_that_goes_on_from_a_saved_epoch_gives_the_same_result(
    tiny_search_context: SearchContext, method_name: str, options: dict[str, float]
) -> None:
    train = dataclasses.replace(tiny_search_context.train, epochs=3, **options)
    saved: list[SavedTraining] = []
    context = dataclasses.replace(tiny_search_context, train=train, save=saved.append)
    whole_reports, whole = finish(context, trial(method_name, goal=Goal(NARROW)))
    assert whole.state is TrialState.COMPLETE, whole.error
    assert [state.curve[-1].epoch for state in saved][:1] == [1]  # later ones only where saving is cheap enough
    for state in saved:
        reports, result = finish(context, dataclasses.replace(whole.trial, saved=pickle.loads(pickle.dumps(state))))
        assert [report.epoch for report in reports] == [epoch for epoch in range(4) if epoch > state.curve[-1].epoch]
        accuracies = [[report.accuracy for report in found.curve] for found in (whole, result)]
        assert accuracies[0] == accuracies[1] == [report.accuracy for report in whole_reports]
        assert result.checkpoint == whole.checkpoint
        assert result.note == whole.note
        assert result.trial == whole.trial


@pytest.mark.parametrize("method_name", ["l2", "di"])
def test_a_trial_goes_on_within_an_epoch_and_gives_the_same_result(
    tiny_search_context: SearchContext, method_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.evaluation.progress.SAVING_SECONDS", 0.0)
    monkeypatch.setattr("runners.evaluation.progress.SAVING_SHARE", 0)
    train = dataclasses.replace(tiny_search_context.train, epochs=2, batch_size=16)
    saved: list[SavedTraining] = []
    context = dataclasses.replace(tiny_search_context, train=train, save=saved.append)
    _, whole = finish(context, trial(method_name, goal=Goal(NARROW)))
    assert whole.state is TrialState.COMPLETE, whole.error
    within = [state for state in saved if state.within_epoch]
    steps = len(context.data.train) // 16
    assert len(within) == 2 * steps
    assert [state.curve[-1].epoch for state in within] == [0] * steps + [1] * steps
    assert all(0 < state.active_seconds <= state.seconds for state in within)
    for state in (within[0], within[steps - 1], within[steps + 1]):
        reports, result = finish(context, dataclasses.replace(whole.trial, saved=pickle.loads(pickle.dumps(state))))
        assert [report.epoch for report in reports] == [epoch for epoch in range(3) if epoch > state.curve[-1].epoch]
        assert [report.accuracy for report in result.curve] == [report.accuracy for report in whole.curve]
        assert result.checkpoint == whole.checkpoint


def test_a_segment_goes_on_within_its_first_epoch(
    tiny_search_context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no report yet, neither of this segment nor of the cut."""
    monkeypatch.setattr("runners.evaluation.progress.SAVING_SECONDS", 0.0)
    first = finish_segment(tiny_search_context, trial(), TrainingSegment(1))
    segment = TrainingSegment(1, trained=1, start=first.checkpoint)
    saved: list[SavedTraining] = []
    context = dataclasses.replace(tiny_search_context, save=saved.append)
    whole = finish_segment(context, trial(), segment)
    assert saved[0].within_epoch
    assert saved[0].curve == ()
    _, result = finish(context, dataclasses.replace(whole.trial, segment=segment, saved=saved[0]))
    assert [report.accuracy for report in result.curve] == [report.accuracy for report in whole.curve]
    assert result.checkpoint == whole.checkpoint


EAGER = {"theta": 9.0, "half_batches": 2, "warm_up_batches": 0, "search_share": 0.9}  # cuts after every half


@pytest.mark.parametrize(
    ("method_name", "settings", "options", "goal", "noted"),
    [
        ("csgd", {}, {"epochs": 4}, "widths", {"trimmed_after_epoch": 2}),
        ("csgd", {"early_trim": False}, {"epochs": 2}, "widths", {"collapsed": True}),
        ("abfp", {"iterations": 2}, {"epochs": 8, "lr": 0.02}, "widths", {"cuts": 2}),
        ("aofp", EAGER, {"epochs": 4}, "12%", {"moves": 4}),
        ("di", {"gradual_epochs": 2}, {"epochs": 4}, "widths", {"gradual_epochs": 2}),
        ("kse", {}, {"epochs": 2}, "40%", {"levels": 4}),
    ],
)
def test_a_trial_of_every_method_goes_on_from_any_saved_state(
    tiny_search_context: SearchContext,
    monkeypatch: pytest.MonkeyPatch,
    method_name: str,
    settings: dict[str, Any],
    options: dict[str, Any],
    goal: str,
    noted: dict[str, Any],
) -> None:
    monkeypatch.setattr("runners.evaluation.progress.SAVING_SECONDS", 0.0)
    monkeypatch.setattr("runners.evaluation.progress.SAVING_SHARE", 0)
    train = dataclasses.replace(tiny_search_context.train, batch_size=16, **options)
    saved: list[SavedTraining] = []
    context = dataclasses.replace(tiny_search_context, train=train, save=saved.append)
    asked = trial(method_name, Goal(NARROW) if goal == "widths" else Goal(budgets=(Budget.parse(goal),)))
    asked = dataclasses.replace(asked, settings=settings)
    _, whole = finish(context, asked)
    assert whole.state is TrialState.COMPLETE, whole.error
    assert whole.note.items() >= noted.items()
    assert bool(whole.intermediate_networks) == (method_name == "aofp" or "gradual_epochs" in settings)
    assert sum(state.within_epoch for state in saved) >= len(context.data.train) // 16 * (options["epochs"] - 1)
    for state in saved[:: max(1, len(saved) // 12)]:
        _, result = finish(context, dataclasses.replace(asked, saved=pickle.loads(pickle.dumps(state))))
        assert result.state is TrialState.COMPLETE, result.error
        assert [report.accuracy for report in result.curve] == [report.accuracy for report in whole.curve]
        assert [network.checkpoint for network in result.networks] == [network.checkpoint for network in whole.networks]
        assert {**result.note, "latency_ratio": 0} == {**whole.note, "latency_ratio": 0}


def test_a_method_whose_hook_has_no_known_state_saves_nothing(
    tiny_search_context: SearchContext, method: Callable[[Run], Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(net: nn.Module, space: SearchSpace, goal: Goal, context: TrialContext) -> Iterator[Snapshot]:
        for epoch in context.fit(net, 1, Action(lambda _net, _step: None)):
            yield Snapshot(net, space.full, epoch)
        for epoch in context.fit(net, 1):
            yield Snapshot(net, space.full, 1 + epoch)

    monkeypatch.setattr("runners.evaluation.progress.SAVING_SECONDS", 0.0)
    saved: list[SavedTraining] = []
    _, result = finish(dataclasses.replace(tiny_search_context, save=saved.append), method(run))
    assert result.state is TrialState.COMPLETE, result.error
    assert saved == []


def test_the_same_seed_gives_the_same_net(tiny_search_context: SearchContext) -> None:
    first, again, other = (finish(tiny_search_context, trial(seed=seed))[1] for seed in (1, 1, 2))
    assert first.checkpoint == again.checkpoint
    assert first.checkpoint != other.checkpoint


def test_the_dense_net_and_the_torch_threads_stay_as_they_were(tiny_search_context: SearchContext) -> None:
    before = copy.deepcopy(tiny_search_context.net.state_dict())
    threads = torch.get_num_threads()
    finish(dataclasses.replace(tiny_search_context, threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[name], value) for name, value in tiny_search_context.net.state_dict().items())


@pytest.mark.parametrize(
    ("segment", "more"),
    [
        (None, 1),
        (TrainingSegment(1, final=True), 1),  # entrants of a rung are trained beside one another
        (TrainingSegment(1, completes=True), 1),  # and so are networks that are trained again
        (TrainingSegment(1, final=True, completes=True), 2),
    ],
)
def test_the_end_of_the_final_training_takes_the_threads_of_idle_workers(
    tiny_search_context: SearchContext, method: Callable[[Run], Trial], segment: TrainingSegment | None, more: int
) -> None:
    seen = []

    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        seen.append(torch.get_num_threads())
        yield Snapshot(net, tiny_search_context.space.full, 0)

    threads = torch.get_num_threads()
    context = dataclasses.replace(tiny_search_context, threads=threads + 1, threads_alone=threads + 2)
    finish(context, dataclasses.replace(method(run), segment=segment))
    assert seen == [threads + more]
    assert torch.get_num_threads() == threads


def test_closing_a_trial_restores_the_threads_and_closes_the_method(
    tiny_search_context: SearchContext, method: Callable[[Run], Trial]
) -> None:
    closed = []

    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        try:
            yield Snapshot(net, tiny_search_context.space.full, 0)
        finally:
            closed.append(True)

    threads = torch.get_num_threads()
    evaluation = evaluate(method(run), dataclasses.replace(tiny_search_context, threads=threads + 1))
    next(evaluation)
    evaluation.close()
    assert closed == [True]
    assert torch.get_num_threads() == threads


def test_training_at_a_constant_rate_is_not_that_of_the_schedule(tiny_search_context: SearchContext) -> None:
    found = []
    for rate in (None, 1e-3, 1e-3):
        context, net = (
            TrialContext(tiny_search_context.data, tiny_search_context.train, 0),
            copy.deepcopy(tiny_search_context.net),
        )
        assert list(context.fit(net, 1, rates=Rates(constant=rate))) == [1]
        found.append(net[0].weight)
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])
    assert context.steps_per_epoch == 4


def test_another_peak_is_that_of_the_whole_schedule(tiny_search_context: SearchContext) -> None:
    found = []
    for rate, peak in ((0.02, None), (0.008, 0.02), (0.008, None)):
        config = dataclasses.replace(tiny_search_context.train, lr=rate)
        context, net = TrialContext(tiny_search_context.data, config, 0), copy.deepcopy(tiny_search_context.net)
        list(context.fit(net, 1, rates=Rates(peak=peak)))
        found.append(net[0].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_stopped_trial_is_told_with_its_last_snapshot(tiny_search_context: SearchContext) -> None:
    reports, result = finish(tiny_search_context, answer=False)
    assert result.state is TrialState.STOPPED
    assert [report.epoch for report in reports] == [0]
    assert result.accuracy == reports[0].accuracy
    assert result.cost == tiny_search_context.space.cost(NARROW)
    assert result.checkpoint is not None


def test_budgets_hold_on_the_real_net(tiny_search_context: SearchContext) -> None:
    budget = Budget.parse("40%")
    _, result = finish(tiny_search_context, trial(goal=Goal(budgets=(budget,))))
    assert result.cost is not None
    assert budget.resolve(tiny_search_context.space.dense_cost).allows(result.cost)


@pytest.mark.parametrize("error", [ValueError("wrong"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_any_exception_becomes_a_failed_trial_with_its_reason(
    tiny_search_context: SearchContext, method: Callable[[Run], Trial], error: Exception
) -> None:
    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        yield Snapshot(net, tiny_search_context.space.full, 0)
        raise error

    reports, result = finish(tiny_search_context, method(run))
    assert result.state is TrialState.FAILED
    assert result.error == f"{type(error).__name__}: {error}".rstrip(": ")
    assert result.accuracy is None
    assert result.curve == tuple(reports)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_is_not_of_the_candidate_passes_through(
    tiny_search_context: SearchContext, method: Callable[[Run], Trial], error: BaseException
) -> None:
    def run(*_: Any) -> Iterator[Snapshot]:
        raise error
        yield

    with pytest.raises(type(error)):
        finish(tiny_search_context, method(run))


def test_weights_that_are_not_finite_fail_the_trial(
    tiny_search_context: SearchContext, method: Callable[[Run], Trial]
) -> None:
    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        ruined = copy.deepcopy(net)
        with torch.no_grad():
            next(ruined.parameters())[0] = float("nan")
        yield Snapshot(ruined, tiny_search_context.space.full, 2)

    _, result = finish(tiny_search_context, method(run))
    assert result.error == (
        "EvaluationError: after epoch 2 '0.weight' of the narrow net holds values that are not finite; "
        "lower the learning rate"
    )


def test_a_net_that_costs_other_than_its_widths_promise_fails(
    tiny_search_context: SearchContext, method: Callable[[Run], Trial]
) -> None:
    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        yield Snapshot(net, NARROW, 0)

    _, result = finish(tiny_search_context, method(run))
    assert result.state is TrialState.FAILED
    assert f"{tiny_search_context.space.cost(NARROW).flops:,}" in result.error


def test_a_net_over_the_budget_fails(tiny_search_context: SearchContext, method: Callable[[Run], Trial]) -> None:
    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        yield Snapshot(net, tiny_search_context.space.full, 0)

    over = dataclasses.replace(method(run), goal=Goal(budgets=(Budget("params", 10),)))
    _, result = finish(tiny_search_context, over)
    assert "params and must stay within 10params" in result.error


def test_a_method_without_a_snapshot_fails(tiny_search_context: SearchContext, method: Callable[[Run], Trial]) -> None:
    _, result = finish(tiny_search_context, method(lambda *_: iter(())))
    assert "ended without a snapshot" in result.error


def test_an_unknown_method_fails_with_its_name(tiny_search_context: SearchContext) -> None:
    _, result = finish(tiny_search_context, trial("l3"))
    assert result.error.startswith("UnknownNameError: unknown method 'l3'")


def test_methods_reach_neither_validation_nor_test_images(tiny_search_context: SearchContext) -> None:
    secret = tiny_search_context.data.train.subset(torch.arange(3))
    data = dataclasses.replace(tiny_search_context.data, val=secret, test=secret)
    context = TrialContext(data, tiny_search_context.train, seed=0)
    assert all(value is not secret and value is not data for value in vars(context).values())


def test_the_context_gives_the_same_calibration_images_every_time(tiny_search_context: SearchContext) -> None:
    context = TrialContext(tiny_search_context.data, tiny_search_context.train, seed=0)
    first, again = (list(context.calibration_batches(20)) for _ in range(2))
    assert sum(len(labels) for _, labels in first) == 20
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))


def test_distillation_uses_the_dense_net(tiny_search_context: SearchContext) -> None:
    train = dataclasses.replace(tiny_search_context.train, distill_weight=0.9)
    plain, distilled = finish(tiny_search_context)[1], finish(dataclasses.replace(tiny_search_context, train=train))[1]
    assert distilled.state is TrialState.COMPLETE
    assert plain.checkpoint != distilled.checkpoint


def test_a_segment_may_have_another_teacher_than_the_dense_net(tiny_search_context: SearchContext) -> None:
    taught: list[bytes | None] = []
    first = finish_segment(tiny_search_context, trial("l2"), TrainingSegment(1))
    for teaching in (Teaching(0.0), Teaching(1.0), Teaching(1.0, "7", first.checkpoint)):
        taught.append(
            finish_segment(tiny_search_context, trial("l2"), TrainingSegment(1, teaching=teaching)).checkpoint
        )
    assert len(set(taught)) == 3


def test_a_method_may_distil_from_a_net_that_it_gives(tiny_search_context: SearchContext) -> None:
    """Instead of what the options say, and through the same loss at the temperature it wants."""
    options = dataclasses.replace(tiny_search_context.train, distill_weight=0.5, distill_temperature=1.0)
    other = copy.deepcopy(tiny_search_context.net)
    with torch.no_grad():
        other[0].weight.mul_(-1)
    found = []
    for train, given in (
        (options, None),
        (tiny_search_context.train, Distillation(tiny_search_context.net, 0.5)),
        (options, Distillation(other, 0.5)),
        (tiny_search_context.train, None),
    ):
        context, net = (
            TrialContext(tiny_search_context.data, train, 0, TrialInputs(teacher=tiny_search_context.net)),
            copy.deepcopy(tiny_search_context.net),
        )
        assert list(context.fit(net, 1, distillation=given)) == [1]
        found.append(net[0].weight)
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], weight) for weight in found[2:])
    with pytest.raises(ConfigError, match="--distill-weight is 2"):
        list(context.fit(net, 1, distillation=Distillation(other, 2)))


@pytest.mark.parametrize(
    "compute_format", [PLAIN, ComputeFormat(torch.bfloat16, True)], ids=["float32", "bfloat16 channels_last"]
)
def test_a_quantised_trial_is_stored_small_and_as_it_was_measured(
    tiny_search_context: SearchContext, compute_format: ComputeFormat
) -> None:
    search_context = dataclasses.replace(tiny_search_context, compute_format=compute_format)
    settings = {"bits": 4, "low_bits": 3, "high_bits": 6, "distill": 0.5}
    plain, result = (
        finish(search_context, dataclasses.replace(trial("di"), settings=chosen))[1] for chosen in ({}, settings)
    )
    assert result.state is TrialState.COMPLETE, result.error
    assert plain.checkpoint is not None
    assert result.checkpoint is not None
    back = from_bytes(result.checkpoint, search_context.net)
    assert accuracy(back, search_context.data.val, device=torch.device("cpu")) == result.accuracy
    assert count_cost(back, (1, 8, 8)) == result.cost == plain.cost == search_context.space.cost(NARROW)
    assert plain.note["size_mb"] == 4 * plain.cost.params / 1e6
    assert result.note["size_mb"] == size_mb(back) < 0.5 * plain.note["size_mb"]


def test_a_search_context_can_be_pickled(tiny_search_context: SearchContext) -> None:
    copied = pickle.loads(pickle.dumps(tiny_search_context))
    assert finish(copied)[1].checkpoint == finish(tiny_search_context)[1].checkpoint


SCREENABLE = [method for method in sorted(METHODS) if screenable(METHODS[method], {})]


@pytest.mark.parametrize("name", SCREENABLE)
def test_a_candidate_of_a_pool_is_the_net_that_its_training_starts_from(
    tiny_search_context: SearchContext, name: str
) -> None:
    candidates = [trial(name, Goal(tiny_search_context.space.full | {"0": width}), width) for width in (2, 5)]
    reports, result = finish(tiny_search_context, dataclasses.replace(candidates[0], pool=tuple(candidates)))
    assert (reports, result.error, result.curve, result.checkpoint) == ([], "", (), None)
    for candidate, screened in zip(candidates, result.screened, strict=True):
        start, whole = finish(tiny_search_context, candidate)
        assert screened.proxy == start[0].proxy
        assert screened.cost == whole.cost
    assert result.screened[0].proxy != result.screened[1].proxy


def test_a_pool_of_other_settings_than_those_of_the_search_computes_its_statistics_once(
    tiny_search_context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"label_weight": 0.7}
    candidates = [
        Trial(7, "di", Goal(tiny_search_context.space.full | {"0": width}), settings, width) for width in (2, 4, 5)
    ]
    alone = [finish(tiny_search_context, candidate)[0][0].proxy for candidate in candidates]
    ranked: list[Any] = []
    of_di = METHODS["di"].rankings
    monkeypatch.setattr(METHODS["di"], "rankings", lambda *arguments: ranked.append(1) or of_di(*arguments))
    _, result = finish(tiny_search_context, dataclasses.replace(candidates[0], pool=tuple(candidates)))
    assert [screened.proxy for screened in result.screened] == alone
    assert len(ranked) == 1


def test_a_candidate_that_fails_leaves_the_others_of_its_pool(tiny_search_context: SearchContext) -> None:
    lost, cut = trial("l2", Goal(budgets=(Budget.parse("1flops"),))), trial("l2")
    _, result = finish(tiny_search_context, dataclasses.replace(cut, pool=(lost, cut)))
    assert result.state is TrialState.COMPLETE
    assert result.screened[0].proxy is None
    assert result.screened[0].error.startswith("BudgetError: budget")
    assert result.screened[1].proxy is not None


def test_the_proxy_is_that_of_the_net_before_training(tiny_search_context: SearchContext) -> None:
    reports, _ = finish(tiny_search_context)
    assert [report.proxy is None for report in reports] == [False, True]
    target = proxy_target(tiny_search_context.net, tiny_search_context.data.calibration, device=torch.device("cpu"))
    known = dataclasses.replace(tiny_search_context, proxy_target=target)
    assert finish(known)[0][0].proxy == reports[0].proxy
    baseline = dataclasses.replace(trial(), baseline="own")
    assert finish(known, baseline)[0][0].proxy is None  # no screening is judged by it


def test_a_trial_without_images_for_its_proxy_is_trained_all_the_same(tiny_search_context: SearchContext) -> None:
    data = tiny_search_context.data
    few = dataclasses.replace(data, calibration=data.calibration.subset(torch.arange(2)))
    reports, result = finish(dataclasses.replace(tiny_search_context, data=few))
    assert (reports[0].proxy, result.state) == (None, TrialState.COMPLETE)


@pytest.mark.parametrize("setting", [{"bits": 6.0}, {"distill": 0.5}, {"gradual_epochs": 1}])
def test_what_trains_in_a_way_of_its_own_to_the_end_cannot_pause(setting: dict[str, float]) -> None:
    assert pausable(METHODS["di"], {})
    assert not pausable(METHODS["di"], setting)
    assert not pausable(METHODS["scratch"], {})
    assert pausable(METHODS["di"], {"distill": 7.0})  # which is refused when it runs
    assert all(pausable(METHODS[name], {}) for name in ("l2", "kse", "csgd", "aofp", "abfp"))
