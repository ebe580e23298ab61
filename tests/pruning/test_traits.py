"""What planners ask a method before it runs."""

import dataclasses

import pytest

from pruning.base import METHODS, PruningError
from pruning.traits import pausable, screenable, wide_epochs, yields_intermediates


@dataclasses.dataclass(frozen=True)
class Answering:
    """Answers every question by its settings, and refuses a negative share."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if self.share < 0:
            raise PruningError("negative")

    def wide_epochs(self, epochs: int) -> float:
        return self.share * epochs

    def yields_intermediates(self, epochs: int) -> bool:
        return epochs > 2

    @property
    def pausable(self) -> bool:
        return self.share < 1

    @property
    def screenable(self) -> bool:
        return self.share == 0


@dataclasses.dataclass(frozen=True)
class Silent:
    """Answers no question."""


def test_a_method_answers_by_its_settings() -> None:
    assert wide_epochs(Answering(), 3) == 1.5
    assert [yields_intermediates(Answering(), epochs) for epochs in (2, 3)] == [False, True]
    assert [pausable(Answering, {"share": share}) for share in (0, 1)] == [True, False]
    assert [screenable(Answering, {"share": share}) for share in (0, 1)] == [True, False]


def test_a_method_without_an_answer_trains_narrow_yields_one_net_can_be_paused_and_cannot_be_screened() -> None:
    assert wide_epochs(Silent(), 3) == 0
    assert not yields_intermediates(Silent(), 3)
    assert pausable(Silent, {})
    assert not screenable(Silent, {})


def test_settings_that_the_method_refuses_raise_no_error_here() -> None:
    assert pausable(Answering, {"share": -1})
    assert not screenable(Answering, {"share": -1})


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("epochs", [0, 1, 2, 7])
def test_no_method_trains_the_wide_net_longer_than_a_trial(name: str, epochs: int) -> None:
    assert 0 <= wide_epochs(METHODS[name](), epochs) <= epochs


def test_methods_that_train_before_they_cut_say_so() -> None:
    assert wide_epochs(METHODS["l2"](), 4) == 0
    assert wide_epochs(METHODS["aofp"](search_share=0.5), 4) == 2
    assert wide_epochs(METHODS["aofp"](search_share=0.25), 1) == 0.25
    assert wide_epochs(METHODS["csgd"](deadline=0.3), 4) == 2
    assert wide_epochs(METHODS["csgd"](early_trim=False), 4) == 4
    assert wide_epochs(METHODS["abfp"](balancing=0.25), 4) == 1


def test_a_net_with_shared_kernels_takes_as_long_as_the_dense_one() -> None:
    assert wide_epochs(METHODS["kse"](), 4) == 4
