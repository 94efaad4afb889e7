"""Stages are verbs: `@stage` registers one function from its annotations, and `produce` runs it at most once an identity."""

import datetime
import inspect
import json
import os
import shutil
import socket
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from fmray.core import provenance
from fmray.core.artifact import RECORD, STARTED, Artifact, Payload, Record, fingerprint, load, read_record, write_json
from fmray.core.config import Config, dump
from fmray.core.errors import ArtifactError, ConfigError, FmrayError, GateRefused
from fmray.core.lock import hold
from fmray.core.report import Decision
from fmray.core.wiring import Shape, shape_of_argument

State = Literal["cached", "done"]
RESERVED = ("config", "out", "previous")


class Watcher(Protocol):
    """Is told what happens; the terminal implements it."""

    def progress(self, step: str, text: str, done: float | None, total: float | None, figures: Mapping[str, float]) -> None:
        """A step moved on."""

    def table(self, step: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """What goes on inside a step, in place of what its last table showed."""


@dataclass
class Out:
    """What a stage writes to. `path` is the artifact directory; `work` inside it holds scratch and resumable state."""

    path: Path
    fingerprint: str
    name: str
    log: Path
    watcher: Watcher | None = None
    spent: list[tuple[str, int, float]] = field(default_factory=list)

    @property
    def work(self) -> Path:
        """Scratch and resumable state of this artifact; created on first use."""
        folder = self.path / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def progress(self, text: str = "", *, done: float | None = None, total: float | None = None, **figures: float) -> None:
        """Shows how far the step is, with current figures such as `loss` and `tokens_per_s`."""
        if self.watcher is not None:
            self.watcher.progress(self.name, text, done, total, figures)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Shows what goes on inside the step, most telling rows first: there may be room for some of them, or on a log for none."""
        if self.watcher is not None:
            self.watcher.table(self.name, columns, rows)

    def spend(self, *, device: str, count: int, seconds: float) -> None:
        """Counts devices used for a time into the artifact's provenance."""
        self.spent.append((device, count, seconds))


@dataclass(frozen=True)
class StageSpec:
    """A registered stage."""

    name: str
    version: int
    function: Callable[..., Payload]
    config: type[Config]
    payload: type[Payload]
    inputs: Mapping[str, Shape]
    takes_previous: bool
    recompute: bool
    plan: Callable[..., dict[str, str]] | None
    fresh: Callable[[Record], bool] | None
    trial: "Callable[[Job], dict[str, str]] | None" = None


STAGES: dict[str, StageSpec] = {}


def stage(
    name: str,
    *,
    version: int = 1,
    recompute: bool = False,
    plan: Callable[..., dict[str, str]] | None = None,
    fresh: Callable[[Record], bool] | None = None,
    trial: "Callable[[Job], dict[str, str]] | None" = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as the stage `name`: its first argument's annotation is its config, its artifact-typed ones its inputs.

    Args:
        version: raise it when the same config would give another result than before.
        recompute: cheap enough to be made again without asking when its config or inputs drifted.
        plan: `(config, upstream configs by input name) -> {label: text}` for `fmray check`.
        fresh: asked before a cache hit; False runs the stage again (a deployment that died).
        trial: `(job) -> {label: text}` for `fmray check --try-micro-batch`, when all inputs are there: finds out by doing.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(function)
        inputs = {n: argument.default for n, argument in inspect.signature(function).parameters.items() if n not in RESERVED}
        shapes = {n: shape_of_argument(hints[n], default) for n, default in inputs.items()}
        wrong = [n for n, shape in shapes.items() if shape is None]
        if wrong or not issubclass(hints["config"], Config) or not issubclass(hints["return"], Payload):
            raise TypeError(f"stage {name}: config must be a Config, inputs artifacts and the result a Payload (see {wrong or function})")
        STAGES[name] = StageSpec(
            name=name, version=version, function=function, config=hints["config"], payload=hints["return"],
            inputs=typing.cast(dict[str, Shape], shapes), takes_previous="previous" in hints, recompute=recompute, plan=plan, fresh=fresh, trial=trial,
        )  # fmt: skip
        return function

    return register


@dataclass(frozen=True)
class Job:
    """One step of one round, ready to be produced."""

    name: str
    round: int
    spec: StageSpec
    config: Config
    arguments: Mapping[str, Any]
    inputs: Mapping[str, str]
    plugins: Mapping[str, str]
    root: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What is hashed into the fingerprint."""
        identity: dict[str, Any] = {
            "stage": self.spec.name, "version": self.spec.version, "config": self.config.identity(), "inputs": dict(self.inputs),
        }  # fmt: skip
        if self.plugins:
            identity["plugins"] = dict(self.plugins)
        return identity


def produce(job: Job, *, redo: bool, watcher: Watcher | None) -> tuple[Artifact[Any], State]:
    """The artifact of a job: from cache when one of the same identity is complete, else run and committed, its record last.

    Raises:
        ArtifactError: the artifact there has drifted (each field is named) or a live process writes it.
        GateRefused: an input pair of checkpoint and decision does not admit.
    """
    check_admission(job.name, job.arguments)
    identity = job.identity
    print_ = fingerprint(identity)
    record = read_record(job.root)
    if record is not None and record.fingerprint == print_ and not redo and (job.spec.fresh is None or job.spec.fresh(record)):
        return load(job.root), "cached"
    with hold(job.root):
        resumed = _prepare_folder(job, identity, print_, redo)
        out = Out(job.root, print_, job.name, job.root.parent / "logs" / f"{job.root.name}.log", watcher)
        out.log.parent.mkdir(exist_ok=True)
        try:
            _run(job, identity, out)
        except FmrayError as error:
            if error.exit_code == 2 and not resumed:
                # Refused input leaves nothing behind: no later run may take the folder for an attempt to go on with.
                shutil.rmtree(job.root)
            raise
    return load(job.root), "done"


def _prepare_folder(job: Job, identity: dict[str, Any], print_: str, redo: bool) -> bool:
    """Makes the artifact folder ready; True when an interrupted attempt of the same identity goes on in it."""
    root = job.root
    started = _read_started(root)
    record = read_record(root)
    if record is not None or started is not None:
        old = record.identity if record is not None else (started or {}).get("identity", {})
        same = print_ == (record.fingerprint if record is not None else (started or {}).get("fingerprint"))
        if record is None and same and not redo:
            return True
        if redo:
            root.rename(_aside(root))
        elif job.spec.recompute or same:
            shutil.rmtree(root)
        else:
            raise _drift(job, old, identity, finished=record is not None)
    elif root.is_dir() and any(root.iterdir()):
        raise ArtifactError("holds files that no step wrote", where=str(root), todo="move them away or use --name NEW")
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / STARTED, {"fingerprint": print_, "identity": provenance.redact(identity), "host": socket.gethostname(), "pid": os.getpid()})
    return False


def _read_started(root: Path) -> dict[str, Any] | None:
    try:
        started = json.loads((root / STARTED).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return started if isinstance(started, dict) else {}


def _aside(root: Path) -> Path:
    number = 1
    while (aside := root.with_name(f"{root.name}.old{number}")).exists():
        number += 1
    return aside


def _run(job: Job, identity: dict[str, Any], out: Out) -> None:
    started_at, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    payload = job.spec.function(job.config, out=out, **job.arguments)
    wall_s = time.monotonic() - clock
    spent = out.spent or [("cpu", 1, wall_s)]
    record = Record(
        kind=type(payload).kind,
        name=job.name,
        stage=job.spec.name,
        version=job.spec.version,
        round=job.round,
        fingerprint=out.fingerprint,
        identity=provenance.redact(identity),
        config=provenance.redact(dump(job.config)),
        inputs=dict(job.inputs),
        payload=payload.model_dump(mode="json"),
        provenance=provenance.gather(
            started_at=started_at,
            devices=[f"{count} x {device}" for device, count, _ in spent],
            device_hours=sum(count * seconds for _, count, seconds in spent) / 3600,
        ),
        wall_s=round(wall_s, 3),
    )
    write_json(job.root / RECORD, record.model_dump(mode="json"))


def _drift(job: Job, old: dict[str, Any], new: dict[str, Any], *, finished: bool) -> ArtifactError:
    before, after = _flat(old), _flat(new)
    changed = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    shown = ", ".join(f"{k.removeprefix('config.')}: {_short(before.get(k))} -> {_short(after.get(k))}" for k in changed[:6])
    more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
    state = "was made with other settings" if finished else "holds an unfinished attempt with other settings"
    return ArtifactError(f"{state} ({shown}{more})", where=job.name, todo=f"keep both with --name NEW, or make it again with --redo {job.name} (the old one is kept aside)")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()}
    return {prefix: value}


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text[:60]


def check_admission(where: str, arguments: Mapping[str, Any]) -> None:
    """Holds every sibling pair of a checkpoint and a decision to the rule: the decision admits that very checkpoint.

    Raises:
        GateRefused: the decision refuses, or is about another checkpoint.
        ConfigError: a decision stands without a checkpoint.
    """
    decision = arguments.get("decision")
    if isinstance(decision, Artifact) and isinstance(decision.payload, Decision):
        checkpoint = arguments.get("checkpoint")
        if not isinstance(checkpoint, Artifact):
            raise ConfigError("a decision needs the checkpoint that it is about beside it", where=where)
        if decision.payload.subject != checkpoint.fingerprint:
            raise GateRefused(f"the decision {decision.name} is about another checkpoint than {checkpoint.name}", where=where, todo="gate that checkpoint")
        if not decision.payload.admitted:
            raise GateRefused(f"the gate {decision.name} did not admit {checkpoint.name}", where=where, todo="meet its rules or record a waiver in the gate")
    for name, value in arguments.items():
        for index, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if hasattr(item, "__dataclass_fields__") and not isinstance(item, Artifact):
                check_admission(f"{where}.{name}.{index}", {key: getattr(item, key) for key in item.__dataclass_fields__})
