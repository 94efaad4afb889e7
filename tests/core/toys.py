"""Toy stages that count their runs, for tests of the core alone."""

from collections import Counter
from dataclasses import dataclass

from fmray.core.artifact import Artifact, Payload
from fmray.core.config import Config, runtime
from fmray.core.errors import DataError, RunError
from fmray.core.experiment import OnRefusal
from fmray.core.report import Decision, Metric, Reason, Report
from fmray.core.stage import Out, stage

RUNS: Counter[str] = Counter()


class Grain(Payload, kind="toy_grain"):
    """What the first toy stage makes."""

    amount: int


class Bread(Payload, kind="toy_bread"):
    """What the second toy stage makes."""

    size: int


class GrowConfig(Config):
    """Settings of the toy stage `toy_grow`."""

    amount: int = 1
    fault: str = ""
    workers: int = runtime(1)


class BakeConfig(Config):
    """Settings of the toy stage `toy_bake`."""

    heat: int = 1


class TasteConfig(Config):
    """Settings of the toy stage `toy_taste`."""


class JudgeConfig(Config):
    """Settings of the toy gate."""

    least: int = 1
    on_refusal: OnRefusal | None = None


class EatConfig(Config):
    """Settings of the toy stage `toy_eat`."""


@dataclass(frozen=True)
class Meal:
    """A pair that the core must hold to admission."""

    checkpoint: Artifact[Bread]
    decision: Artifact[Decision]


@stage("toy_grow")
def grow(config: GrowConfig, out: Out) -> Grain:
    """Writes a file, unless told to fail."""
    RUNS["grow"] += 1
    (out.path / "grain.txt").write_text("x" * config.amount)
    if config.fault == "data":
        raise DataError("no rain", where="field")
    if config.fault == "crash":
        raise RunError("the mill broke")
    return Grain(amount=config.amount)


@stage("toy_bake", plan=lambda config, upstream: {"grain": str(upstream["grain"].amount)})
def bake(config: BakeConfig, grain: Artifact[Grain], out: Out, previous: Artifact[Bread] | None = None) -> Bread:
    """Bakes bread; a later round adds to the bread of the round before."""
    RUNS["bake"] += 1
    return Bread(size=grain.payload.amount * config.heat + (previous.payload.size if previous else 0))


@stage("toy_taste", recompute=True)
def taste(config: TasteConfig, checkpoint: Artifact[Bread], out: Out) -> Report:
    """Measures the bread."""
    RUNS["taste"] += 1
    return Report(subject=checkpoint.fingerprint, metrics=(Metric(name="size", value=checkpoint.payload.size),))


@stage("toy_judge", recompute=True)
def judge(config: JudgeConfig, checkpoint: Artifact[Bread], reports: tuple[Artifact[Report], ...], out: Out) -> Decision:
    """Admits bread that is large enough."""
    RUNS["judge"] += 1
    size = reports[0].payload.metrics[0].value or 0.0
    passed = size >= config.least
    reason = Reason(rule=f"size >= {config.least}", observed=size, limit=config.least, passed=passed)
    return Decision(subject=checkpoint.fingerprint, subject_digest="", admitted=passed, reasons=(reason,))


@stage("toy_eat")
def eat(config: EatConfig, meals: tuple[Meal, ...], out: Out) -> Grain:
    """Needs admitted bread."""
    RUNS["eat"] += 1
    return Grain(amount=sum(m.checkpoint.payload.size for m in meals))
