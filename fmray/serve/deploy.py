"""The stage `deploy`: admitted models behind one Ray Serve application, tried with measured requests."""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fmray.cluster import connect, is_private
from fmray.core.artifact import Artifact, Record
from fmray.core.config import Config, dump
from fmray.core.errors import ConfigError
from fmray.core.stage import Out, stage
from fmray.serve import application, smoke
from fmray.serve.admission import Admission, admit
from fmray.serve.deployment import DeployConfig, DeployedModel, Deployment, ModelSpec, ServedModel
from fmray.serve.engines.vllm import require_vllm
from fmray.serve.operation import Operation
from fmray.serve.protection import Protection, protect, require_keys
from fmray.serve.registry import REGISTRY, Registry
from fmray.serve.rollout import Rollout, roll_out, storage_of

FEEDBACK = "feedback"


def plan(config: DeployConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """The lines for `fmray check`."""
    each = f"{config.num_cpus:g} CPU" + (f", {config.num_gpus:g} GPU" if config.num_gpus else "")
    scaling = config.autoscaling
    count = f"{scaling.min_replicas} to {scaling.max_replicas}" if scaling else str(config.num_replicas)
    lines = {"application": f"{config.app} at {config.route}", "replicas": f"{count} a model, {each} each"}
    if config.max_loaded is not None:
        lines["replicas"] = f"{count}, {each} each, with at most {config.max_loaded} of the models loaded at once"
    if config.adapters:
        lines["adapters"] = ", ".join(f"{name} on {base}" for name, base in config.adapters.items())
    if config.canary is not None:
        lines["canary"] = f"{config.canary.share:.0%} of the traffic until {config.canary.min_requests} requests, then {'; '.join(config.canary.rules)}"
    return lines


def fresh(record: Record) -> bool:
    """Whether a deployment is still what its record says: one that was left running must answer /health."""
    deployment = Deployment.model_validate(record.payload)
    return not deployment.live or (deployment.url is not None and smoke.healthy(deployment.url))


@stage("deploy", version=1, plan=plan, fresh=fresh)
def deploy(config: DeployConfig, models: tuple[ServedModel, ...], out: Out) -> Deployment:
    """Brings the models up, measures smoke requests, and takes them down again when the Ray in use ends with this process.

    Raises:
        ArtifactError: a model that is to be served as an adapter is none of that base.
        ConfigError: no model, or two under one name, an engine that is not installed, or a host that needs API keys.
        GateRefused: a checkpoint's files are not those that its decision admitted.
        ResourceError: the port is in use, or the cluster lacks resources.
        RunError: a replica did not start, or a smoke request failed.
    """
    names = [m.checkpoint.name for m in models]
    admissions = [admit(m.checkpoint.path, decision=m.decision.path) for m in models]
    own_key = secrets.token_urlsafe(32)
    protection = ready(config, own_key)
    rollout = roll_out(Registry(storage_of(out.path) / REGISTRY), admissions, names, config.canary, config.adapters)
    specs = rollout.specs
    connect()
    live = not is_private()
    application.require(specs, config)
    for canary in rollout.canaries:
        out.progress(f"{canary.name}: version {canary.candidate} beside the champion, version {canary.champion}")
    out.progress("starting Ray Serve")
    started = time.monotonic()
    with serve_log_in(out.log), running(specs, config, keep=live, operation=_operation(config, rollout, out), protection=protection) as url:
        start_s = time.monotonic() - started
        metrics, samples = [], []
        for done, spec in enumerate(specs):
            out.progress(f"asking {spec.name}", done=done, total=len(specs))
            measured, answers = smoke.smoke(url, spec, config, own_key if protection.keys else None)
            metrics += measured
            samples += answers
        rollout.settle()
    return Deployment(
        app=config.app, route=config.route, url=url if live else None, live=live, replicas=config.least_replicas,
        models=tuple(_deployed(model, admission, out.path, config.adapters) for model, admission in zip(models, admissions, strict=True)),
        canary=dump(config.canary) if config.canary is not None else None,
        metrics=tuple(metrics), samples=tuple(samples), start_s=round(start_s, 2), serve_command=f"fmray serve {_shown(out.path)}",
    )  # fmt: skip


def ready(config: DeployConfig, own_key: str | None = None) -> Protection:
    """What can be known before anything starts: the engine is there, and who may ask.

    Raises:
        ConfigError: the engine is not installed, its keys cannot be read, or the host needs keys.
    """
    if config.engine == "vllm":
        require_vllm()
        if config.num_gpus <= 0:
            raise ConfigError("the engine vllm needs a GPU", where="num_gpus", todo="give num_gpus, or use the engine transformers")
    return protect(config, own_key)


@contextlib.contextmanager
def running(
    specs: tuple[ModelSpec, ...], config: DeployConfig, *, keep: bool, operation: Operation | None = None, protection: Protection | None = None
) -> Iterator[str]:
    """Serves the models while the block runs, and gives the application's URL. With `keep`, a block that succeeds leaves them up.

    An application of this name that is up is upgraded, replica by replica; with `keep`, a failed upgrade leaves it there.
    """
    protection = ready(config) if protection is None else protection
    instance = application.start(config.host, config.port)
    kept = keep and application.is_up(config.app)
    try:
        # The cluster's Serve may listen elsewhere than this config says.
        require_keys(urlsplit(instance.url).hostname or "", protection.keys, config)
        application.bring_up(application.build(specs, config, operation or Operation(), protection), config)
        url = instance.url + config.route.rstrip("/")
        smoke.wait_healthy(url)
        yield url
        kept = keep
    finally:
        if not kept:
            if instance.ours:
                application.stop()
            else:
                application.take_down(config.app)


@contextlib.contextmanager
def serve_log_in(file: Path) -> Iterator[None]:
    """Sends what Ray Serve says in this process to a log file instead of the terminal."""
    from ray import serve  # noqa: F401  (its import sets the handlers that are replaced here)

    logger = logging.getLogger("ray.serve")
    before = logger.handlers[:], logger.propagate
    handler = logging.FileHandler(file, encoding="utf-8")
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
        handler.close()


def _operation(config: DeployConfig, rollout: Rollout, out: Out) -> Operation:
    # Beside the artifact and not in it: what people and traffic left there outlives a deployment.
    root = Path(os.path.abspath(out.path)).parent
    return Operation(
        canaries=rollout.canaries, feedback=str(root / FEEDBACK / f"{out.name}.jsonl"),
        request_log=str(root / "logs" / f"{out.name}.requests.jsonl"), log_prompts=config.log_prompts,
    )  # fmt: skip


def _deployed(model: ServedModel, admission: Admission, root: Path, adapters: Mapping[str, str]) -> DeployedModel:
    def relative(artifact: Artifact[Any]) -> str:
        return os.path.relpath(artifact.path.resolve(), root.resolve())

    return DeployedModel(
        name=model.checkpoint.name, fingerprint=model.checkpoint.fingerprint, digest=admission.digest, head=admission.head,
        path=relative(model.checkpoint), decision_path=relative(model.decision), base=adapters.get(model.checkpoint.name),
    )  # fmt: skip


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
