import dataclasses

import pytest

from spaces.budget import Budget
from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.errors import BudgetError
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.targets import absolute_targets, parse_targets, with_targets


def space(ceiling: int = 10) -> SearchSpace:
    """Two layers of 10 channels: flops = 10 ** 6 a pair of channels, params = 1; from 2 channels each."""
    flops, params = PolynomialBuilder(2), PolynomialBuilder(2)
    pair = (Form(0, ((0, 1),)), Form(0, ((1, 1),)))
    flops.add(10**6, *pair)
    params.add(1, *pair)
    groups = tuple(ChannelGroup(name, 10, 2, 10, producers=(name,)) for name in "ab")
    model = CostModel(("a", "b"), (10, 10), {"flops": flops.build(), "params": params.build()})
    groups = tuple(dataclasses.replace(group, ceiling=ceiling) for group in groups)
    return SearchSpace(groups, (), model, {}, (3, 8, 8))


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("0.1,0.3,0.5gflops", [500_000_000, 300_000_000, 100_000_000]),
        ("0.1gflops, 300mflops", [300_000_000, 100_000_000]),
        ("1e5,2e5flops", [200_000, 100_000]),
        ("0.5,1mparams", [1_000_000, 500_000]),
        ("8%", [0.08]),
        ("20,8,50%", [0.5, 0.2, 0.08]),
    ],
)
def test_what_has_no_unit_takes_that_of_the_last(text: str, limits: list[float]) -> None:
    targets = parse_targets(text)
    assert [target.limit for target in targets] == limits
    assert {(t.quantity, t.relative) for t in targets} == {(targets[0].quantity, text.endswith("%"))}
    assert targets[0].quantity == ("params" if "params" in text else "flops")


def test_no_text_asks_for_no_target() -> None:
    assert parse_targets("  ") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",", "--targets ',' names no budget; write them as in 0.1,0.3,0.5gflops, 8,20,50% or 20,50%params"),
        ("0.1,0.5", "budget '0.1' has no known unit"),
        ("0.1,much,0.5gflops", "budget 'much' is not a number"),
        ("0,0.5gflops", "budget '0gflops' must be a positive finite number"),
        ("20,120%", "budget '120%' is above the dense network"),
        ("0.1gflops,1mparams", "mixes 1mparams, 100mflops; give all in one unit"),
        ("20%,0.1gflops", "give all in one unit"),
        ("20%,50%params", "give all in one unit"),
        ("20,50%latency", "has 20%latency, and targets limit flops or params"),
        ("1,2ms", "has 1ms, and targets limit flops or params"),
        ("0.1gflops,100mflops", "names one budget twice"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_text(text: str, words: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_targets(text)
    assert f"--targets {text!r}" in str(caught.value)
    assert words in str(caught.value).replace("100mflops, 1mparams", "1mparams, 100mflops")


def test_the_largest_target_is_the_budget_unless_there_is_one_on_its_quantity() -> None:
    targets, params, flops = parse_targets("8,20%"), Budget("params", 50), Budget("flops", 10**7)
    assert with_targets((), targets) == (targets[0],)
    assert with_targets((params,), targets) == (targets[0], params)
    assert with_targets((flops, params), targets) == (flops, params)
    assert with_targets((flops,), ()) == (flops,)


def test_shares_become_counts_of_this_network() -> None:
    found = absolute_targets(parse_targets("8,50%"), (), space())
    assert found == (Budget("flops", 50_000_000), Budget("flops", 8_000_000))


@pytest.mark.parametrize("text", ["20,50%params", "50%params,20%params", "20,50%-params"])
def test_shares_of_parameters_become_counts_of_them(text: str) -> None:
    assert absolute_targets(parse_targets(text), (), space()) == (Budget("params", 50), Budget("params", 20))


@pytest.mark.parametrize(
    ("text", "budgets", "words"),
    [
        ("0.05,0.2gflops", (), "target 200mflops is above the dense network, which has 100,000,000 flops; lower it"),
        ("101params", (), "above the dense network, which has 100 params"),
        ("20,50%", (Budget("flops", 40_000_000),), "target 50mflops is above the budget 40mflops; lower it, or leave"),
        (
            "3,50%",
            (),
            "target 3mflops is under the smallest network of this space, which has 4,000,000 flops; raise it",
        ),
        ("50.0000001,50%", (), "are not all different on this network"),
    ],
)
def test_a_target_out_of_reach_is_told_with_what_is_there(text: str, budgets: tuple[Budget, ...], words: str) -> None:
    with pytest.raises(BudgetError) as caught:
        absolute_targets(parse_targets(text), budgets, space())
    assert words in str(caught.value)


def test_a_target_that_bounds_put_out_of_reach_names_them() -> None:
    with pytest.raises(BudgetError, match="above the largest network that --bound allows, which has 64,000,000 flops"):
        absolute_targets(parse_targets("50,90%"), (), space(ceiling=8))
    assert absolute_targets(parse_targets("64%"), (), space(ceiling=8))
