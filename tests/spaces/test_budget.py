import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.budget import Budget, parse_budgets
from spaces.cost import QUANTITIES, Cost
from spaces.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "quantity", "limit"),
    [
        ("0.5gflops", "flops", 500_000_000),
        ("500mflops", "flops", 500_000_000),
        ("0.5gmacs", "flops", 500_000_000),
        ("0.5 GFLOPs", "flops", 500_000_000),
        ("0.3gflops", "flops", 300_000_000),
        ("1.2mparams", "params", 1_200_000),
        ("12345flops", "flops", 12_345),
        ("1e3kparams", "params", 1_000_000),
        ("512kb-activations", "activations", 512_000),
        ("0.5MiB-activations", "activations", 524_288),
        ("2mb", "size", 2_000_000),
        ("2kib", "size", 2_048),
    ],
)
def test_counts_parse_to_whole_numbers(text: str, quantity: str, limit: int) -> None:
    budget = Budget.parse(text)
    assert (budget.quantity, budget.limit, budget.relative) == (quantity, limit, False)


def test_latency_parses_to_seconds() -> None:
    assert Budget.parse("8ms") == Budget("latency", 0.008)


def test_percent_is_a_share_of_the_dense_flops() -> None:
    assert Budget.parse("50%").resolve(Cost(1001, 7)) == Budget("flops", 500)


def test_shares_of_bytes_need_bytes_that_are_known() -> None:
    budget = Budget.parse("50%activations")
    assert budget.resolve(Cost(1001, 7, 3000)) == Budget("activations", 1500)
    with pytest.raises(BudgetError, match="bytes of activations of the dense network, which are not known"):
        budget.resolve(Cost(1001, 7))
    assert not Budget("size", 10).allows(Cost(1, 1))


@pytest.mark.parametrize(
    "text",
    [
        "banana",
        "",
        "0gflops",
        "-1gflops",
        "nan",
        "nangflops",
        "infgflops",
        "5",
        "0.5xflops",
        "101%",
        "gflops",
        "0.1flops",
        "1e400flops",
        "1e25flops",
        "1e9999999params",
        "1e99999999999999999999flops",
        "1e400ms",
        "1e-400ms",
        "1e-400%",
        "101%params",
        "50%-",
        "5-params",
        "2kb-params",
        "2mflops-activations",
    ],
)
def test_what_is_no_budget_is_refused_with_the_text_and_examples(text: str) -> None:
    with pytest.raises(BudgetError) as error:
        Budget.parse(text)
    assert repr(text) in str(error.value)
    assert "%" in str(error.value)


@given(st.integers(1, 10**15), st.sampled_from(QUANTITIES))
def test_text_of_a_budget_parses_to_the_same_budget(limit: int, quantity: str) -> None:
    budget = Budget(quantity, limit)
    assert Budget.parse(str(budget)) == budget


@given(st.integers(1, 100), st.integers(100, 10**13))
def test_a_percentage_never_resolves_above_its_share(percent: int, flops: int) -> None:
    limit = Budget.parse(f"{percent}%").resolve(Cost(flops, 1)).limit
    assert limit <= flops * percent / 100 + 1e-6
    assert limit >= math.floor(flops * percent / 100 - 1e-3)


def test_allows_compares_the_right_quantity() -> None:
    assert Budget("flops", 10).allows(Cost(10, 99))
    assert not Budget("flops", 10).allows(Cost(11, 1))
    assert not Budget("params", 10).allows(Cost(1, 11))


@pytest.mark.parametrize("budget", [Budget("latency", 0.01), Budget("flops", 0.5, relative=True)])
def test_budgets_that_no_count_can_answer_say_so(budget: Budget) -> None:
    with pytest.raises(BudgetError, match="cannot be compared"):
        budget.allows(Cost(1, 1))


def test_two_budgets_on_one_quantity_are_refused() -> None:
    with pytest.raises(BudgetError, match="both limit flops"):
        parse_budgets(["50%", "0.5gflops"])
    assert len(parse_budgets(["50%", "1mparams"])) == 2


def test_no_budget_at_all_is_refused() -> None:
    with pytest.raises(BudgetError, match="no budget"):
        parse_budgets([])


@pytest.mark.parametrize("text", ["50%-latency", "50%latency", " 50 %-LATENCY"])
def test_a_share_of_the_dense_latency_is_absolute_once_that_is_measured(text: str) -> None:
    budget = Budget.parse(text)
    assert budget == Budget("latency", 0.5, relative=True)
    assert budget.resolve(Cost(1001, 7)) == budget
    assert budget.resolve_latency(0.008) == Budget("latency", 0.004)
    assert Budget.parse(str(budget)) == budget
    assert Budget("flops", 9).resolve_latency(0.008) == Budget("flops", 9)


def test_the_dense_latency_is_no_limit_above_itself() -> None:
    with pytest.raises(BudgetError, match="is above the dense network"):
        Budget.parse("101%-latency")


@pytest.mark.parametrize("text", ["20%params", "20%-params", " 20 %PARAM"])
def test_a_share_of_the_dense_parameters_is_a_count_of_them(text: str) -> None:
    budget = Budget.parse(text)
    assert budget.resolve(Cost(1_000_000, 1009)) == Budget("params", 201)
    assert str(budget) == "20%params"
    assert Budget.parse("20%macs") == Budget.parse("20%flops") == Budget.parse("20%")


@pytest.mark.parametrize("text", ["20%ms", "20%gflops", "20%weights"])
def test_a_share_of_what_is_no_quantity_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BudgetError, match=f"{text}' is a share of no known quantity; write .* 20%params or 50%latency"):
        Budget.parse(text)


def test_a_share_and_a_count_of_one_quantity_are_two_limits_on_it() -> None:
    with pytest.raises(BudgetError, match="budgets 20%params and 1mparams both limit params"):
        parse_budgets(["20%params", "50%", "1mparams"])
    assert len(parse_budgets(["20%params", "50%", "50%latency"])) == 3
