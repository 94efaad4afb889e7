"""The gate: rules over the metrics of reports about one checkpoint give an admitting or a refusing Decision.

A rule is `<expr> <op> <expr>`: an expr is a number, a metric key such as `eval/bits_per_byte`, or `lower(m)`, `upper(m)`,
`control(m)` of one; an op is `<`, `<=`, `>`, `>=` or `==`. What is not known never passes, nor what is not finite.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from fmray.core.artifact import Artifact
from fmray.core.config import Config
from fmray.core.errors import ArtifactError
from fmray.core.experiment import OnRefusal
from fmray.core.report import Decision, Metric, Reason, Report
from fmray.core.stage import Out, stage
from fmray.model.checkpoint import Checkpoint

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
FUNCTIONS = ("lower", "upper", "control")
# Canaries planted so often are there to show that the audit sees memorisation at all: a model is meant to fail on them.
POSITIVE_LEVEL = 64
GRAMMAR = "write `<expr> <op> <expr>` with numbers, metric keys or lower(m), upper(m), control(m), and one of < <= > >= =="

_COMPARISON = re.compile(r"<=|>=|==|[<>]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_METRIC = re.compile(r"[A-Za-z][\w.-]*(/[\w.@:-]+)+")
_EXPOSURE = re.compile(r"audit/privacy/(?:excess_)?exposure_x(\d+)")
_CALL = re.compile(r"(\w+)\s*\(\s*([^()]*?)\s*\)")


@dataclass(frozen=True)
class Term:
    """One side of a rule: a number, or a metric read plainly (`function` is empty) or through one of FUNCTIONS."""

    metric: str | None = None
    function: str = ""
    number: float = math.nan

    def read(self, metrics: Mapping[str, Metric]) -> tuple[float | None, str]:
        """The value of this side, or None and why it is not known."""
        if self.metric is None:
            return self.number, ""
        metric = metrics.get(self.metric)
        if metric is None:
            return None, f"{self.metric} was not measured in the reports given"
        value = metric.value if not self.function else getattr(metric, self.function)
        if value is None or not math.isfinite(value):
            said = f" ({metric.note})" if metric.note else ""
            return None, f"{self} is not known{said}"
        return value, ""

    def __str__(self) -> str:
        if self.metric is None:
            return f"{self.number:g}"
        return f"{self.function}({self.metric})" if self.function else self.metric


@dataclass(frozen=True)
class Rule:
    """A parsed rule; `text` is what was written."""

    left: Term
    op: str
    right: Term
    text: str

    def judge(self, metrics: Mapping[str, Metric]) -> Reason:
        """The rule held against the metrics: what is missing, None or NaN fails with the reason."""
        observed, why_left = self.left.read(metrics)
        limit, why_right = self.right.read(metrics)
        if observed is None or limit is None:
            note = "; ".join(why for why in (why_left, why_right) if why)
            return Reason(rule=self.text, observed=observed, limit=limit, passed=False, note=note)
        return Reason(rule=self.text, observed=observed, limit=limit, passed=OPERATORS[self.op](observed, limit))


def parse_rule(text: str) -> Rule:
    """Parses one rule.

    Raises:
        ValueError: it does not follow the grammar, compares two numbers, or gates on a positive control.
    """
    found = list(_COMPARISON.finditer(text))
    if len(found) != 1:
        raise ValueError(f"rule '{text}' needs exactly one comparison, not {len(found)}; {GRAMMAR}")
    left, right = _parse_term(text[: found[0].start()], text), _parse_term(text[found[0].end() :], text)
    if left.metric is None and right.metric is None:
        raise ValueError(f"rule '{text}' compares two numbers, so no model could change its outcome; name a metric")
    for term in (left, right):
        exposure = _EXPOSURE.fullmatch(term.metric or "")
        if exposure and int(exposure[1]) >= POSITIVE_LEVEL:
            raise ValueError(f"rule '{text}' gates on the positive control {term.metric}, which a sound audit must find high; gate on a lower level")
    return Rule(left, found[0].group(), right, text)


def _parse_term(part: str, rule: str) -> Term:
    text = part.strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"rule '{rule}': {text} is too large a number")
        return Term(number=number)
    if _METRIC.fullmatch(text):
        return Term(metric=text)
    call = _CALL.fullmatch(text)
    if call and call[1] in FUNCTIONS and _METRIC.fullmatch(call[2]):
        return Term(metric=call[2], function=call[1])
    raise ValueError(f"rule '{rule}': '{text}' is neither a number, a metric key nor {', '.join(f'{f}(m)' for f in FUNCTIONS)}; {GRAMMAR}")


def _parsable(text: str) -> str:
    parse_rule(text)
    return text


RuleText = Annotated[str, AfterValidator(_parsable)]
NonBlank = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Waiver(Config):
    """Who lets a checkpoint pass whose rules are not met, and why; both are recorded in the Decision."""

    by: NonBlank
    reason: NonBlank


class GateConfig(Config):
    """Rules that all must hold, an optional waiver, and what to do on a refusal (None: exit 3)."""

    rules: tuple[RuleText, ...] = Field(min_length=1)
    waiver: Waiver | None = None
    on_refusal: OnRefusal | None = None


def plan(config: GateConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """The lines for `fmray check`: the rules, and the waiver when there is one."""
    lines = {"rules": "; ".join(config.rules)}
    if config.waiver is not None:
        lines["waiver"] = f"by {config.waiver.by}: {config.waiver.reason}"
    return lines


@stage("gate", version=1, recompute=True, plan=plan)
def gate(config: GateConfig, checkpoint: Artifact[Checkpoint], out: Out, reports: tuple[Artifact[Report], ...] = ()) -> Decision:
    """Holds the rules against the reports about this checkpoint; a refusal is a Decision too, and without a report only a waiver admits.

    Raises:
        ArtifactError: a report is about another checkpoint, or two reports disagree about a metric.
    """
    for report in reports:
        if report.payload.subject != checkpoint.fingerprint:
            raise ArtifactError(
                f"report {report.name} is about checkpoint {report.payload.subject[:12]}, not {checkpoint.name} ({checkpoint.fingerprint[:12]})",
                where=str(report.path), todo=f"evaluate or audit {checkpoint.name} itself",
            )  # fmt: skip
    metrics = collect(reports)
    reasons = tuple(parse_rule(rule).judge(metrics) for rule in config.rules)
    met = all(reason.passed for reason in reasons)
    waiver = None if met else config.waiver
    out.progress(f"{sum(reason.passed for reason in reasons)} of {len(reasons)} rules hold")
    return Decision(
        subject=checkpoint.fingerprint, subject_digest=checkpoint.payload.digest, admitted=met or waiver is not None, reasons=reasons,
        waived_by=waiver.by if waiver else None, waiver_reason=waiver.reason if waiver else None,
    )  # fmt: skip


def collect(reports: tuple[Artifact[Report], ...]) -> dict[str, Metric]:
    """The metrics of all reports by name.

    Raises:
        ArtifactError: two figures under one name that differ, so that a rule could be read either way.
    """
    metrics: dict[str, Metric] = {}
    source: dict[str, str] = {}
    for report in reports:
        for metric in report.payload.metrics:
            known = metrics.setdefault(metric.name, metric)
            if _figures(known) != _figures(metric):
                raise ArtifactError(
                    f"{metric.name} is {known.value} in {source[metric.name]} and {metric.value} in {report.name}", where=str(report.path),
                    todo="give the gate one report for each metric",
                )  # fmt: skip
            source.setdefault(metric.name, report.name)
    return metrics


def _figures(metric: Metric) -> tuple[str, ...]:
    """What a rule can read of a metric, as text so that NaN equals NaN."""
    return tuple(repr(value) for value in (metric.value, metric.lower, metric.upper, metric.control))
