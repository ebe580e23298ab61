"""Which trained network candidates are cut from, and that the start with the better proxy is trained."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from screened_search import SPACE, ask, cut, finish_initial_design, screened_problem, screened_search, told

from pruning.base import Goal
from runners.trial import ScreenedCandidate, TrainingSegment, Trial, TrialResult, TrialState
from search.schedulers.parents import contains, parent_for
from search.schedulers.segments import NOT_CONTINUED
from spaces.widths import Widths

if TYPE_CHECKING:
    from made_up_search import MadeUpSearch


def network(number: int, ratio: float, trained: int = 1, **changes: object) -> TrialResult:
    widths = Widths({group.name: max(1, round(ratio * group.width)) for group in SPACE.variable})
    trial = Trial(number, "l2", Goal(widths))
    rungs = ((trained, 0.5),)
    result = TrialResult(trial, TrialState.COMPLETE, 0.5, SPACE.cost(widths), widths, rungs=rungs, checkpoint=b"")
    return replace(result, **changes)  # type: ignore[arg-type]


def chosen(*results: TrialResult, ratio: float = 0.25) -> int | None:
    widths = network(99, ratio).widths
    assert widths is not None
    found = parent_for(widths, results, lambda result: float(result.cost.flops if result.cost else 0))
    return None if found is None else found.trial.number


def test_a_finished_network_is_cut_the_nearest_first() -> None:
    wide, near = network(1, 0.9, 9, final_epochs=8), network(2, 0.5, 9, final_epochs=8)
    longest = network(3, 0.4, 99)
    assert chosen(wide, near, longest) == 2
    assert chosen(wide, longest) == 1


def test_without_final_training_the_longest_training_counts_and_of_equals_the_nearest() -> None:
    assert chosen(network(1, 0.9, 4), network(2, 0.5, 2)) == 1
    assert chosen(network(1, 0.9, 2), network(2, 0.5, 2)) == 2


@pytest.mark.parametrize(
    "useless",
    [
        network(1, 0.2),  # does not contain the widths
        network(1, 0.25),  # has the same
        network(1, 0.5, 0),
        network(1, 0.5, state=TrialState.FAILED, accuracy=None),
        network(1, 0.5, note={NOT_CONTINUED: "its weights are lost"}),
    ],
)
def test_networks_that_nothing_can_be_cut_from_are_passed_over(useless: TrialResult) -> None:
    assert chosen(useless) is None
    assert chosen(useless, network(2, 0.6)) == 2


def test_one_wide_group_is_enough_to_be_out() -> None:
    wider = network(1, 0.5)
    assert wider.widths is not None
    name = SPACE.variable[0].name
    assert contains(wider, Widths({**wider.widths, name: 1}))
    assert not contains(wider, Widths({**wider.widths, name: SPACE.variable[0].width, SPACE.variable[1].name: 1}))
    assert not contains(wider, None)


def searched_until_parts() -> tuple["MadeUpSearch", Trial, Trial]:
    """Return a search with the two parts of a pool: from the dense network, and from a trained one."""
    search = screened_search(4, screened_problem(inherit=True))
    finish_initial_design(search)
    dense, heirs = ask(search), ask(search)
    return search, dense, heirs


def test_every_candidate_that_a_trained_network_contains_is_compared_from_both_starts() -> None:
    search, dense, heirs = searched_until_parts()
    assert dense.parent == ""
    assert heirs.parent
    assert all(candidate.parent == heirs.parent for candidate in heirs.pool)
    parent = next(result for result in search.results if result.label == heirs.parent)
    inside = [candidate for candidate in dense.pool if contains(parent, candidate.goal.widths)]
    assert [candidate.candidate_key() for candidate in heirs.pool] == [candidate.key() for candidate in inside]
    assert all(candidate.segment is None or candidate.segment.start is None for candidate in heirs.pool)


@pytest.mark.parametrize("inherits", [True, False])
def test_the_start_of_the_better_proxy_is_trained(*, inherits: bool) -> None:
    search, dense, heirs = searched_until_parts()
    search.tell(told(dense))
    proxies = [(cut(candidate).proxy or 0.0) + (1.0 if inherits else -1.0) for candidate in heirs.pool]
    search.tell(told(heirs, screened=tuple(ScreenedCandidate(proxy=proxy) for proxy in proxies)))
    winner = ask(search)
    assert winner.parent == (heirs.parent if inherits else "")
    assert not winner.pool
    search.tell(told(winner))
    result = search.results[-1]
    assert result.trial.parent == winner.parent
    assert result.note["screened"] == 4
    # No other candidate of the pool, and none of its widths from another start, is proposed again.
    known = {candidate.key() for candidate in dense.pool}
    while (trial := search.ask()) is not None:
        if not trial.pool:
            assert trial.candidate_key() not in known or trial.number == winner.number
        else:
            assert known.isdisjoint(candidate.candidate_key() for candidate in trial.pool)
        search.tell(told(trial))


def test_the_winner_has_the_weights_of_its_parent_and_a_segment_of_the_whole_training() -> None:
    search, dense, heirs = searched_until_parts()
    assert heirs.segment is not None
    search.tell(told(dense))
    search.tell(told(heirs, screened=tuple(ScreenedCandidate(proxy=9.0) for _ in heirs.pool)))
    winner = ask(search)
    epochs = search.problem.config.train.epochs
    assert winner.segment == TrainingSegment(epochs, start=heirs.segment.start)


def test_without_inheritance_the_dense_network_alone_is_cut() -> None:
    search = screened_search(4, screened_problem(inherit=False))
    finish_initial_design(search)
    search.tell(told(ask(search)))
    assert not ask(search).pool
