"""The surrogate learns from few trials what groups share, and from more what single groups are worth."""

import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from search.searchers import surrogate
from search.searchers.structure import Structure
from search.searchers.surrogate import Networks, Surrogate

GROUPS = 12
TILT = np.linspace(-1, 1, GROUPS) / np.sqrt((np.linspace(-1, 1, GROUPS) ** 2).mean())
STRUCTURE = Structure(("tilt",), TILT[:, None])


def networks_of(
    log2_ratios: np.ndarray, cost: np.ndarray | None = None, method: int = 0, training: float = 0.0
) -> Networks:
    count = len(log2_ratios)
    costs = log2_ratios.mean(axis=1) + 1.0 if cost is None else cost
    return Networks(log2_ratios, costs, np.full(count, method), np.full(count, training))


def drawn(count: int, seed: int) -> Networks:
    return networks_of(np.random.default_rng(seed).uniform(-2, 0, (count, GROUPS)))


def concatenated(*parts: Networks) -> Networks:
    return Networks(
        np.concatenate([part.log2_ratios for part in parts]),
        np.concatenate([part.cost for part in parts]),
        np.concatenate([part.method for part in parts]),
        np.concatenate([part.training for part in parts]),
    )


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left.argsort().argsort(), right.argsort().argsort())[0, 1])


def test_a_tilt_is_learned_from_fewer_trials_than_there_are_groups() -> None:
    worth = 1 + 0.8 * TILT
    told, asked = drawn(8, 0), drawn(60, 1)
    model = Surrogate(STRUCTURE, 1, told, told.log2_ratios @ worth / GROUPS)
    without = Surrogate(Structure((), np.zeros((GROUPS, 0))), 1, told, told.log2_ratios @ worth / GROUPS)
    truth = asked.log2_ratios @ worth / GROUPS
    assert rank_correlation(model.predict(asked)[0], truth) > 0.85
    assert rank_correlation(model.predict(asked)[0], truth) > rank_correlation(without.predict(asked)[0], truth)


def test_single_groups_are_told_apart_as_evidence_adds_up() -> None:
    worth = np.where(np.arange(GROUPS) == 5, 6.0, 0.5)  # along no structure
    asked = drawn(60, 1)
    errors = []
    for count in (6, 60):
        told = drawn(count, 0)
        mean, _ = Surrogate(STRUCTURE, 1, told, told.log2_ratios @ worth / GROUPS).predict(asked)
        errors.append(float(np.abs(mean - asked.log2_ratios @ worth / GROUPS).mean()))
    assert errors[1] < 0.2 * errors[0]


def test_uncertainty_is_small_where_it_was_measured_and_falls_with_pending_trials() -> None:
    told, far = drawn(10, 0), networks_of(np.random.default_rng(3).uniform(-3, 0, (1, GROUPS)))
    levels = told.log2_ratios.mean(axis=1)
    model = Surrogate(STRUCTURE, 1, told, levels)
    assert model.predict(told)[1].max() < model.predict(far)[1][0]
    waiting = Surrogate(STRUCTURE, 1, told, levels, far)
    assert waiting.predict(far)[1][0] < 0.5 * model.predict(far)[1][0]
    assert waiting.predict(far)[0] == pytest.approx(model.predict(far)[0], abs=0.02)


def test_the_gradient_is_the_derivative_of_the_mean() -> None:
    told = drawn(30, 0)
    model = Surrogate(STRUCTURE, 1, told, np.sin(told.log2_ratios).sum(axis=1) / GROUPS)
    at = drawn(1, 4)
    gradient = model.gradient(model.mean[None], at)[0]
    for group in (0, 5, 11):
        log2_ratios = at.log2_ratios.copy()
        log2_ratios[0, group] += 1e-4
        moved = networks_of(log2_ratios, at.cost)
        grown = model.predict(moved)[0] - model.predict(at)[0]
        assert gradient[group] == pytest.approx(grown[0] / 1e-4, rel=1e-2)


def test_partly_trained_networks_do_not_pass_for_bad_ones() -> None:
    full = drawn(20, 0)
    cut = networks_of(full.log2_ratios, training=-2.0)
    levels = full.log2_ratios.mean(axis=1)
    told = concatenated(full, cut)
    model = Surrogate(STRUCTURE, 1, told, np.concatenate([levels, levels - 0.4]))
    asked = drawn(20, 5)
    assert model.predict(asked)[0] == pytest.approx(asked.log2_ratios.mean(axis=1), abs=0.1)


def test_the_better_method_is_known_by_its_trials() -> None:
    one, two = networks_of(drawn(10, 0).log2_ratios, method=0), networks_of(drawn(10, 1).log2_ratios, method=1)
    told = concatenated(one, two)
    levels = told.log2_ratios.mean(axis=1) + 0.3 * told.method
    model = Surrogate(STRUCTURE, 2, told, levels)
    assert model.best_method(drawn(5, 2), 2) == 1
    assert model.best_method(drawn(5, 2), 1) == 0


def test_one_trial_is_enough_to_ask() -> None:
    mean, deviation = Surrogate(STRUCTURE, 1, drawn(1, 0), np.array([0.9])).predict(drawn(3, 1))
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()


@pytest.mark.parametrize("count", [10, 60, 120])
def test_prior_and_noise_are_the_most_likely_of_the_grid_whichever_matrix_is_the_smaller(count: int) -> None:
    """The model has 46 features of 12 groups; the likelihood is computed by scipy from the covariance of the values."""
    random, told = np.random.default_rng(count), drawn(count, count)
    y = told.log2_ratios @ (1 + 0.8 * TILT) / GROUPS + random.normal(0, 0.05, count)
    y = (y - y.mean()) / y.std()
    parts = Surrogate(STRUCTURE, 1, told, y)._parts(told)
    likelihoods = {}
    for structural, single in itertools.product(surrogate.STRUCTURAL, surrogate.SINGLE):
        if single > structural:
            continue
        scales = (2.0, 1.0, 2.0, structural, 1.0, structural / 2, single, 0.3, 1.0)
        covariance = sum(scale**2 * part @ part.T for scale, part in zip(scales, parts, strict=True))
        for noise in surrogate.NOISE_STD:
            law = multivariate_normal(np.zeros(count), covariance + noise**2 * np.eye(count))
            likelihoods[surrogate.Deviations(scales, noise)] = law.logpdf(y)
    assert surrogate._maximum_likelihood(parts, y) == max(likelihoods, key=likelihoods.__getitem__)
