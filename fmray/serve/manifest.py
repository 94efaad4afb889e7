"""The YAML that `serve deploy` and a RayService take, written for admitted models and read strictly.

Ray Serve ignores a field that it does not know, so that a misspelt `num_replicas` deploys the default in silence. `read`
refuses every key that Serve's own schema does not have, and every argument that `application` does not take.
"""

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from fmray.core.config import Config, did_you_mean, dump, load_config
from fmray.core.errors import ConfigError
from fmray.serve import application as app
from fmray.serve.admission import Waiver, admit
from fmray.serve.deploy import ready
from fmray.serve.deployment import DeployConfig, ModelSpec
from fmray.serve.judge import Canary
from fmray.serve.operation import Operation
from fmray.serve.specs import specs_of

if TYPE_CHECKING:
    from ray.serve import Application

IMPORT_PATH = "fmray.serve.manifest:application"


class WaiverArgs(Config):
    """Who lets a model be served without an admitting decision, and why."""

    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class ModelArgs(Config):
    """One model: its directory, as every node sees it, with the decision that admits it (None: one that lies beside it)."""

    name: str = Field(min_length=1)
    path: str
    decision: str | None = None
    waiver: WaiverArgs | None = None


class AppArgs(Config):
    """The `args` of the application: what `deploy` would be given."""

    models: tuple[ModelArgs, ...] = Field(min_length=1)
    config: DeployConfig = DeployConfig()
    feedback: str | None = None
    request_log: str | None = None


def application(args: dict[str, Any]) -> "Application":
    """What Serve calls in the cluster: the models are held to the gate there, by the digest of the files that lie there then.

    Raises:
        ArtifactError: an adapter is not what was admitted, or of another base.
        ConfigError: an argument that is not known, or a host that needs API keys.
        GateRefused: a model has neither an admitting decision nor a waiver.
    """
    wanted = load_config(AppArgs, args, where="args")
    admissions = []
    for model in wanted.models:
        waiver = Waiver(by=model.waiver.by, reason=model.waiver.reason) if model.waiver is not None else None
        admissions.append(admit(Path(model.path), decision=Path(model.decision) if model.decision else None, waiver=waiver))
    operation = Operation(feedback=wanted.feedback, request_log=wanted.request_log, log_prompts=wanted.config.log_prompts)
    specs = specs_of(admissions, [model.name for model in wanted.models], wanted.config.adapters)
    return app.build(specs, wanted.config, operation, ready(wanted.config))


def write(specs: tuple[ModelSpec, ...], canaries: tuple[Canary, ...], decisions: Mapping[str, str | None], config: DeployConfig, operation: Operation) -> str:
    """The YAML for these models.

    Args:
        decisions: the path of the decision that admits each model, by name.

    Raises:
        ConfigError: there is a canary, whose traffic the registry steers and no file.
    """
    if canaries:
        raise ConfigError("a canary is under way", where=canaries[0].name, todo="let it be decided, or use fmray promote or rollback, and print the config then")
    models = []
    for spec in specs:
        waiver = spec.card["waiver"]
        models.append({"name": spec.name, "path": spec.path, "decision": decisions.get(spec.name)} | ({"waiver": waiver} if waiver else {}))
    adapters = {spec.name: spec.base for spec in specs if spec.base is not None}
    args = {"models": models, "config": dump(config) | {"adapters": adapters}, "feedback": operation.feedback, "request_log": operation.request_log}
    scale, cpus = app.scale_of(config), {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    deployments = [{"name": name, **scale, "ray_actor_options": cpus} for name in app.model_deployments([(s.name, s.base) for s in specs], config)]
    deployments.append({"name": "face", "num_replicas": app.faces(config), "ray_actor_options": {"num_cpus": app.FACE_CPUS, "num_gpus": 0.0}})
    text = yaml.safe_dump(
        {
            "proxy_location": "EveryNode",
            "http_options": {"host": config.host, "port": config.port or 8000},
            "applications": [{"name": config.app, "route_prefix": config.route, "import_path": IMPORT_PATH, "args": args, "deployments": deployments}],
        },
        sort_keys=False, allow_unicode=True,
    )  # fmt: skip
    read(text, where="--print-config")
    return text


def read(text: str, where: str) -> dict[str, Any]:
    """A Serve config, held to Serve's schema and, for applications of ours, to their arguments.

    Raises:
        ConfigError: no YAML, a key that Serve does not know, or a value that it does not take.
    """
    from ray.serve.schema import ServeDeploySchema

    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"is no YAML ({str(error).splitlines()[0]})", where=where) from None
    if not isinstance(plain, dict):
        raise ConfigError("is no mapping", where=where, todo="give the file that fmray serve --print-config prints")
    _known(ServeDeploySchema, plain, where)
    try:
        ServeDeploySchema.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(first["msg"].removeprefix("Value error, "), where=".".join([where, *map(str, first["loc"])])) from None
    for number, item in enumerate(plain["applications"]):
        if item["import_path"] == IMPORT_PATH:
            place = f"{where}.applications.{number}"
            wanted = load_config(AppArgs, item.get("args") or {}, where=f"{place}.args")
            bases = [(model.name, wanted.config.adapters.get(model.name)) for model in wanted.models]
            names = [*app.model_deployments(bases, wanted.config), "face"]
            for deployment in item.get("deployments") or ():
                if deployment["name"] not in names:
                    raise ConfigError(f"there is no deployment '{deployment['name']}'{did_you_mean(deployment['name'], names)}", where=f"{place}.deployments")
    return plain


def _known(schema: type[BaseModel], value: Any, where: str) -> None:
    """Raises ConfigError for the first key, at any depth, that the schema does not have."""
    if not isinstance(value, dict):
        return
    names = {alias: field for name, field in schema.model_fields.items() for alias in (name, field.alias) if alias}
    for key, item in value.items():
        if key not in names:
            raise ConfigError(f"Ray Serve has no field '{key}'{did_you_mean(str(key), names)}", where=where)
        for nested in _models(names[key].annotation):
            for number, part in enumerate(item if isinstance(item, list) else [item]):
                _known(nested, part, f"{where}.{key}" + (f".{number}" if isinstance(item, list) else ""))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The model classes that an annotation takes."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]
