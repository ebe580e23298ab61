import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spaces.cost import Cost, CostModel, Form, PolynomialBuilder

# conv 3 -> a (3x3, 8x8 out), grouped conv a -> b in 4 groups, linear b*4 -> 10, all with their closed forms.
A, B = Form(0, ((0, 1),)), Form(0, ((1, 1),))
FLAT = Form(0, ((1, 4),))


def model(huge: int = 1) -> CostModel:
    flops, params = PolynomialBuilder(2), PolynomialBuilder(2)
    flops.add(huge * 27 * 64, A)
    flops.add(9 * 16, A, B, 4)
    flops.add(10, FLAT)
    params.add(27, A)
    params.add(9, A, B, 4)
    params.add(10, FLAT)
    params.add(1, Form(10))
    return CostModel(["a", "b"], [16, 32], {"flops": flops.build(), "params": params.build()})


def closed_form(a: int, b: int, huge: int = 1) -> Cost:
    return Cost(huge * 27 * 64 * a + 9 * 16 * a * b // 4 + 40 * b, 27 * a + 9 * a * b // 4 + 40 * b + 10)


WIDTHS = st.tuples(st.integers(1, 4).map(lambda x: 4 * x), st.integers(1, 8).map(lambda x: 4 * x))


@given(WIDTHS)
def test_cost_is_the_closed_form(widths: tuple[int, int]) -> None:
    a, b = widths
    assert model()({"a": a, "b": b}) == closed_form(a, b)


def test_a_group_that_is_not_named_has_its_dense_width() -> None:
    assert model()({"a": 8}) == closed_form(8, 32)


@given(st.lists(WIDTHS, min_size=1, max_size=5))
def test_batch_agrees_with_single_costs(widths: list[tuple[int, int]]) -> None:
    flops, params = model().batch(np.array(widths))
    assert [Cost(int(f), int(p)) for f, p in zip(flops, params, strict=True)] == [closed_form(*w) for w in widths]


def test_counts_beyond_float64_stay_exact() -> None:
    huge = 2**50 + 1
    assert model(huge)({"a": 12, "b": 20}) == closed_form(12, 20, huge)
    flops, _ = model(huge).batch(np.array([[4, 8]]))
    assert int(flops[0]) == closed_form(4, 8, huge).flops


@given(WIDTHS)
def test_fixing_a_group_leaves_the_cost_of_the_others(widths: tuple[int, int]) -> None:
    a, b = widths
    fixed = model().fix({"a": a})
    assert fixed.names == ("b",)
    assert fixed({"b": b}) == closed_form(a, b)
