"""`fmray serve`: admitted models kept up in the foreground until Ctrl-C."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from fmray.cluster import connect
from fmray.core.artifact import load, read_record
from fmray.core.errors import ConfigError, RunError
from fmray.model.checkpoint import Checkpoint
from fmray.serve import application
from fmray.serve.admission import Admission, Waiver, admit
from fmray.serve.deploy import ready, running, specs_of
from fmray.serve.deployment import DeployConfig, Deployment, ModelSpec
from fmray.serve.face import ROUTES

APP = "fmray-serve"
WATCH_S = 2.0


@dataclass(frozen=True)
class _Target:
    name: str
    path: Path
    decision: Path | None


def serve_foreground(
    targets: list[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    decision: Path | None = None,
    waive: str | None = None,
    by: str | None = None,
    replicas: int = 1,
    api_keys: Path | None = None,
    open_to_all: bool = False,
) -> None:
    """Serves model directories, and the models of deployment artifacts, until Ctrl-C; then takes everything down.

    Args:
        targets: checkpoint artifacts, deployment artifacts, or any Hugging Face directories.
        decision: the artifact of the decision that admits the one model given; None looks beside each model.
        waive: the reason to serve a model without an admitting decision; recorded beside it and shown at /metadata.
        by: who waives.
        api_keys: a file of NAME:SHA256 lines; beside it those of the environment variable FMRAY_API_KEYS are taken.
        open_to_all: serve other machines without keys.

    Raises:
        ArtifactError, ConfigError: a target is not a model, the arguments do not fit together, or other machines can reach the host
            and there are no keys.
        GateRefused: a model has no admitting decision and there is no waiver.
        ResourceError: the port is in use, or the cluster lacks resources.
        RunError: a replica did not start, or the application was removed from outside.
        KeyboardInterrupt: Ctrl-C, after everything was taken down.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    keys = str(api_keys) if api_keys is not None else None
    config = DeployConfig(app=APP, num_replicas=replicas, host=host, port=port, api_keys=keys, open_to_all=open_to_all)
    protection = ready(config)
    specs = admitted(targets, decision=decision, waiver=Waiver.of(waive, by))
    connect()
    application.require(len(specs), config)
    with running(specs, config, keep=False, protection=protection) as url:
        print("\n".join(_greeting(url, specs, keyed=bool(protection.keys))), flush=True)
        while application.is_up(config.app):
            time.sleep(WATCH_S)
        raise RunError("was taken down from outside", where=f"application {config.app}")


def admitted(targets: list[Path], *, decision: Path | None, waiver: Waiver | None) -> tuple[ModelSpec, ...]:
    """The models of the targets, each held to the gate rule. Raises as `serve_foreground` does."""
    found = [model for target in targets for model in _models(target)]
    if decision is not None and len(found) > 1:
        raise ConfigError(f"one decision cannot admit {len(found)} models", where="--decision", todo="leave it out, or serve one model")
    admissions: list[Admission] = [admit(m.path, decision=decision or m.decision, waiver=waiver) for m in found]
    return specs_of(admissions, [m.name for m in found])


def _models(target: Path) -> list[_Target]:
    """The models that a directory stands for: itself, or those that a deployment artifact names."""
    record = read_record(target)
    if record is None:
        return [_Target(target.resolve().name, target, None)]
    if record.kind == Checkpoint.kind:
        return [_Target(record.name, target, None)]
    if record.kind == Deployment.kind:
        return [_Target(m.name, target / m.path, target / m.decision_path) for m in load(target, Deployment).payload.models]
    raise ConfigError(f"is a {record.kind}, which cannot be served", where=str(target), todo="give a checkpoint or a deployment")


def _greeting(url: str, specs: tuple[ModelSpec, ...], *, keyed: bool) -> list[str]:
    key = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    lines = [f"serving at {url}  (OpenAI base_url: {url}/v1)"]
    for spec in specs:
        decision, waiver = spec.card["decision"], spec.card["waiver"]
        why = f"waived by {waiver['by']}: {waiver['reason']}" if waiver else f"admitted by {decision['name']}"
        lines.append(f"  {spec.name}  {spec.head}, {why}")
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
