"""How admitted checkpoints enter service: as versions in the registry, at once or beside the champion that they would replace."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmray.core.errors import ConfigError
from fmray.serve.admission import Admission, Waiver, admit
from fmray.serve.canary import CanaryConfig
from fmray.serve.deployment import ModelSpec
from fmray.serve.judge import Canary
from fmray.serve.registry import Registry, Version
from fmray.serve.specs import specs_of


@dataclass(frozen=True)
class Rollout:
    """What comes up, and which aliases change once it answers."""

    registry: Registry
    specs: tuple[ModelSpec, ...]
    canaries: tuple[Canary, ...] = ()
    champions: dict[str, int] = field(default_factory=dict)

    def settle(self) -> None:
        """Sets the aliases: from now on candidates take their share, and what needs no canary is the champion."""
        for name, number in self.champions.items():
            self.registry.set_champion(name, number)
        for canary in self.canaries:
            self.registry.set_candidate(canary.name, canary.candidate)


def roll_out(
    registry: Registry, admissions: Sequence[Admission], names: Sequence[str], config: CanaryConfig | None, adapters: Mapping[str, str] | None = None
) -> Rollout:
    """Registers admitted checkpoints under their names, and brings each new one beside its champion where a canary is asked for.

    Raises:
        ArtifactError: an adapter does not fit; see `specs_of`.
        ConfigError: no model, or two under one name.
        GateRefused: the champion's files are no longer those that were admitted.
    """
    plain = specs_of(admissions, names, adapters)
    specs, canaries, champions = list(plain), list[Canary](), dict[str, int]()
    for at, (admission, name) in enumerate(zip(admissions, names, strict=True)):
        number = registry.register(name, admission)
        entry = registry.entry(name)
        if config is None or entry.champion in (None, number):
            champions[name] = number
            continue
        champion = entry.version(entry.champion or 0)
        if champion.head != admission.head:
            raise ConfigError(f"version {number} has a {admission.head} head and the champion a {champion.head} head", where=name, todo="give it another name")
        canary = Canary(name, str(registry.folder.absolute()), champion.number, number, f"{name}@{number}", config)
        canary.begin()
        canaries.append(canary)
        specs[at] = specs_of([readmit(registry, champion)], [name])[0]
        specs += specs_of([admission], [canary.candidate_name])
    return Rollout(registry, tuple(specs), tuple(canaries), champions)


def resume(registry: Registry, name: str, config: CanaryConfig) -> Rollout:
    """The champion of a registered model, with its candidate beside it as long as there is one. Raises as `roll_out` does."""
    entry = registry.entry(name)
    if entry.champion is None:
        raise ConfigError("has no champion yet", where=name, todo="run its deploy step to the end")
    champion = entry.version(entry.champion)
    specs = specs_of([readmit(registry, champion)], [name])
    if entry.candidate is None:
        return Rollout(registry, specs)
    candidate = entry.version(entry.candidate)
    canary = Canary(name, str(registry.folder.absolute()), champion.number, candidate.number, f"{name}@{candidate.number}", config)
    return Rollout(registry, (*specs, *specs_of([readmit(registry, candidate)], [canary.candidate_name])), (canary,))


def readmit(registry: Registry, version: Version) -> Admission:
    """Holds a registered version to the gate again: its files must still be those that were admitted or waived."""
    waiver = Waiver(by=version.waived_by, reason=version.waiver_reason or "") if version.waived_by else None
    return admit(registry.path_of(version), decision=registry.decision_of(version), waiver=waiver)


def storage_of(artifact: Path) -> Path:
    """The storage that an artifact of an experiment lies in."""
    return Path(os.path.abspath(artifact)).parent.parent
