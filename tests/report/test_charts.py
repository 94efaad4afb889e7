"""Axes and charts: everything drawn lies where its value is, and unknown values are not drawn."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmray.report.charts import Axis, Row, Series, axis_for, plot, rows_chart
from fmray.report.markup import el

finite = st.floats(-1e9, 1e9)


@given(st.lists(finite, min_size=1), st.booleans())
@example([5e-324], False)
def test_an_axis_holds_all_its_values(values: list[float], zero: bool) -> None:
    axis = axis_for(values, zero=zero)
    assert all(0 <= axis.at(v) <= 1 for v in values)
    assert axis.low < axis.high
    assert axis.low <= min(values) <= max(values) <= axis.high
    if zero:
        assert axis.low <= 0 <= axis.high or axis.log


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.booleans())
def test_ticks_are_few_round_and_inside(low: float, ratio: float, log: bool) -> None:
    axis = Axis(low, low * ratio, log)
    ticks = axis.ticks()
    assert len(ticks) <= 14
    assert ticks == sorted(set(ticks))
    assert all(low * 0.99 <= tick <= low * ratio * 1.01 for tick in ticks)
    if not log:
        assert len(ticks) >= 2


def test_a_wide_span_of_positive_values_is_logarithmic_by_itself() -> None:
    assert axis_for([1e-5, 1e-1]).log
    assert not axis_for([1.0, 10.0]).log
    assert not axis_for([-1e-5, 1e-1]).log
    axis = axis_for([1e-4, 1e-2], log=True)
    assert axis.at(1e-3) == pytest.approx(0.5)
    assert axis.ticks() == pytest.approx([1e-4, 1e-3, 1e-2])


def test_a_single_value_stands_in_the_middle() -> None:
    assert axis_for([3.0]).at(3.0) == pytest.approx(0.5)


def test_a_plot_draws_its_points_where_they_are() -> None:
    page = plot([Series("a", [(0.0, 0.0), (10.0, 5.0)])], title="t", x_label="x", y_label="y", height=100, x_axis=Axis(0, 10), y_axis=Axis(0, 5))
    assert 'points="0.0,100.0 1000.0,0.0"' in page
    assert 'cx="0.00%" cy="100.0"' in page
    assert 'cx="100.00%" cy="0.0"' in page
    assert '<ul class="legend">' not in page


def test_several_series_are_told_apart_by_name_and_not_only_by_colour() -> None:
    page = plot([Series("one", [(0.0, 1.0), (1.0, 2.0)], "s1"), Series("two", [(0.0, 2.0), (1.0, 1.0)], "s2")], title="t", x_label="x", y_label="y")
    assert page.count("<li>") == 2
    assert "one: 0, 1" in page


def test_a_point_that_is_no_number_is_left_out() -> None:
    page = plot([Series("a", [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0)])], title="t", x_label="x", y_label="y")
    assert "nan" not in page
    assert page.count("<circle") == 2


def test_rows_share_one_axis_and_show_interval_and_control() -> None:
    rows = [Row(el("b", "one"), 2.0, "2", lower=1.0, upper=3.0, control=0.5), Row(el("b", "two"), None, "unknown")]
    page = rows_chart(rows, title="t", unit="bit", bars=False)
    assert page.count('class="row"') == 2
    assert page.count("<circle") == 1
    assert page.count('class="control"') == 1
    assert page.count('class="interval"') == 3
    assert "2, from 1, to 3, control 0.5" in page


def test_bars_begin_at_zero() -> None:
    page = rows_chart([Row(el("b", "a"), 4.0, "4"), Row(el("b", "b"), -2.0, "-2")], title="t", unit="", bars=True)
    (left, width), (left_b, width_b) = [(float(a), float(b)) for a, b in re.findall(r'<rect x="([\d.]+)%" y="5" width="([\d.]+)%"', page)]
    assert left == pytest.approx(left_b + width_b)
    assert width == pytest.approx(2 * width_b, rel=1e-3)


def test_rows_without_any_known_value_are_drawn_all_the_same() -> None:
    assert "unknown" in rows_chart([Row(el("b", "a"), None, "unknown", note="no rate was declared")], title="t", unit="", bars=False)


def test_numbers_too_small_for_a_logarithm_are_drawn_all_the_same() -> None:
    axis = axis_for([5e-324, 1.0])
    assert not axis.log
    assert axis.at(5e-324) < axis.at(1.0)
