"""The registry of served models: versions by name, the aliases `champion` and `candidate`, and every change of them.

One JSON file in the run's storage, written whole (temporary file, fsync, rename) under a lock, so that a reader sees the
state before a change or after it, and two writers never lose one. Only an `Admission` enters: a checkpoint that its gate
admitted, or one that somebody waived by name.
"""

import contextlib
import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fmray.core.artifact import Artifact, write_json
from fmray.core.config import did_you_mean
from fmray.core.errors import ArtifactError, ConfigError, GateRefused, ResourceError
from fmray.core.lock import hold
from fmray.core.report import Decision
from fmray.model.checkpoint import Head
from fmray.serve.admission import Admission, Waiver

REGISTRY = "registry"
FILE = "registry.json"
LOCK_WAIT_S = 20.0

# `dismiss`: a candidate was rolled back and the champion stayed; `rollback`: the champion gave way to the one before it.
Action = Literal["register", "champion", "candidate", "promote", "dismiss", "rollback"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Version(_Frozen):
    """One checkpoint under a model's name. `path` and `decision` (the artifact that admits it) are relative to the registry."""

    number: int
    fingerprint: str | None
    digest: str
    head: Head
    path: str
    decision: str | None
    waived_by: str | None = None
    waiver_reason: str | None = None
    registered_at: str


class Event(_Frozen):
    """One change: `version` is what it was about, `before` the champion until then, `decision` the artifact that it rests on."""

    at: str
    action: Action
    version: int
    before: int | None = None
    by: str | None = None
    reason: str | None = None
    decision: str | None = None


class Entry(_Frozen):
    """A model: its versions in order, its two aliases, and what happened to it."""

    versions: tuple[Version, ...] = ()
    champion: int | None = None
    candidate: int | None = None
    history: tuple[Event, ...] = ()

    def version(self, number: int) -> Version:
        """The version of this number, which counts from 1."""
        return self.versions[number - 1]

    def previous(self) -> int | None:
        """The champion before the present one, or None."""
        stack: list[int] = []
        for event in self.history:
            if event.action in ("champion", "promote"):
                stack.append(event.version)
            elif event.action == "rollback":
                stack.pop()
        return stack[-2] if len(stack) > 1 else None


class Registry:
    """The registry in one folder; nothing of it is held in memory between calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> dict[str, Entry]:
        """All models by name; none when nothing was ever registered.

        Raises:
            ArtifactError: the file is damaged.
        """
        file = self.folder / FILE
        try:
            plain = json.loads(file.read_bytes())
            return {name: Entry.model_validate(entry) for name, entry in plain["models"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ArtifactError(f"is damaged ({str(error).splitlines()[0]})", where=str(file), todo="move it away, and deploy again") from None

    def entry(self, name: str) -> Entry:
        """One model.

        Raises:
            ConfigError: no such model is registered.
        """
        models = self.read()
        if name not in models:
            known = f"registered: {', '.join(sorted(models))}" if models else "nothing is registered there: run a deploy step, or give --storage"
            raise ConfigError(f"there is no model '{name}'{did_you_mean(name, models)}", where=str(self.folder / FILE), todo=known)
        return models[name]

    def path_of(self, version: Version) -> Path:
        """Where a version's checkpoint lies."""
        return Path(os.path.normpath(self.folder.absolute() / version.path))

    def decision_of(self, version: Version) -> Path | None:
        """Where the decision lies that admits a version; None when it was waived."""
        return None if version.decision is None else Path(os.path.normpath(self.folder.absolute() / version.decision))

    def register(self, name: str, admission: Admission) -> int:
        """The number of a model's version with these very files, new when they were not known. Aliases stay as they are."""
        with self._changing() as models:
            entry = models.get(name, Entry())
            known = next((v for v in entry.versions if v.digest == admission.digest), None)
            decision = admission.decision if admission.waiver is None else None
            version = Version(
                number=known.number if known else len(entry.versions) + 1, digest=admission.digest, head=admission.head,
                fingerprint=admission.record.fingerprint if admission.record else None, path=self._relative(admission.path),
                decision=self._relative(decision.path) if decision else None,
                waived_by=admission.waiver.by if admission.waiver else None,
                waiver_reason=admission.waiver.reason if admission.waiver else None,
                registered_at=known.registered_at if known else _now(),
            )  # fmt: skip
            versions = (*(v for v in entry.versions if v.number != version.number), version)
            event = () if known else (Event(at=_now(), action="register", version=version.number, by=version.waived_by, reason=version.waiver_reason),)
            ordered = tuple(sorted(versions, key=lambda v: v.number))
            models[name] = entry.model_copy(update={"versions": ordered, "history": (*entry.history, *event)})
            return version.number

    def set_champion(self, name: str, number: int) -> None:
        """Makes a version the champion at once, as a deployment without a canary does."""
        with self._changing() as models:
            entry = models[name]
            if entry.champion != number:
                candidate = None if entry.candidate == number else entry.candidate
                models[name] = _changed(entry, "champion", number, champion=number, candidate=candidate)

    def set_candidate(self, name: str, number: int) -> None:
        """Makes a version the candidate beside the champion."""
        with self._changing() as models:
            entry = models[name]
            if entry.candidate != number:
                models[name] = _changed(entry, "candidate", number, candidate=number)

    def promote(self, name: str, *, decision: Artifact[Decision] | None = None, waiver: Waiver | None = None) -> Entry:
        """Makes the candidate the champion, on a canary's admitting decision about it or a recorded waiver.

        Raises:
            ConfigError: no such model, or it has no candidate.
            GateRefused: neither an admitting decision about the candidate nor a waiver.
        """
        self.entry(name)
        with self._changing() as models:
            entry = models[name]
            candidate = self._candidate(name, entry)
            admits = decision is not None and decision.payload.admitted and decision.payload.subject_digest == candidate.digest
            if not admits and waiver is None:
                todo = "wait for its canary to decide, or give --waive REASON --by NAME"
                raise GateRefused(f"no canary has admitted version {candidate.number} of {name}", where=name, todo=todo)
            models[name] = _changed(
                entry, "promote", candidate.number, champion=candidate.number, candidate=None, by=waiver.by if waiver else None,
                reason=waiver.reason if waiver else None, decision=self._relative(decision.path) if decision else None,
            )  # fmt: skip
            return models[name]

    def rollback(
        self, name: str, *, by: str | None = None, reason: str | None = None, decision: Artifact[Decision] | None = None, candidate: int | None = None
    ) -> Entry:
        """Takes the candidate out of traffic, or, where there is none, gives the champion's place back to the one before.

        Args:
            candidate: what must be the candidate now; a canary gives it, so that it never takes back more than it began.

        Raises:
            ConfigError: no such model, or nothing to go back to.
        """
        self.entry(name)
        with self._changing() as models:
            entry = models[name]
            said: dict[str, Any] = {"by": by, "reason": reason, "decision": self._relative(decision.path) if decision else None}
            if candidate is not None and entry.candidate != candidate:
                raise ConfigError(f"version {candidate} is no longer the candidate", where=name)
            if entry.candidate is not None:
                models[name] = _changed(entry, "dismiss", entry.candidate, candidate=None, **said)
                return models[name]
            previous = entry.previous()
            if previous is None or entry.champion is None:
                raise ConfigError("has no candidate, and no champion before the present one", where=name, todo="fmray status shows its versions")
            models[name] = _changed(entry, "rollback", entry.champion, champion=previous, **said)
            return models[name]

    def _candidate(self, name: str, entry: Entry) -> Version:
        if entry.candidate is None:
            raise ConfigError("has no candidate to promote", where=name, todo="deploy one with `canary`, or see fmray status")
        return entry.version(entry.candidate)

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path.resolve(), self.folder.resolve())

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Entry]]:
        """The models, written back when the block ends well; one writer at a time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot be written ({error.strerror})", where=str(self.folder), todo="make the storage writable") from None
        with _patiently(self.folder):
            models = self.read()
            yield models
            write_json(self.folder / FILE, {"models": {name: entry.model_dump(mode="json") for name, entry in sorted(models.items())}})


def _changed(entry: Entry, action: Action, version: int, *, by: str | None = None, reason: str | None = None, decision: str | None = None, **aliases: int | None) -> Entry:
    event = Event(at=_now(), action=action, version=version, before=entry.champion, by=by, reason=reason, decision=decision)
    update: Mapping[str, Any] = {**aliases, "history": (*entry.history, event)}
    return entry.model_copy(update=update)


@contextlib.contextmanager
def _patiently(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, waiting for another writer: a change takes milliseconds."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        held = hold(folder)
        try:
            held.__enter__()
            break
        except ArtifactError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    with contextlib.ExitStack() as stack:
        stack.push(held)
        yield


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
