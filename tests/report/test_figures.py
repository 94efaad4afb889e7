"""Figures as people read them."""

import pytest

from fmray.core.report import Metric
from fmray.report.figures import baseline_name, count, duration, interval, number, spell, with_baselines


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "", "unknown"), (0.0, "", "0"), (2.3456, "bit/byte", "2.346 bit/byte"), (1234.5, "", "1,234"), (1.71e13, "FLOP", "1.71×10¹³ FLOP"),
        (2e-5, "", "2×10⁻⁵"), (0.0046, "kWh", "0.0046 kWh"), (1.5, "USD", "$1.5"), (75.0, "s", "1 min 15 s"), (float("nan"), "", "not a number"),
        (float("-inf"), "", "-∞"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, unit: str, shown: str) -> None:
    assert number(value, unit) == shown


@pytest.mark.parametrize(("value", "shown"), [(950, "950"), (9012, "9,012"), (58_600, "58.6 k"), (1_967_808, "1.97 M"), (3.2e9, "3.2 B"), (None, "unknown")])
def test_counts(value: float | None, shown: str) -> None:
    assert count(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.41, "0.4 s"), (12.2, "12 s"), (187, "3 min 07 s"), (59.9, "60 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_names_of_metrics_in_words() -> None:
    assert spell("eval/imdb/macro_f1") == "macro F1"
    assert spell("audit/privacy/exposure_x64") == "exposure ×64"
    assert spell("audit/cost/energy_kwh") == "energy"


def test_an_unknown_figure_says_why() -> None:
    assert interval(Metric(name="audit/cost/price_usd", value=None, note="no price was declared")) == "unknown (no price was declared)"
    assert interval(Metric(name="a", value=2.0, lower=1.5, upper=2.5)) == "2 [1.5, 2.5]"
    assert interval(Metric(name="a", value=2.0, stderr=0.25)) == "2 ± 0.25"


def test_baselines_stand_beside_their_metric_and_a_gain_does_not() -> None:
    names = ["eval/t/macro_f1", "eval/t/tfidf_macro_f1", "eval/t/pretraining_gain_macro_f1", "eval/u/majority_macro_f1", "audit/p/exposure_x1", "audit/p/excess_exposure_x1"]
    pairs = with_baselines([Metric(name=name, value=1.0) for name in names])
    beside = {main.name: [o.name for o in others] for main, others in pairs}
    assert beside["eval/t/macro_f1"] == ["eval/t/tfidf_macro_f1"]
    assert beside["eval/t/pretraining_gain_macro_f1"] == []
    assert not any(name.startswith("audit/") for name in beside)
    main, others = pairs[0]
    assert baseline_name(main, others[0]) == "TF-IDF"
