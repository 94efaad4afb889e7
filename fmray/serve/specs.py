"""What replicas must know of admitted models."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmray.core.artifact import Record
from fmray.core.config import did_you_mean
from fmray.core.errors import ArtifactError, ConfigError
from fmray.model.adapter import ADAPTER, adapter_digest, read_adapter, require_fit
from fmray.model.checkpoint import Checkpoint
from fmray.serve.admission import Admission
from fmray.serve.deployment import ModelSpec


def specs_of(admissions: Sequence[Admission], names: Sequence[str], adapters: Mapping[str, str] | None = None) -> tuple[ModelSpec, ...]:
    """What replicas must know of admitted models.

    Args:
        adapters: the base of each model that is served as an adapter, by name.

    Raises:
        ArtifactError: an adapter is not the one that was admitted, or not of that base.
        ConfigError: no model, or two under one name, or an adapter's name or base is none of them.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice or not names:
        raise ConfigError(f"two models are named '{twice[0]}'" if twice else "there is no model to serve", where="models", todo="name each model once")
    specs = {name: _spec(admission, name) for admission, name in zip(admissions, names, strict=True)}
    for name, base in (adapters or {}).items():
        for one in (name, base):
            if one not in specs:
                raise ConfigError(f"there is no model '{one}'{did_you_mean(one, specs)}", where=f"adapters.{name}", todo=f"served: {', '.join(specs)}")
        _require_adapter(specs[name], specs[base], base_is_adapter=base in (adapters or {}))
        specs[name] = dataclasses.replace(specs[name], base=base)
    return tuple(specs.values())


def _require_adapter(tuned: ModelSpec, base: ModelSpec, *, base_is_adapter: bool) -> None:
    """Holds a model that is to be served as an adapter to the record by which it was admitted: the gate judged the sum of that
    base and that adapter."""
    where = f"adapters.{tuned.name}"
    if base_is_adapter or base.head != "causal_lm":
        what = f"'{base.name}' is an adapter itself" if base_is_adapter else f"'{base.name}' has a {base.head} head, and adapters are shared by causal models"
        raise ConfigError(what, where=where, todo="name the model with the weights")
    record = tuned.card["record"]
    payload = Checkpoint.model_validate(record["payload"]) if record is not None and record["kind"] == Checkpoint.kind else None
    if payload is None or payload.adapter_digest is None:
        todo = "give a checkpoint that finetune made with method lora, or import the adapter with its base"
        raise ArtifactError("keeps no unmerged adapter", where=tuned.path, todo=todo)
    if base.fingerprint is None or payload.parent != base.fingerprint:
        raise ArtifactError(f"was not tuned on '{base.name}'", where=tuned.path, todo="name the base that its record calls its parent")
    folder = Path(tuned.path) / ADAPTER
    adapter = read_adapter(folder)
    if adapter_digest(folder) != payload.adapter_digest:
        raise ArtifactError("is not the adapter that was admitted: its files changed since", where=str(folder), todo="tune it again")
    require_fit(adapter, Path(base.path))


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
