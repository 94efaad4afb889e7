"""An experiment: one YAML file of named steps in order, wired by name, run with rounds of a gate that sends back."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from fmray.core import plugins as plugin_files
from fmray.core.artifact import Artifact, Payload, load, local_path
from fmray.core.config import Config, did_you_mean, load_config
from fmray.core.errors import ConfigError, GateRefused
from fmray.core.report import Decision
from fmray.core.stage import STAGES, Job, StageSpec, State, Watcher, produce
from fmray.core.wiring import Bound, One, Ref, bind, leaves, parse
from fmray.core.yaml import apply_overrides, read_yaml, set_path

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


class OnRefusal(Config):
    """What a gate does when its rules are not met: go back to a step and train on, for at most `max_rounds` rounds in all.

    `set` holds dotted overrides (`base.max_steps: 400`) that the rounds after the first use.
    """

    back_to: str
    max_rounds: int = Field(2, ge=2)
    set: dict[str, Any] = {}


@dataclass(frozen=True)
class Step:
    """One step as the file describes it: its stage, its config and what its inputs name."""

    name: str
    spec: StageSpec
    config: Config
    bound: Mapping[str, Bound]

    @property
    def references(self) -> list[tuple[str, One, Ref]]:
        """Every reference to another artifact, with its dotted input name."""
        return [leaf for name, shape in self.spec.inputs.items() for leaf in leaves(shape, self.bound[name], name)]

    @property
    def parents(self) -> set[str]:
        """The steps whose artifacts it reads."""
        return {ref.step for _, _, ref in self.references if ref.step is not None}

    @property
    def on_refusal(self) -> OnRefusal | None:
        """Where a gate sends the run back to, if it is a gate that does."""
        value = getattr(self.config, "on_refusal", None)
        return value if isinstance(value, OnRefusal) else None


@dataclass(frozen=True)
class Outcome:
    """One produced artifact of a run, in order."""

    step: str
    round: int
    state: State
    artifact: Artifact[Any]


class Experiment:
    """A checked experiment file. `run` produces its artifacts under `<storage>/<name>/`."""

    def __init__(self, plain: dict[str, Any], *, where: str, storage: str = "runs", plugins: Mapping[str, str] | None = None) -> None:
        self.plain, self.where, self.plugins = plain, where, dict(plugins or {})
        unknown = [k for k in plain if k not in ("name", "steps", "plugins")]
        if unknown:
            raise ConfigError(f"unknown key '{unknown[0]}'{did_you_mean(str(unknown[0]), ('name', 'steps', 'plugins'))}", where=where, todo="known keys: name, steps, plugins")
        self.name = plain.get("name")
        if not isinstance(self.name, str) or not NAME.match(self.name):
            raise ConfigError(f"needs a `name` of letters, digits, - and _ (got {self.name!r})", where=where)
        self.root = local_path(storage) / self.name
        self.steps = _read_steps(plain, where)
        for step in self.steps.values():
            _check_on_refusal(self.steps, step)

    def configs_in_round(self, round_: int, gate: Step | None) -> dict[str, Step]:
        """The steps as a round sees them: from the second on, with the overrides of the gate that sent back."""
        if round_ == 1 or gate is None or gate.on_refusal is None:
            return self.steps
        plain = copy.deepcopy(self.plain)
        for path, value in gate.on_refusal.set.items():
            set_path(plain, path, value)
        return _read_steps(plain, self.where)

    def upstream(self, targets: Sequence[str]) -> list[str]:
        """The steps to run for these targets (all of them when none are named), in file order."""
        for name in targets:
            if name not in self.steps:
                raise ConfigError(f"there is no step '{name}'{did_you_mean(name, self.steps)}", where=self.where, todo=f"steps: {', '.join(self.steps)}")
        wanted = set(self.steps) if not targets else set().union(*(_ancestors(self.steps, name) for name in targets))
        return [name for name in self.steps if name in wanted]

    def run(
        self,
        targets: Sequence[str] = (),
        *,
        redo: Sequence[str] = (),
        watcher: Watcher | None = None,
        on_step: Callable[[str, int], None] = lambda name, round_: None,
        on_done: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        """Produces the wanted steps in order, going back where a gate says so.

        Raises:
            GateRefused: a gate that may not go back (any more) refused. Whatever was made before it stays.
        """
        wanted = self.upstream(targets)
        self.upstream(redo)
        steps, rounds = dict(self.steps), dict.fromkeys(wanted, 1)
        current: dict[str, Artifact[Any]] = {}
        previous: dict[str, Artifact[Any]] = {}
        redone: set[str] = set()
        outcomes: list[Outcome] = []
        index = 0
        while index < len(wanted):
            name = wanted[index]
            step, round_ = steps[name], rounds[name]
            on_step(name, round_)
            again = name in redo or bool(step.parents & redone)
            artifact, state = produce(self._job(step, round_, current, previous), redo=again, watcher=watcher)
            if again:
                redone.add(name)
            current[name] = artifact
            outcomes.append(Outcome(name, round_, state, artifact))
            on_done(outcomes[-1])
            decision = artifact.payload
            if not isinstance(decision, Decision) or decision.admitted:
                index += 1
                continue
            back = step.on_refusal
            if back is None or round_ >= back.max_rounds or back.back_to not in wanted:
                raise _refusal(name, round_, decision)
            index = wanted.index(back.back_to)
            changed = self.configs_in_round(round_ + 1, step)
            for redo_name in self._loop(back, name, wanted):
                rounds[redo_name] = round_ + 1
                steps[redo_name] = changed[redo_name]
                previous[redo_name] = current[redo_name]
        return outcomes

    def _loop(self, back: OnRefusal, gate: str, wanted: Sequence[str]) -> list[str]:
        """The steps that a round makes anew: `back_to` and whatever stands between it and the gate and depends on it."""
        inside: list[str] = []
        touched = {path.split(".")[0] for path in back.set}
        for name in wanted[wanted.index(back.back_to) : wanted.index(gate) + 1]:
            if name == back.back_to or name in touched or self.steps[name].parents & set(inside):
                inside.append(name)
        return inside

    def _job(self, step: Step, round_: int, current: Mapping[str, Artifact[Any]], previous: Mapping[str, Artifact[Any]]) -> Job:
        inputs: dict[str, str] = {}

        def resolve(ref: Ref, shape: One) -> Artifact[Any]:
            return current[ref.step] if ref.step is not None else load(str(ref.uri), shape.payload)

        arguments = {name: bind(shape, step.bound[name], resolve) for name, shape in step.spec.inputs.items()}
        for name, shape, ref in step.references:
            inputs[name] = resolve(ref, shape).fingerprint
        if step.spec.takes_previous and round_ > 1:
            arguments["previous"] = previous[step.name]
            inputs["previous"] = previous[step.name].fingerprint
        root = self.root / (step.name if round_ == 1 else f"{step.name}@{round_}")
        return Job(step.name, round_, step.spec, step.config, arguments, inputs, self.plugins, root)

    def plan(self) -> list[tuple[Step, dict[str, str]]]:
        """Every step with the lines of its plan, for `fmray check`; reads what configs point at, and runs nothing."""
        planned = []
        for step in self.steps.values():
            step.config.identity()
            for _, shape, ref in step.references:
                if ref.uri is not None:
                    load(ref.uri, shape.payload)
            upstream = {name: self.steps[ref.step].config for name, _, ref in step.references if ref.step is not None}
            planned.append((step, step.spec.plan(step.config, upstream) if step.spec.plan else {}))
        return planned

    def trials(self, wanted: Sequence[str]) -> Iterator[tuple[Step, dict[str, str]]]:
        """The lines of every wanted step that can find out by trying; one at a time, for each takes a while.

        Raises:
            ConfigError: an input of such a step is not there yet.
        """
        for step in (self.steps[name] for name in wanted):
            if step.spec.trial is None:
                continue
            missing = sorted(name for name in step.parents if not (self.root / name / "record.json").exists())
            if missing:
                raise ConfigError(f"is tried on what {', '.join(missing)} makes, which is not there yet", where=step.name, todo=f"`fmray run` {', '.join(missing)} first")
            yield step, step.spec.trial(self._job(step, 1, {name: load(self.root / name) for name in step.parents}, {}))


def load_experiment(path: str | Path, overrides: Sequence[str] = (), *, storage: str = "runs", name: str | None = None) -> Experiment:
    """Reads, overrides and checks an experiment file; brings in its plugins.

    Args:
        overrides: `step.key=value` strings, applied in order.
        name: another name for the experiment (its folder below `storage`).

    Raises:
        ConfigError: anything wrong in the file, with the dotted path and a suggestion.
    """
    file = Path(path)
    plain = read_yaml(file)
    apply_overrides(plain, overrides)
    if name is not None:
        plain["name"] = name
    digests = plugin_files.install_from(plain.get("plugins", []), file.parent)
    return Experiment(plain, where=str(file), storage=storage, plugins=digests)


def _refusal(name: str, round_: int, decision: Decision) -> GateRefused:
    failed = [f"{r.rule} ({r.note or f'observed {r.observed}'})" for r in decision.reasons if not r.passed]
    rounds = f" in round {round_}" if round_ > 1 else ""
    return GateRefused(f"the gate refused{rounds}: {'; '.join(failed)}", where=name)


def _read_steps(plain: Mapping[str, Any], where: str) -> dict[str, Step]:
    raw = plain.get("steps")
    if not isinstance(raw, dict) or not raw:
        raise ConfigError("needs `steps`: a mapping of step names to steps", where=where)
    steps: dict[str, Step] = {}
    for name, body in raw.items():
        if not isinstance(name, str) or not NAME.match(name):
            raise ConfigError(f"'{name}' is not a step name (letters, digits, - and _)", where=where)
        steps[name] = _read_step(name, body, list(raw), steps)
    return steps


def _read_step(name: str, body: Any, order: Sequence[str], above: Mapping[str, Step]) -> Step:
    if not isinstance(body, dict) or not isinstance(body.get("stage"), str):
        raise ConfigError("needs a `stage`", where=name, todo=f"stages: {', '.join(sorted(STAGES))}")
    tag = body["stage"]
    spec = STAGES.get(tag)
    if spec is None:
        raise ConfigError(f"unknown stage '{tag}'{did_you_mean(tag, STAGES)}", where=f"{name}.stage", todo=f"stages: {', '.join(sorted(STAGES))}")
    bound: dict[str, Bound] = {}
    for key, shape in spec.inputs.items():
        optional = isinstance(shape, One) and shape.optional
        if key not in body and not optional:
            raise ConfigError("is required", where=f"{name}.{key}", todo=f"name the step that makes it (above {name} in the file)")
        bound[key] = parse(shape, body.get(key), f"{name}.{key}")
    fields = {k: v for k, v in body.items() if k != "stage" and k not in spec.inputs}
    _hint_inputs(name, fields, spec)
    step = Step(name, spec, load_config(spec.config, fields, name), bound)
    for key, leaf, ref in step.references:
        if ref.step is not None:
            _check_reference(f"{name}.{key}", name, ref.step, leaf.payload, order, above)
    return step


def _hint_inputs(name: str, fields: Mapping[str, Any], spec: StageSpec) -> None:
    """An unknown key close to an input's name gets that suggestion, which the config alone cannot give."""
    for key in fields:
        if key not in spec.config.model_fields and (hint := did_you_mean(str(key), [*spec.config.model_fields, *spec.inputs])):
            raise ConfigError(f"unknown key '{key}'{hint}", where=f"{name}.{key}", todo=f"known keys: {', '.join([*spec.inputs, *spec.config.model_fields])}")


def _check_reference(where: str, step: str, named: str, wanted: type[Payload], order: Sequence[str], above: Mapping[str, Step]) -> None:
    if named in above:
        made = above[named].spec.payload
        if not issubclass(made, wanted):
            raise ConfigError(f"'{named}' makes a {made.kind}, and a {wanted.kind} is needed", where=where)
        return
    if named == step:
        raise ConfigError(f"'{named}' names the step itself", where=where, todo="name a step above it")
    if named in order:
        raise ConfigError(f"'{named}' stands below in the file, and data flows down only", where=where, todo=f"move '{named}' above '{step}'")
    raise ConfigError(f"there is no step '{named}'{did_you_mean(named, order)}", where=where, todo=f"steps above: {', '.join(above) or 'none'}")


def _check_on_refusal(steps: Mapping[str, Step], step: Step) -> None:
    back = step.on_refusal
    if back is None:
        return
    where = f"{step.name}.on_refusal"
    names = list(steps)
    if back.back_to not in names or names.index(back.back_to) >= names.index(step.name):
        raise ConfigError(f"'{back.back_to}' is not a step above{did_you_mean(back.back_to, names)}", where=f"{where}.back_to")
    if back.back_to not in _ancestors(steps, step.name):
        raise ConfigError(f"'{back.back_to}' does not lead to this gate, so going back would change nothing", where=f"{where}.back_to")


def _ancestors(steps: Mapping[str, Step], name: str) -> set[str]:
    """The step and every step that it reads from, directly or through others."""
    return {name}.union(*(_ancestors(steps, parent) for parent in steps[name].parents))
