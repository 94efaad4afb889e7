"""The judge: one replica beside the face that gathers a canary's observations, decides, records, and moves the aliases."""

import datetime
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmray.core import provenance
from fmray.core.artifact import RECORD, Artifact, Payload, Record, fingerprint, load, write_json
from fmray.core.config import dump
from fmray.core.errors import ConfigError, FmrayError
from fmray.core.report import Decision, Report
from fmray.serve import canary
from fmray.serve.canary import CanaryConfig, Observation
from fmray.serve.registry import Registry

OBSERVATIONS = "observations.jsonl"
REPORT, DECISION = "report", "decision"


@dataclass(frozen=True)
class Canary:
    """One model under canary: its registry, the two versions, and the names under which the application serves them."""

    name: str
    registry: str
    champion: int
    candidate: int
    candidate_name: str
    config: CanaryConfig

    @property
    def folder(self) -> Path:
        """Where its report, its decision and its observations are kept."""
        return Path(self.registry) / self.name / f"v{self.candidate}-against-v{self.champion}"

    @property
    def decided(self) -> bool:
        """Whether its decision is recorded."""
        return (self.folder / DECISION / RECORD).exists()

    def begin(self) -> None:
        """Puts a finished canary of the same two versions aside, so that this one stands on its own observations."""
        if self.decided:
            number = 1
            while (aside := self.folder.with_name(f"{self.folder.name}.old{number}")).exists():
                number += 1
            self.folder.rename(aside)


class CanaryJudge:
    """The deployment that decides. A new replica goes on from the observations that the last one wrote down."""

    def __init__(self, canaries: tuple[Canary, ...]) -> None:
        self._open = {c.name: (c, _observed(c)) for c in canaries if not c.decided}

    async def observe(self, name: str, observations: Sequence[Observation]) -> None:
        """Adds what a face saw of a model, and decides as soon as that is enough."""
        if name not in self._open:
            return
        under, seen = self._open[name]
        if not seen:
            under.folder.mkdir(parents=True, exist_ok=True)
        seen += observations
        with (under.folder / OBSERVATIONS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(o)) + "\n" for o in observations)
        if canary.enough(under.config, seen, under.candidate):
            del self._open[name]
            try:
                decide(under, seen)
            except FmrayError as error:
                # Somebody moved the aliases by hand while it ran: theirs is the last word.
                logging.getLogger("ray.serve").warning("the canary of %s was not concluded: %s", name, error)


def decide(under: Canary, observations: Sequence[Observation]) -> Artifact[Decision]:
    """Judges a canary, records report and decision as artifacts, and promotes the candidate or rolls it back.

    Raises:
        ConfigError: the candidate is no longer one.
    """
    registry = Registry(Path(under.registry))
    entry = registry.entry(under.name)
    if entry.candidate != under.candidate:
        raise ConfigError(f"version {under.candidate} is no longer the candidate", where=under.name)
    candidate, champion = entry.version(under.candidate), entry.version(under.champion)
    subject = candidate.fingerprint or candidate.digest
    metrics = canary.measure(observations, champion=under.champion, candidate=under.candidate)
    inputs = {"candidate": subject, "champion": champion.fingerprint or champion.digest}
    config = dump(under.config)
    report = Report(subject=subject, metrics=metrics, examples=f"../{OBSERVATIONS}")
    verdict = canary.judge(under.config, metrics, subject=subject, digest=candidate.digest)
    commit(under.folder / REPORT, "canary", report, config=config, inputs=inputs)
    decision = commit(under.folder / DECISION, "canary", verdict, config=config, inputs=inputs)
    if verdict.admitted:
        registry.promote(under.name, decision=decision)
    else:
        failed = ", ".join(reason.rule for reason in verdict.reasons if not reason.passed)
        registry.rollback(under.name, reason=f"canary: not met: {failed}", decision=decision, candidate=under.candidate)
    return decision


def commit(folder: Path, stage: str, payload: Payload, *, config: dict[str, Any], inputs: dict[str, str]) -> Artifact[Any]:
    """Writes an artifact that no stage of an experiment made."""
    kind, content = type(payload).kind, payload.model_dump(mode="json")
    identity = {"stage": stage, "version": 1, "config": config, "inputs": inputs, "payload": content}
    record = Record(
        kind=kind, name=f"canary_{folder.name}", stage=stage, version=1, round=1, fingerprint=fingerprint(identity), identity=identity,
        config=config, inputs=inputs, payload=content, wall_s=0.0,
        provenance=provenance.gather(started_at=datetime.datetime.now(datetime.UTC), devices=[], device_hours=0.0),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "record.json", record.model_dump(mode="json"))
    return load(folder)


def _observed(under: Canary) -> list[Observation]:
    try:
        lines = (under.folder / OBSERVATIONS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [Observation(**json.loads(line)) for line in lines]
