"""Share measurements out among the places of a device: boards of one kind measure at once, a machine one by one."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def shared_out(work: Callable[[Item], Result], items: Iterator[Item], places: int) -> Iterator[tuple[Item, Result]]:
    """Yield every item with its result as soon as that is there.

    An item is taken once a place is free, so that items may depend on the results before. With one place the work is
    done by the calling thread, else by threads; what they have begun is finished before an error is raised.

    Args:
        places: number of items that are worked on at once.
    """
    if places == 1:
        for item in items:
            yield item, work(item)
        return
    with ThreadPoolExecutor(places) as threads:
        begun: dict[Future[Result], Item] = {}
        while True:
            for item in itertools.islice(items, places - len(begun)):
                begun[threads.submit(work, item)] = item
            if not begun:
                return
            for done in wait(begun, return_when=FIRST_COMPLETED).done:
                yield begun.pop(done), done.result()
