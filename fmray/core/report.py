"""What is measured and what is decided: metrics, findings, costs, reports and decisions."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fmray.core.artifact import Payload

Method = Literal["measured", "estimated", "declared"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(_Frozen):
    """One figure with how it was obtained. `value` None means unknown, and `note` says why.

    `lower` and `upper` bound the 95 % interval; `control` is the same figure on a control (an untrained twin, a canary
    that was never planted); `n` counts the independent units behind it.
    """

    name: str
    value: float | None
    higher_is_better: bool | None = None
    stderr: float | None = None
    lower: float | None = None
    upper: float | None = None
    n: int | None = None
    unit: str = ""
    method: Method = "measured"
    control: float | None = None
    note: str = ""


class Finding(_Frozen):
    """Something that a reader should know before the model is used."""

    title: str
    severity: Literal["info", "low", "medium", "high"]
    detail: str


class Cost(_Frozen):
    """What a model cost. None means unknown; `notes` says how each figure was obtained."""

    flops: float | None = None
    device_hours: float | None = None
    energy_kwh: float | None = None
    price_usd: float | None = None
    notes: str = ""


class Report(Payload, kind="report"):
    """Metrics and findings about one checkpoint. `examples` names the per-example file inside the artifact."""

    subject: str
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...] = ()
    examples: str | None = None


class Reason(_Frozen):
    """One rule of a gate with what was observed."""

    rule: str
    observed: float | None
    limit: float | None
    passed: bool
    note: str = ""


class Decision(Payload, kind="decision"):
    """A gate's verdict about one checkpoint: `subject` is its fingerprint, `subject_digest` the digest of its files."""

    subject: str
    subject_digest: str
    admitted: bool
    reasons: tuple[Reason, ...]
    waived_by: str | None = None
    waiver_reason: str | None = None
