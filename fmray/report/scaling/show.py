"""What `fmray scaling` says: the law with its intervals, the best sizes for budgets, and what a target loss would cost."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fmray.core.errors import ConfigError
from fmray.report.figures import count, number
from fmray.report.scaling.fit import Fit
from fmray.report.scaling.law import Law
from fmray.report.scaling.runs import Runs


@dataclass(frozen=True)
class Rates:
    """What a device does and costs, as the operator declares: FLOP/s that training reaches on it (not its peak), dollars an hour."""

    flops_per_device_s: float | None = None
    usd_per_device_hour: float | None = None

    def __post_init__(self) -> None:
        """Refuses a price without a speed.

        Raises:
            ConfigError: hours follow from the speed alone.
        """
        if self.usd_per_device_hour is not None and self.flops_per_device_s is None:
            raise ConfigError("needs --flops-per-device-s: FLOP/s that training reaches on a device", where="--usd-per-device-hour")

    def hours(self, flops: float) -> float | None:
        """Device hours of so many FLOPs; None without a declared speed."""
        return None if self.flops_per_device_s is None else flops / self.flops_per_device_s / 3600

    def usd(self, flops: float) -> float | None:
        """The price; None without a declared one."""
        hours = self.hours(flops)
        return None if hours is None or self.usd_per_device_hour is None else hours * self.usd_per_device_hour


def summary(found: Runs, made: Fit, budgets: Sequence[float], targets: Sequence[float], rates: Rates) -> dict[str, Any]:
    """Everything as plain values; each interval is a pair, 95 %."""
    law, runs = made.law, made.runs
    parameters = {name: {"value": getattr(law, name), "interval": made.interval(operator.attrgetter(name))} for name in ("E", "A", "alpha", "B", "beta")}
    return {
        "runs": [asdict(run) for run in runs],
        "loss": found.loss,
        "notes": list(found.notes),
        "law": parameters,
        "exponent_of_n": {"value": _exponent(law), "interval": made.interval(_exponent)},
        "objective": made.objective,
        "residual": made.residual,
        "resamples": len(made.draws),
        "budgets": [_optimal(made, flops, rates) for flops in budgets or default_budgets(made)],
        "targets": [_target(made, loss, rates) for loss in targets],
    }


def default_budgets(made: Fit) -> list[float]:
    """The largest run's FLOPs, ten and a hundred times as many."""
    most = max(run.flops for run in made.runs)
    return [most, 10 * most, 100 * most]


def _exponent(law: Law) -> float:
    """Of C in the optimal N."""
    return law.beta / (law.alpha + law.beta)


def _optimal(made: Fit, flops: float, rates: Rates) -> dict[str, Any]:
    n_params, tokens = made.law.optimum(flops)
    return {
        "flops": flops,
        "n_params": n_params, "n_params_interval": made.interval(lambda law: law.optimum(flops)[0]),
        "tokens": tokens, "tokens_interval": made.interval(lambda law: law.optimum(flops)[1]),
        "loss": made.law.loss(n_params, tokens), "loss_interval": made.interval(lambda law: law.loss(*law.optimum(flops))),
        "times_largest_run": flops / max(run.flops for run in made.runs),
        "device_hours": rates.hours(flops), "usd": rates.usd(flops),
    }  # fmt: skip


def _target(made: Fit, loss: float, rates: Rates) -> dict[str, Any]:
    def budget(law: Law) -> float:
        return law.budget(loss) if loss > law.E else float("inf")

    low, high = made.interval(budget)
    # JSON knows no infinity: None says that by some resamples the loss is out of reach.
    return _optimal(made, made.law.budget(loss), rates) | {"target_loss": loss, "flops_interval": (low, high if high < float("inf") else None)}


def show(said: dict[str, Any]) -> RenderableType:
    """The summary as the terminal shows it."""
    law = _table("L(N, D) = E + A / N^alpha + B / D^beta", "value", "95 % interval")
    for name, figure in [*said["law"].items(), ("N grows as C to the", said["exponent_of_n"])]:
        law.add_row(name, number(figure["value"]), _between(figure["interval"], number))
    runs = said["runs"]
    head = f"{len(runs)} runs, {count(min(r['n_params'] for r in runs))} to {count(max(r['n_params'] for r in runs))} parameters, {count(min(r['tokens'] for r in runs))} to {count(max(r['tokens'] for r in runs))} tokens; {said['loss']}"
    parts: list[RenderableType] = [Text(head), *(Text(f"note: {note}") for note in said["notes"]), Text(), law]
    parts.append(Text(f"the runs lie {said['residual']:.2%} from it (root mean square); intervals from {said['resamples']} resamples of the runs"))
    parts += [Text(), _plans("best use of a budget", said["budgets"])]
    if said["targets"]:
        parts += [Text(), _plans("cheapest way to a loss", said["targets"])]
    return Group(*parts)


def _plans(title: str, plans: Sequence[dict[str, Any]]) -> Table:
    """A column a plan, so that a narrow terminal shows it whole."""
    table = _table(title, *(f"loss {plan['target_loss']:g}" if "target_loss" in plan else f"{number(plan['flops'])} FLOPs" for plan in plans))
    if "target_loss" in plans[0]:
        table.add_row("FLOPs", *(number(plan["flops"]) for plan in plans))
        table.add_row("", *(_between(plan["flops_interval"], number) for plan in plans))
    table.add_row("times the largest run", *(number(plan["times_largest_run"]) for plan in plans))
    figures: list[tuple[str, str, Callable[[float], str]]] = [("parameters", "n_params", count), ("tokens", "tokens", count), ("loss", "loss", number)]
    for label, name, shown in figures:
        table.add_row(label, *(shown(plan[name]) for plan in plans))
        table.add_row("", *(_between(plan[f"{name}_interval"], shown) for plan in plans))
    for label, name, unit in (("device hours", "device_hours", ""), ("price", "usd", "usd")):
        if plans[0][name] is not None:
            table.add_row(label, *(number(plan[name], unit) for plan in plans))
    return table


def _between(interval: Sequence[float | None], shown: Callable[[float], str]) -> str:
    low, high = ("out of reach" if value is None else shown(value) for value in interval)
    return f"[{low}, {high}]"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for at, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=at == 0)
    return table
