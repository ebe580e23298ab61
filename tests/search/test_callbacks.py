"""Callbacks are told every step of a search, in their order."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from made_up_search import problem_of

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.callbacks import CallbackList, Progress, SearchCallback
from search.environment import Environment, Plan
from search.results.pareto import ParetoFront
from search.results.result import SearchResult
from spaces.space import SearchSpace

HOOKS = [name for name, _ in inspect.getmembers(SearchCallback, inspect.isfunction) if name.startswith("on_")]


class Recorder(SearchCallback):
    """Keeps which hooks were called with which arguments."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        def record(hook: str) -> Any:
            return lambda *arguments: calls.append((name, hook, *arguments))

        for hook in HOOKS:
            setattr(self, hook, record(hook))


def call_every_hook(callback: SearchCallback, space: SearchSpace, result: SearchResult) -> list[tuple[Any, ...]]:
    """Call the hooks in the order of a search; return (hook, *arguments)."""
    plan = Plan(cast(Environment, SimpleNamespace()))
    trial = TrialResult(Trial(0, "l2", Goal()), TrialState.COMPLETE, 0.9)
    events: list[tuple[Any, ...]] = [
        ("on_phase", "searching"),
        ("on_steps", 1, 2),
        ("on_search_start", plan),
        ("on_dense_evaluated", 0.9, problem_of(space, ["50%"]), ()),
        ("on_promotion", 0, 4),
        ("on_trial_end", trial, Progress(1, 5, ParetoFront())),
        ("on_search_end", result, Path("run"), ""),
        ("on_search_abort",),
    ]
    for hook, *arguments in events:
        getattr(callback, hook)(*arguments)
    return events


def test_a_list_hands_every_event_on_in_the_order_of_its_callbacks(
    chain_space: SearchSpace, finished_search: SearchResult
) -> None:
    calls: list[tuple[Any, ...]] = []
    both = CallbackList([Recorder("first", calls), Recorder("second", calls)])
    events = call_every_hook(both, chain_space, finished_search)
    assert {hook for hook, *_ in events} == set(HOOKS)
    assert calls == [(name, *event) for event in events for name in ("first", "second")]


def test_a_callback_without_hooks_of_its_own_does_nothing(
    chain_space: SearchSpace, finished_search: SearchResult
) -> None:
    call_every_hook(SearchCallback(), chain_space, finished_search)
    call_every_hook(CallbackList(), chain_space, finished_search)
