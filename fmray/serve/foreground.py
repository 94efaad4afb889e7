"""`fmray serve`: admitted models kept up in the foreground until Ctrl-C."""

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fmray.cluster import connect
from fmray.core.artifact import load, read_record
from fmray.core.config import load_config
from fmray.core.errors import ConfigError, RunError
from fmray.model.checkpoint import Checkpoint
from fmray.serve import application, manifest
from fmray.serve.admission import Admission, Waiver, admit
from fmray.serve.canary import CanaryConfig
from fmray.serve.deploy import ready, running
from fmray.serve.deployment import DeployConfig, Deployment, ModelSpec
from fmray.serve.face import ROUTES
from fmray.serve.judge import Canary
from fmray.serve.operation import Operation
from fmray.serve.registry import REGISTRY, Registry
from fmray.serve.rollout import resume, storage_of
from fmray.serve.specs import specs_of

APP = "fmray-serve"
# What Ctrl-C leaves to answers under way: nobody waits for all of a long deadline.
DRAIN_S = 30.0
WATCH_S = 2.0


@dataclass(frozen=True)
class _Target:
    name: str
    path: Path
    decision: Path | None
    base: str | None = None


def serve_foreground(
    targets: list[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    decision: Path | None = None,
    waive: str | None = None,
    by: str | None = None,
    replicas: int = 1,
    feedback: Path | None = None,
    request_log: Path | None = None,
    log_prompts: bool = False,
    api_keys: Path | None = None,
    open_to_all: bool = False,
    adapters: Mapping[str, str] | None = None,
    max_loaded: int | None = None,
) -> None:
    """Serves model directories, and the models of deployment artifacts, until Ctrl-C; then takes everything down.

    Args:
        targets: checkpoint artifacts, deployment artifacts, or any Hugging Face directories.
        decision: the artifact of the decision that admits the one model given; None looks beside each model.
        waive: the reason to serve a model without an admitting decision; recorded beside it and shown at /metadata.
        by: who waives.
        feedback: the JSONL file that POST /v1/feedback appends to; None refuses feedback.
        request_log: the JSONL file that gets a line a request; `log_prompts` puts the requests' text in it.
        api_keys: a file of NAME:SHA256 lines; beside it those of the environment variable FMRAY_API_KEYS are taken.
        open_to_all: serve other machines without keys.
        adapters: the bases of models that are served as low-rank adapters on another one's weights, by name; a deployment's are known.
        max_loaded: models that a replica holds at once; None: each has replicas of its own.

    Raises:
        ArtifactError, ConfigError: a target is not a model, the arguments do not fit together, or other machines can reach the host
            and there are no keys.
        GateRefused: a model has no admitting decision and there is no waiver.
        ResourceError: the port is in use, or the cluster lacks resources.
        RunError: a replica did not start, or the application was removed from outside.
        KeyboardInterrupt: Ctrl-C, after everything was taken down.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    keys = _text(api_keys)
    config = DeployConfig(
        app=APP, num_replicas=replicas, host=host, port=port, api_keys=keys, open_to_all=open_to_all, drain_s=DRAIN_S, max_loaded=max_loaded
    )
    protection = ready(config)
    specs, canaries = planned(targets, decision=decision, waiver=Waiver.of(waive, by), adapters=adapters)
    operation = Operation(canaries, feedback=_text(feedback), request_log=_text(request_log), log_prompts=log_prompts)
    connect()
    application.require(specs, config)
    with running(specs, config, keep=False, operation=operation, protection=protection) as url:
        print("\n".join(_greeting(url, specs, keyed=bool(protection.keys))), flush=True)
        while application.is_up(config.app):
            time.sleep(WATCH_S)
        raise RunError("was taken down from outside", where=f"application {config.app}")


def print_serve_config(
    targets: list[Path],
    *,
    host: str,
    port: int,
    decision: Path | None,
    waive: str | None,
    by: str | None,
    replicas: int,
    feedback: Path | None,
    request_log: Path | None,
    log_prompts: bool,
    api_keys: Path | None,
    open_to_all: bool,
    adapters: Mapping[str, str] | None = None,
    max_loaded: int | None = None,
) -> None:
    """Prints the YAML with which `serve deploy` or a RayService serves these targets; arguments and errors as for `serve_foreground`."""
    specs, canaries = planned(targets, decision=decision, waiver=Waiver.of(waive, by), adapters=adapters)
    config = DeployConfig(
        num_replicas=replicas, host=host, port=port, log_prompts=log_prompts, api_keys=_text(api_keys), open_to_all=open_to_all, max_loaded=max_loaded,
    )
    decisions = {m.name: _text(decision or m.decision) for target in targets for m in _models(target)}
    operation = Operation(feedback=_text(feedback), request_log=_text(request_log), log_prompts=log_prompts)
    print(manifest.write(specs, canaries, decisions, config, operation), end="")


def check_serve_config(file: Path) -> str:
    """What a Serve config deploys, in words.

    Raises:
        ConfigError: it cannot be read, or Serve would not take it as it is meant.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", where=str(file)) from None
    plain = manifest.read(text, where=file.name)
    return "; ".join(f"application {a.get('name', 'default')} at {a.get('route_prefix', '/')}" for a in plain["applications"]) + ": no fault found"


def _text(path: Path | None) -> str | None:
    return None if path is None else os.path.normpath(path.absolute())


def planned(
    targets: list[Path], *, decision: Path | None, waiver: Waiver | None, adapters: Mapping[str, str] | None = None
) -> tuple[tuple[ModelSpec, ...], tuple[Canary, ...]]:
    """The models of the targets, and the canaries among them: those of a deployment that was made with `canary` are what the
    registry says now. Raises as `serve_foreground` does.
    """
    plain, specs, canaries = list[Path](), list[ModelSpec](), list[Canary]()
    for target in targets:
        record = read_record(target)
        deployment = load(target, Deployment).payload if record is not None and record.kind == Deployment.kind else None
        if deployment is None or deployment.canary is None:
            plain.append(target)
            continue
        config = load_config(CanaryConfig, deployment.canary, where=str(target))
        for model in deployment.models:
            rollout = resume(Registry(storage_of(target) / REGISTRY), model.name, config)
            specs += rollout.specs
            canaries += rollout.canaries
    found = (*(admitted(plain, decision=decision, waiver=waiver, adapters=adapters) if plain or not specs else ()), *specs)
    twice = next((spec.name for at, spec in enumerate(found) if spec.name in {s.name for s in found[:at]}), None)
    if twice is not None:
        raise ConfigError(f"two models are named '{twice}'", where="models", todo="name each model once")
    return found, tuple(canaries)


def admitted(
    targets: list[Path], *, decision: Path | None, waiver: Waiver | None, adapters: Mapping[str, str] | None = None
) -> tuple[ModelSpec, ...]:
    """The models of the targets, each held to the gate rule. Raises as `serve_foreground` does."""
    found = [model for target in targets for model in _models(target)]
    if decision is not None and len(found) > 1:
        raise ConfigError(f"one decision cannot admit {len(found)} models", where="--decision", todo="leave it out, or serve one model")
    admissions: list[Admission] = [admit(m.path, decision=decision or m.decision, waiver=waiver) for m in found]
    return specs_of(admissions, [m.name for m in found], {m.name: m.base for m in found if m.base is not None} | dict(adapters or {}))


def bases_of(options: list[str]) -> dict[str, str]:
    """The bases of adapters by name, from options NAME=BASE. Raises ConfigError for one of another form."""
    found = {}
    for option in options:
        name, equals, base = option.partition("=")
        if not (name and equals and base) or name in found:
            raise ConfigError(f"'{option}' is no NAME=BASE, or its name is given twice", where="--adapter", todo="give each adapter's and its base's name")
        found[name] = base
    return found


def _models(target: Path) -> list[_Target]:
    """The models that a directory stands for: itself, or those that a deployment artifact names."""
    record = read_record(target)
    if record is None:
        return [_Target(target.resolve().name, target, None)]
    if record.kind == Checkpoint.kind:
        return [_Target(record.name, target, None)]
    if record.kind == Deployment.kind:
        return [_Target(m.name, target / m.path, target / m.decision_path, m.base) for m in load(target, Deployment).payload.models]
    raise ConfigError(f"is a {record.kind}, which cannot be served", where=str(target), todo="give a checkpoint or a deployment")


def _greeting(url: str, specs: tuple[ModelSpec, ...], *, keyed: bool) -> list[str]:
    key = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    lines = [f"serving at {url}  (OpenAI base_url: {url}/v1)"]
    for spec in specs:
        decision, waiver = spec.card["decision"], spec.card["waiver"]
        why = f"waived by {waiver['by']}: {waiver['reason']}" if waiver else f"admitted by {decision['name']}"
        on = f" on {spec.base}" if spec.base is not None else ""
        lines.append(f"  {spec.name}  {spec.head}{on}, {why}")
        lines.append(f"    {_example(url, spec)}{key}")
    return [*lines, f"  curl {url}/metadata{key}", "Ctrl-C ends it"]


def _example(url: str, spec: ModelSpec) -> str:
    prompt = DeployConfig().smoke_prompts[0]
    bodies: dict[str, dict[str, object]] = {
        "causal_lm": {"prompt": prompt, "max_tokens": 32},
        "masked_lm": {"input": f"{prompt} [MASK]"},
        "question_answering": {"question": "What is it?", "context": prompt},
    }
    body = {"model": spec.name, **bodies.get(spec.head, {"input": prompt})}
    return f"curl {url}{ROUTES[spec.head]} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
