import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.errors import SpaceError
from spaces.widths import Widths

NAMES = st.text(min_size=1, max_size=8)


@given(st.dictionaries(NAMES, st.integers(1, 4096), min_size=1))
def test_content_alone_decides_equality_hash_and_json(items: dict[str, int]) -> None:
    forward, backward = Widths(items), Widths(dict(reversed(list(items.items()))))
    assert forward == backward
    assert hash(forward) == hash(backward)
    assert forward.to_json() == backward.to_json()
    assert Widths.from_json(forward.to_json()) == forward
    assert pickle.loads(pickle.dumps(forward)) == forward


def test_widths_equal_a_dict_of_the_same_items_whatever_its_order() -> None:
    widths = Widths({"a": 4, "b": 2})
    assert widths == {"b": 2, "a": 4}
    assert {"b": 2, "a": 4} == widths
    assert widths != {"a": 4}
    assert widths != {"a": 4, "b": 3}
    assert widths != [("a", 4), ("b", 2)]


def test_changing_a_width_makes_new_widths() -> None:
    widths = Widths({"a": 4, "b": 2})
    assert widths | {"a": 3} == Widths({"a": 3, "b": 2})
    assert widths["a"] == 4


@pytest.mark.parametrize("width", [0, -1, 2.0, True, "3"])
def test_widths_are_positive_whole_numbers(width: object) -> None:
    with pytest.raises(SpaceError, match="whole number"):
        Widths({"a": width})  # type: ignore[dict-item]


def test_digest_is_the_same_in_every_process() -> None:
    assert Widths({"b": 2, "a": 1}).digest() == "43258cff783f"
