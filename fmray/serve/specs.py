"""What replicas must know of admitted models."""

from collections.abc import Sequence
from typing import Any

from fmray.core.artifact import Record
from fmray.core.errors import ConfigError
from fmray.serve.admission import Admission
from fmray.serve.deployment import ModelSpec


def specs_of(admissions: Sequence[Admission], names: Sequence[str]) -> tuple[ModelSpec, ...]:
    """What replicas must know of admitted models.

    Raises:
        ConfigError: no model, or two under one name.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice or not names:
        raise ConfigError(f"two models are named '{twice[0]}'" if twice else "there is no model to serve", where="models", todo="name each model once")
    return tuple(_spec(admission, name) for admission, name in zip(admissions, names, strict=True))


def _spec(admission: Admission, name: str) -> ModelSpec:
    record, decision = admission.record, admission.decision
    return ModelSpec(
        name=name,
        path=str(admission.path.resolve()),
        head=admission.head,
        fingerprint=record.fingerprint if record is not None else None,
        digest=admission.digest,
        card={
            "record": _public(record) if record is not None else None,
            "decision": _public(decision.record) if decision is not None else None,
            "waiver": {"by": admission.waiver.by, "reason": admission.waiver.reason} if admission.waiver is not None else None,
        },
    )


def _public(record: Record) -> dict[str, Any]:
    """A record without what concerns the machine that made it (arguments, host, devices) rather than the model."""
    shown = record.model_dump(mode="json", exclude={"provenance", "config"})
    return shown | {"provenance": record.provenance.model_dump(mode="json", include={"git_commit", "versions", "started_at"})}
