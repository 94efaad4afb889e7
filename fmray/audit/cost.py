"""What a checkpoint cost: computation, device time, and energy, price and emissions by the rates that the operator declares.

Nothing here meters power: energy is device hours times a declared power. A rate that is not declared leaves its figures unknown.
"""

from typing import Literal

from pydantic import Field

from fmray.audit.base import Audit, Result, Subject
from fmray.core.rates import energy_kwh, product
from fmray.core.report import Finding, Method, Metric


class CostAudit(Audit):
    """FLOPs and device hours from the checkpoint's record; the rest from declared rates.

    Attributes:
        device_power_w: mean power of one device (on a CPU one core) under this load.
        pue: power usage effectiveness of the site: all power over that of the devices; 1 counts the devices alone.
        usd_per_device_hour: price of one device for an hour.
        kg_co2e_per_kwh: emissions of the electricity.
    """

    type: Literal["cost"] = "cost"
    device_power_w: float | None = Field(None, gt=0)
    pue: float | None = Field(None, ge=1)
    usd_per_device_hour: float | None = Field(None, ge=0)
    kg_co2e_per_kwh: float | None = Field(None, ge=0)

    def run(self, subject: Subject) -> Result:
        """Reads the checkpoint's own account; measures nothing anew."""
        payload, record = subject.checkpoint.payload, subject.checkpoint.record
        cost = payload.cost
        elsewhere = f"{subject.checkpoint.name} keeps no account of its cost (stage {record.stage})"
        flops = cost.flops if cost else None
        hours = cost.device_hours if cost else None
        energy = energy_kwh(hours, self.device_power_w, self.pue)
        rule_of_thumb = 6.0 * payload.n_params * payload.tokens_seen or None
        metrics = [
            _metric(
                "flops", flops, "FLOP", "estimated", elsewhere if cost is None else f"{cost.notes or 'by formula'}; control: 6 x parameters x positions trained on",
                rule_of_thumb if flops is not None else None,
            ),
            _metric(
                "device_hours", hours, "h", "measured", elsewhere if cost is None else "devices times the time that they were held; control: wall time of the whole step on one device",
                record.wall_s / 3600 if hours is not None else None,
            ),
            self._rated("energy_kwh", energy, "kWh", hours, device_power_w=self.device_power_w, pue=self.pue),
            self._rated("price_usd", product(hours, self.usd_per_device_hour), "USD", hours, usd_per_device_hour=self.usd_per_device_hour),
            self._rated("emissions_kg", product(energy, self.kg_co2e_per_kwh), "kg CO2e", energy, kg_co2e_per_kwh=self.kg_co2e_per_kwh),
        ]  # fmt: skip
        return Result(metrics, [_finding(metrics, payload.parent)])

    def _rated(self, name: str, value: float | None, unit: str, base: float | None, **rates: float | None) -> Metric:
        """A figure that is a measured amount times declared rates."""
        undeclared = [rate for rate, declared in rates.items() if declared is None]
        if undeclared:
            note = f"not known: {', '.join(undeclared)} not declared"
        elif base is None:
            note = "not known: the amount that the rates apply to is not"
        else:
            note = f"by the declared {', '.join(f'{rate} {declared:g}' for rate, declared in rates.items())}; no control: a product of declared rates"
        return _metric(name, value, unit, "estimated", note, None)


def _metric(name: str, value: float | None, unit: str, method: Method, note: str, control: float | None) -> Metric:
    return Metric(name=f"audit/cost/{name}", value=value, higher_is_better=False, unit=unit, method=method, control=control, note=note)


def _finding(metrics: list[Metric], parent: str | None) -> Finding:
    """What it came to, what is unknown, and what is not counted."""
    known = ", ".join(f"{m.value:.3g} {m.unit}" for m in metrics if m.value is not None) or "nothing is known"
    unknown = [m.name.rsplit("/", 1)[1] for m in metrics if m.value is None]
    missing = f" Not known: {', '.join(unknown)}." if unknown else ""
    before = " What made the model that it started from is not counted." if parent else ""
    return Finding(title="Cost of making this checkpoint", severity="info", detail=f"{known}.{missing}{before}")
