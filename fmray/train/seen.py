"""From what workers left while they trained to what the checkpoint says of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmray.core.errors import ConfigError
from fmray.model.watched import Curve, Watched
from fmray.train.config import PretrainConfig
from fmray.train.profiling import PROFILE, read_operators
from fmray.train.ranks import RANKS, read_ranks

POINTS = 200
# In the report beside the loss. A curve of an evaluation has a point an evaluation; the others are thinned.
CURVES = ("eval_loss", "lr", "grad_norm", "tokens_per_s")


def check_profile(config: PretrainConfig, n_steps: int, where: str) -> None:
    """Refuses a window of which no step is one of the run's.

    Raises:
        ConfigError: it begins behind the last.
    """
    if config.profile is not None and config.profile.from_step > n_steps:
        raise ConfigError(f"begins at step {config.profile.from_step} of a run of {n_steps}", where=f"{where}.profile.from_step", todo="lower it")


def seen(lines: Sequence[Mapping[str, Any]], work: Path, notes: Sequence[str]) -> Watched:
    """What a run's lines and the files in its work folder tell, and `notes` of what went wrong beside it."""
    curves = {name: curve(lines, name) for name in CURVES}
    return Watched(
        curves={name: points for name, points in curves.items() if points}, ranks=read_ranks(work / RANKS, lines[-1]["num_workers"]),
        operators=read_operators(work / PROFILE), notes=(*notes, *(str(line["note"]) for line in lines if "note" in line)),
    )  # fmt: skip


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """A figure over the steps in at most `POINTS` points: each is the mean over the steps since the point before it."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    size = max(1, -(-len(found) // POINTS))
    chunks = [found[start : start + size] for start in range(0, len(found), size)]
    return tuple((chunk[-1][0], float(f"{sum(value for _, value in chunk) / len(chunk):.6g}")) for chunk in chunks)


def figures_seen(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last held-out loss, how long evaluations took, and energy and price of this run by what is declared of its device."""
    losses = [line["eval_loss"] for line in lines if line.get("eval_loss") is not None]
    found = {"train/eval_loss": losses[-1], "perf/eval_s": sum(line.get("eval_s", 0.0) for line in lines)} if losses else {}
    last = lines[-1]
    spent = {"cost/energy_kwh": last.get("energy_kwh"), "cost/price_usd": last.get("cost_usd")}
    return found | {name: value for name, value in spent.items() if value is not None}
