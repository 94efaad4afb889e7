"""The bootstrap intervals: known widths, the right unit, the same figure twice."""

import math

import numpy as np
import pytest

from fmray.core.intervals import crossed_mean, difference, mean, ratio, statistic

GENERATOR = np.random.default_rng(5)
VALUES = GENERATOR.normal(3.0, 2.0, size=400)


def test_the_interval_of_a_mean_is_that_of_the_normal_theory() -> None:
    found, stderr = mean(VALUES), VALUES.std(ddof=1) / math.sqrt(len(VALUES))
    assert found.value == pytest.approx(VALUES.mean())
    assert found.stderr == pytest.approx(stderr, rel=0.1)
    assert (found.lower, found.upper) == pytest.approx((found.value - 1.96 * stderr, found.value + 1.96 * stderr), abs=0.3 * stderr)
    assert found.n == 400


def test_it_is_the_same_twice_and_covers_about_as_often_as_it_says() -> None:
    assert mean(VALUES) == mean(VALUES)
    draws = np.random.default_rng(1).normal(size=(200, 60))
    covered = sum(found.lower <= 0 <= found.upper for found in (mean(row) for row in draws))
    assert 0.88 <= covered / len(draws) <= 0.99


def test_a_ratio_weighs_units_by_their_size() -> None:
    sizes = GENERATOR.integers(1, 50, size=300).astype(float)
    found = ratio(2.0 * sizes + GENERATOR.normal(size=300), sizes)
    assert found.value == pytest.approx(2.0, abs=0.01)
    assert found.lower < 2.0 < found.upper
    assert ratio(3.0 * sizes, sizes).stderr == pytest.approx(0.0, abs=1e-12)


def test_a_difference_adds_the_variances_of_both_groups() -> None:
    left, right = VALUES[:200], VALUES[200:] - 1.0
    found = difference(left, right)
    assert found.value == pytest.approx(left.mean() - right.mean())
    assert found.stderr == pytest.approx(math.hypot(mean(left).stderr, mean(right).stderr), rel=0.1)


def test_shared_factors_widen_the_interval() -> None:
    generator = np.random.default_rng(2)
    rows, columns = np.repeat(np.arange(12), 20), np.tile(np.arange(20), 12)
    alone = generator.normal(size=240)
    shared = generator.normal(size=12)[rows] + generator.normal(size=20)[columns] + 0.1 * alone
    assert crossed_mean(shared, rows, columns).stderr > 2.5 * mean(shared).stderr
    expected = math.sqrt(1 / 12 + 1 / 20)
    assert crossed_mean(shared, rows, columns).stderr == pytest.approx(expected, rel=0.35)
    # Without shared factors it is too wide rather than too narrow (Owen 2007).
    assert mean(alone).stderr < crossed_mean(alone, rows, columns).stderr < 2.5 * mean(alone).stderr


def test_labels_of_any_kind_name_the_factors() -> None:
    rows, columns = np.repeat(["a", "b", "c"], 4), np.tile(["w", "x", "y", "z"], 3)
    numbers = np.arange(12.0)
    by_number = crossed_mean(numbers, np.repeat([0, 1, 2], 4), np.tile([0, 1, 2, 3], 3))
    assert crossed_mean(numbers, rows, columns) == by_number


def test_an_increasing_function_moves_value_and_bounds() -> None:
    found = mean(VALUES)
    moved = found.map(math.exp)
    assert (moved.value, moved.lower, moved.upper) == pytest.approx((math.exp(found.value), math.exp(found.lower), math.exp(found.upper)))
    assert moved.stderr == pytest.approx(found.stderr * moved.value, rel=0.1)


def test_any_statistic_of_weighted_units() -> None:
    found = statistic(lambda weights: (weights @ VALUES) / weights.sum(axis=1), len(VALUES))
    assert found == mean(VALUES)


def test_units_that_do_not_fit_at_once_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean(VALUES)
    monkeypatch.setattr("fmray.core.intervals._CELLS", 50 * len(VALUES))
    blocked = mean(VALUES)
    assert (blocked.stderr, blocked.lower, blocked.upper) == pytest.approx((whole.stderr, whole.lower, whole.upper), rel=1e-9)
