"""The cost audit: exact arithmetic on what was measured and declared, and None with the reason for the rest."""

from pathlib import Path

import pytest

from fmray.audit.base import Subject
from fmray.audit.cost import CostAudit
from fmray.core.report import Cost, Metric
from fmray.model.checkpoint import Checkpoint
from tests.train.tiny import commit

RATES = {"device_power_w": 500.0, "pue": 1.2, "usd_per_device_hour": 3.0, "kg_co2e_per_kwh": 0.25}
SPENT = Cost(flops=7e12, device_hours=4.0, notes="formula of the architecture")


def audited(tmp_path: Path, cost: Cost | None, **rates: float) -> tuple[dict[str, Metric], str]:
    payload = Checkpoint(
        head="causal_lm", architecture="llama", digest="d" * 64, n_params=1000, vocab_size=2, tokens_seen=10**9, cost=cost, parent="p" * 64
    )
    result = CostAudit(**rates).run(Subject(commit(tmp_path / "base", payload, "base"), None, "cpu", 1))
    return {m.name.removeprefix("audit/cost/"): m for m in result.metrics}, result.findings[0].detail


def test_declared_rates_give_energy_price_and_emissions(tmp_path: Path) -> None:
    figures, detail = audited(tmp_path, SPENT, **RATES)
    assert {name: metric.value for name, metric in figures.items()} == pytest.approx(
        {"flops": 7e12, "device_hours": 4.0, "energy_kwh": 2.4, "price_usd": 12.0, "emissions_kg": 0.6}
    )
    assert {name: metric.method for name, metric in figures.items()} == {
        "flops": "estimated", "device_hours": "measured", "energy_kwh": "estimated", "price_usd": "estimated", "emissions_kg": "estimated",
    }  # fmt: skip
    assert figures["flops"].control == 6 * 1000 * 10**9
    assert "device_power_w 500" in figures["energy_kwh"].note
    assert "started from is not counted" in detail
    assert "Not known" not in detail


@pytest.mark.parametrize(("left_out", "unknown"), [
    ("device_power_w", {"energy_kwh", "emissions_kg"}), ("pue", {"energy_kwh", "emissions_kg"}), ("usd_per_device_hour", {"price_usd"}), ("kg_co2e_per_kwh", {"emissions_kg"}),
])  # fmt: skip
def test_a_rate_that_is_not_declared_leaves_its_figures_unknown(tmp_path: Path, left_out: str, unknown: set[str]) -> None:
    figures, detail = audited(tmp_path, SPENT, **{name: rate for name, rate in RATES.items() if name != left_out})
    assert {name for name, metric in figures.items() if metric.value is None} == unknown
    assert all("not known" in figures[name].note for name in unknown)
    assert any(f"{left_out} not declared" in figures[name].note for name in unknown)
    assert "Not known" in detail


def test_a_model_from_elsewhere_has_no_account(tmp_path: Path) -> None:
    figures, _ = audited(tmp_path, None, **RATES)
    assert all(metric.value is None and metric.note for metric in figures.values())
    assert figures["flops"].control is None
