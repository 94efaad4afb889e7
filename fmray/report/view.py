"""An experiment as the report sees it: the records of its folder, in order, with what each says about its state."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fmray.core.artifact import RECORD, STARTED, Payload, Record, read_record
from fmray.core.errors import ArtifactError
from fmray.core.experiment import Step

RUN_FILE = "run.json"
State = Literal["done", "admitted", "refused", "waived", "unfinished", "damaged", "not run"]


@dataclass(frozen=True)
class StepView:
    """One step of one round. `record` is None unless the step is complete; `inputs` maps input names to fingerprints.

    `parents` names the steps that a step which has not started would read.
    """

    name: str
    round: int
    path: Path
    stage: str
    state: State
    inputs: dict[str, str]
    record: Record | None = None
    problem: str = ""
    parents: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """The step's name with its round, as its folder is called."""
        return self.name if self.round == 1 else f"{self.name}@{self.round}"

    @property
    def kind(self) -> str:
        """The kind of its artifact, or nothing when there is none."""
        return self.record.kind if self.record else ""

    @property
    def payload(self) -> dict[str, Any]:
        """What the artifact says about itself; empty when there is none."""
        return self.record.payload if self.record else {}

    @property
    def fingerprint(self) -> str:
        """The artifact's fingerprint; empty when there is none."""
        return self.record.fingerprint if self.record else ""


@dataclass(frozen=True)
class RunView:
    """All steps of an experiment, each round apart, inputs before what they feed; and what the last run of it took, when known."""

    name: str
    root: Path
    steps: tuple[StepView, ...]
    peak_memory_gb: float | None = None
    wall_s: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Step names in order, each once."""
        return tuple(dict.fromkeys(step.name for step in self.steps))

    def rounds(self, name: str) -> tuple[StepView, ...]:
        """The rounds of a step, first to last."""
        return tuple(sorted((s for s in self.steps if s.name == name), key=lambda s: s.round))

    def latest(self, name: str) -> StepView:
        """The last round of a step."""
        return self.rounds(name)[-1]

    def of_kind(self, kind: str) -> tuple[StepView, ...]:
        """Complete steps of one artifact kind, every round."""
        return tuple(step for step in self.steps if step.kind == kind)

    def by_fingerprint(self, fingerprint: str) -> StepView | None:
        """The step that made an artifact, or None when it came from elsewhere."""
        return next((s for s in self.steps if fingerprint and s.fingerprint == fingerprint), None)

    def sources(self, step: StepView) -> dict[str, StepView | None]:
        """The step behind each input; None for an artifact of another run."""
        return {name: self.by_fingerprint(value) for name, value in step.inputs.items()}

    def edges(self) -> set[tuple[str, str]]:
        """Pairs of step names (source, reader) over all rounds; what a round takes from the one before is no edge."""
        found = {(name, step.name) for step in self.steps for name in step.parents}
        for step in self.steps:
            found |= {(s.name, step.name) for key, s in self.sources(step).items() if s is not None and key != "previous"}
        return found

    def subject(self, step: StepView) -> StepView | None:
        """The checkpoint step that a report or decision is about."""
        return self.by_fingerprint(str(step.payload.get("subject", "")))


def read_run(experiment_dir: Path, planned: Sequence[Step] = ()) -> RunView:
    """Reads an experiment folder.

    Args:
        planned: the steps of the experiment file, when it is at hand, so that those which never started are shown too.

    Raises:
        ArtifactError: there is no such folder, or no step has started in it.
    """
    root = Path(experiment_dir)
    if not root.is_dir():
        raise ArtifactError("does not exist", where=str(root), todo="run the experiment first, or check the path")
    steps = [step for folder in sorted(root.iterdir()) if (step := _read_step(folder)) is not None]
    if not steps:
        raise ArtifactError("holds no steps", where=str(root), todo="name the folder of an experiment: <storage>/<experiment>")
    started = {step.name for step in steps}
    absent = [StepView(s.name, 1, root / s.name, s.spec.name, "not run", {}, parents=frozenset(s.parents)) for s in planned if s.name not in started]
    took = _read_json(root / RUN_FILE)
    return RunView(root.name, root, (*_in_order(steps), *absent), _number(took.get("peak_memory_gb")), _number(took.get("wall_s")))


def _read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file that need not be there; empty when it is not, or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _read_step(folder: Path) -> StepView | None:
    name, _, round_text = folder.name.partition("@")
    # Folders kept aside by --redo are called <step>.old1: they are history, not this run.
    if not folder.is_dir() or "." in folder.name or (round_text and not round_text.isdigit()):
        return None
    if not (folder / RECORD).exists() and not (folder / STARTED).exists():
        return None
    number = int(round_text) if round_text else 1
    try:
        record = read_record(folder)
    except ArtifactError as error:
        return StepView(name, number, folder, "", "damaged", {}, problem=error.what)
    if record is None:
        identity = _read_json(folder / STARTED).get("identity") or {}
        return StepView(name, number, folder, str(identity.get("stage", "")), "unfinished", dict(identity.get("inputs") or {}))
    if (fault := _payload_fault(record)) is not None:
        return StepView(name, number, folder, record.stage, "damaged", dict(record.inputs), problem=f"its payload cannot be read ({fault})")
    return StepView(name, number, folder, record.stage, _state(record), dict(record.inputs), record)


def _payload_fault(record: Record) -> str | None:
    """What is wrong with a payload of a kind that is known here, or None."""
    cls = Payload.of_kind(record.kind)
    try:
        if cls is not None:
            cls.model_validate(record.payload)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return None


def _state(record: Record) -> State:
    if record.kind != "decision":
        return "done"
    if record.payload.get("waived_by"):
        return "waived"
    return "admitted" if record.payload.get("admitted") else "refused"


def _in_order(steps: Iterable[StepView]) -> list[StepView]:
    """Inputs first; among steps that are ready, the one that started first."""
    waiting = sorted(steps, key=lambda s: (s.record.provenance.started_at if s.record else "~", s.round, s.name))
    made_here = {s.fingerprint for s in waiting if s.fingerprint}
    placed: list[StepView] = []
    seen: set[str] = set()
    while waiting:
        ready = next((s for s in waiting if not (set(s.inputs.values()) & made_here) - seen), waiting[0])
        waiting.remove(ready)
        placed.append(ready)
        seen.add(ready.fingerprint)
    return placed
