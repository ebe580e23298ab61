"""Sharing out: what is taken when, and by which thread."""

import threading
from collections.abc import Iterator

import pytest

from runners.latency.sharing import shared_out


def test_one_place_works_in_the_calling_thread_and_takes_an_item_after_the_result_before() -> None:
    done = list[int]()

    def items() -> Iterator[int]:
        for item in range(3):
            assert done == list(range(item))
            yield item

    def work(item: int) -> str:
        done.append(item)
        return threading.current_thread().name

    here = threading.current_thread().name
    assert list(shared_out(work, items(), 1)) == [(item, here) for item in range(3)]


def test_several_places_work_at_once_and_never_more() -> None:
    together, working, most = threading.Barrier(3), list[int](), list[int]()

    def work(item: int) -> int:
        working.append(item)
        most.append(len(working))
        together.wait(10)
        working.remove(item)
        return item * item

    assert sorted(shared_out(work, iter(range(9)), 3)) == [(item, item * item) for item in range(9)]
    assert max(most) == 3


def test_an_error_is_raised_after_what_was_begun() -> None:
    finished = list[int]()

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("no figures")
        finished.append(item)

    with pytest.raises(ValueError, match="no figures"):
        list(shared_out(work, iter(range(2)), 2))
    assert finished == [1]
