"""Names of methods, and what they say of themselves."""

import pytest

from pruning.base import METHODS, parse_methods
from pruning.traits import wide_epochs
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


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("epochs", [0, 1, 2, 7])
def test_no_method_trains_the_wide_net_longer_than_a_trial(name: str, epochs: int) -> None:
    assert 0 <= wide_epochs(METHODS[name](), epochs) <= epochs


def test_methods_that_train_before_they_cut_say_so() -> None:
    assert wide_epochs(METHODS["l2"](), 4) == 0
    assert wide_epochs(METHODS["aofp"](search_share=0.5), 4) == 2
    assert wide_epochs(METHODS["aofp"](), 1) == 1
    assert wide_epochs(METHODS["csgd"](deadline=0.3), 4) == 2
    assert wide_epochs(METHODS["csgd"](early_trim=False), 4) == 4
    assert wide_epochs(METHODS["abfp"](balancing=0.25), 4) == 1


def test_a_net_with_shared_kernels_takes_as_long_as_the_dense_one() -> None:
    assert wide_epochs(METHODS["kse"](), 4) == 4
