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
from fmray.core.config import Config
from fmray.core.errors import ConfigError
from fmray.core.stage import Out, stage
from fmray.serve import application, smoke
from fmray.serve.admission import Admission, admit
from fmray.serve.deployment import DeployConfig, DeployedModel, Deployment, ModelSpec, ServedModel
from fmray.serve.engines.vllm import require_vllm
from fmray.serve.protection import Protection, protect, require_keys


def plan(config: DeployConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """The lines for `fmray check`."""
    each = f"{config.num_cpus:g} CPU" + (f", {config.num_gpus:g} GPU" if config.num_gpus else "")
    return {"application": f"{config.app} at {config.route}", "replicas": f"{config.num_replicas} a model, {each} each"}


def fresh(record: Record) -> bool:
    """Whether a deployment is still what its record says: one that was left running must answer /health."""
    deployment = Deployment.model_validate(record.payload)
    return not deployment.live or (deployment.url is not None and smoke.healthy(deployment.url))


@stage("deploy", version=1, plan=plan, fresh=fresh)
def deploy(config: DeployConfig, models: tuple[ServedModel, ...], out: Out) -> Deployment:
    """Brings the models up, measures smoke requests, and takes them down again when the Ray in use ends with this process.

    Raises:
        ConfigError: no model, or two under one name, an engine that is not installed, or a host that needs API keys.
        GateRefused: a checkpoint's files are not those that its decision admitted.
        ResourceError: the port is in use, or the cluster lacks resources.
        RunError: a replica did not start, or a smoke request failed.
    """
    specs = specs_of([admit(m.checkpoint.path, decision=m.decision.path) for m in models], [m.checkpoint.name for m in models])
    own_key = secrets.token_urlsafe(32)
    protection = ready(config, own_key)
    connect()
    live = not is_private()
    application.require(len(specs), config)
    out.progress("starting Ray Serve")
    started = time.monotonic()
    with serve_log_in(out.log), running(specs, config, keep=live, protection=protection) as url:
        start_s = time.monotonic() - started
        metrics, samples = [], []
        for done, spec in enumerate(specs):
            out.progress(f"asking {spec.name}", done=done, total=len(specs))
            measured, answers = smoke.smoke(url, spec, config, own_key if protection.keys else None)
            metrics += measured
            samples += answers
    return Deployment(
        app=config.app, route=config.route, url=url if live else None, live=live, replicas=config.num_replicas,
        models=tuple(_deployed(model, spec, out.path) for model, spec in zip(models, specs, strict=True)),
        metrics=tuple(metrics), samples=tuple(samples), start_s=round(start_s, 2), serve_command=f"fmray serve {_shown(out.path)}",
    )  # fmt: skip


def specs_of(admissions: list[Admission], names: list[str]) -> tuple[ModelSpec, ...]:
    """What replicas must know of admitted models.

    Raises:
        ConfigError: no model, or two under one name.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ConfigError(f"two models are named '{twice[0]}'" if twice else "there is no model to serve", where="models", todo="name each model once")
    return tuple(_spec(admission, name) for admission, name in zip(admissions, names, strict=True))


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
def running(specs: tuple[ModelSpec, ...], config: DeployConfig, *, keep: bool, protection: Protection | None = None) -> Iterator[str]:
    """Serves the models while the block runs, and gives the application's URL. With `keep`, a block that succeeds leaves them up."""
    protection = ready(config) if protection is None else protection
    instance = application.start(config.host, config.port)
    kept = False
    try:
        # The cluster's Serve may listen elsewhere than this config says.
        require_keys(urlsplit(instance.url).hostname or "", protection.keys, config)
        application.bring_up(application.build(specs, config, protection), config)
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


def _deployed(model: ServedModel, spec: ModelSpec, root: Path) -> DeployedModel:
    def relative(artifact: Artifact[Any]) -> str:
        return os.path.relpath(artifact.path.resolve(), root.resolve())

    return DeployedModel(
        name=spec.name, fingerprint=model.checkpoint.fingerprint, digest=spec.digest, head=spec.head,
        path=relative(model.checkpoint), decision_path=relative(model.decision),
    )  # fmt: skip


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
