"""Names of methods."""

import pytest

from pruning.base import METHODS, parse_methods
from spaces.errors import UnknownNameError


def test_auto_is_a_few_methods_and_all_is_the_whole_table() -> None:
    assert list(parse_methods("auto")) == ["di", "aofp", "csgd"]
    assert list(parse_methods("all")) == sorted(METHODS)


def test_each_method_comes_once_in_the_order_given() -> None:
    assert list(parse_methods("abfp, auto,di")) == ["abfp", "di", "aofp", "csgd"]
    assert list(parse_methods("")) == []


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'al'; did you mean all"):
        parse_methods("di,al")
