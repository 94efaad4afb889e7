"""Builds the Ray Serve application and brings it up on the cluster in use, or takes it down."""

import contextlib
import logging
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmray.cluster import is_private
from fmray.cluster import require as require_on_cluster
from fmray.core.config import dump
from fmray.core.errors import ResourceError, RunError
from fmray.serve.deployment import DeployConfig, ModelSpec
from fmray.serve.judge import CanaryJudge
from fmray.serve.limits import Limits, rated
from fmray.serve.meters import DEPLOYMENT_PREFIX
from fmray.serve.operated import OperatedFace
from fmray.serve.operation import Operation
from fmray.serve.pool import POOL, PooledReplica, adapters_of
from fmray.serve.protection import MAX_OPEN, Protection
from fmray.serve.replicas import TASK_BATCH, GenerationReplica, TaskReplica

if TYPE_CHECKING:
    from ray.serve import Application

FACE_CPUS = 0.1
# Serve replaces a replica after three checks that failed. Until then a dead engine, which refuses at once, draws requests.
HEALTH_PERIOD_S = 2.0
POLL_S = 0.2
ERROR_LINE = re.compile(r"^[\w.]*(Error|Exception)\b")


@dataclass(frozen=True)
class Instance:
    """The one Ray Serve of a cluster: its base URL, and whether this process started it."""

    url: str
    ours: bool


def build(specs: Sequence[ModelSpec], config: DeployConfig, operation: Operation, protection: Protection) -> "Application":
    """One deployment for each model, or with `max_loaded` one for all, and the HTTP face before them, with a judge beside it while there
    are canaries, and what counts for all replicas of the face where rates are limited. Adapters are in their base's deployment.
    """
    from ray import serve

    def deployment(replica: type[Any], name: str, scale: dict[str, Any], cpus: float, gpus: float, at_once: int) -> Any:
        return serve.deployment(
            name=name,
            **scale,
            max_ongoing_requests=at_once,
            max_constructor_retry_count=1,  # a model that cannot be opened cannot be opened the third time either
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=config.deadline_s if config.drain_s is None else config.drain_s,
            health_check_period_s=HEALTH_PERIOD_S,
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        )(replica)

    # More than a replica takes: it counts what is under way itself, and tells the rest to come back later.
    at_once = config.max_requests + config.max_queued + TASK_BATCH + 64

    def models(replica: type[Any], name: str, n_held: int = 1) -> Any:
        return deployment(replica, name, scale_of(config), config.num_cpus, config.num_gpus, n_held * at_once)

    def model(spec: ModelSpec) -> Any:
        name = DEPLOYMENT_PREFIX + spec.name
        if spec.head != "causal_lm":
            return models(TaskReplica, name).bind(spec.path, spec.head, config)
        return models(GenerationReplica, name).bind(spec.path, config, adapters_of(spec.name, specs))

    if config.max_loaded is not None:
        pool = models(PooledReplica, POOL, config.max_loaded).bind(tuple(specs), config)
        own = {spec.name: pool for spec in specs}
    else:
        own = {spec.name: model(spec) for spec in specs if spec.base is None}
    judge = deployment(CanaryJudge, "judge", {"num_replicas": 1}, 0.0, 0.0, 256).bind(operation.canaries) if operation.canaries else None
    limits = deployment(Limits, "limits", {"num_replicas": 1}, 0.0, 0.0, 2 * MAX_OPEN).bind() if rated(protection) else None
    face = deployment(serve.ingress()(OperatedFace), "face", {"num_replicas": faces(config)}, FACE_CPUS, 0.0, 2 * MAX_OPEN)
    handles = (own[spec.base or spec.name] for spec in specs)
    pooled = config.max_loaded is not None
    application: Application = face.bind(operation, judge, tuple(specs), *handles, protection=protection, limits=limits, pooled=pooled)
    return application


def model_deployments(models: Sequence[tuple[str, str | None]], config: DeployConfig) -> list[str]:
    """The names of the deployments that hold models, each given by its name and its base."""
    return [POOL] if config.max_loaded is not None else [DEPLOYMENT_PREFIX + name for name, base in models if base is None]


def scale_of(config: DeployConfig) -> dict[str, Any]:
    """What Serve is told of a model's number of replicas."""
    return {"num_replicas": config.num_replicas} if config.autoscaling is None else {"autoscaling_config": dump(config.autoscaling)}


def faces(config: DeployConfig) -> int:
    """Replicas of the face: two where models have two, so that an upgrade never leaves a moment without one."""
    return min(2, config.least_replicas)


def require(specs: Sequence[ModelSpec], config: DeployConfig) -> None:
    """Waits for the resources of the application. Raises ResourceError naming what the cluster lacks."""
    n_deployments = len(model_deployments([(spec.name, spec.base) for spec in specs], config))
    bundle = {"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if config.num_gpus else {})
    require_on_cluster([{"CPU": FACE_CPUS}] * faces(config) + [bundle] * n_deployments * config.least_replicas, wait_s=min(60.0, config.start_timeout_s))


def start(host: str, port: int | None) -> Instance:
    """The cluster's Ray Serve: the one that runs, else a new one on `port` (None: a free one on a private Ray, 8000 on a cluster).

    Raises:
        ResourceError: the port is in use, or Serve already listens on another one.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    # Serve has no public way to ask where it listens.
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        running = client.http_config
        if port is not None and running.port != port:
            todo = f"use port {running.port}, or stop Serve on this cluster first"
            raise ResourceError(f"Ray Serve already listens on port {running.port} of this cluster", where=f"port {port}", todo=todo)
        return Instance(_url(running.host, running.port), ours=False)
    if port is None:
        port = free_port(host) if is_private() else 8000
    check_port(host, port)
    serve.start(http_options={"host": host, "port": port})
    return Instance(_url(host, port), ours=True)


def _url(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):
        from ray.util import get_node_ip_address

        host = str(get_node_ip_address())
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_port(host: str, port: int) -> None:
    """Raises ResourceError when nothing new can listen there."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot listen on {host}:{port} ({reason})", where=f"port {port}", todo="choose another port") from None


def free_port(host: str) -> int:
    """A port that is free now."""
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


def bring_up(application: "Application", config: DeployConfig) -> None:
    """Deploys the application and waits until every replica is ready. One of this name that is up is upgraded by rolling.

    Raises:
        ResourceError: another application has its route.
        RunError: a replica failed to start, or it took longer than `start_timeout_s`. What was up before is left up.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ApplicationStatus, LoggingConfig

    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    upgrade = is_up(config.app)
    target = serve.RunTarget(application, name=config.app, route_prefix=config.route, logging_config=quiet)
    try:
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except RayServeException as error:
        todo = "give another route, or take that application down"
        raise ResourceError(str(error).strip().splitlines()[-1], where=f"application {config.app}", todo=todo) from None
    deadline = time.monotonic() + config.start_timeout_s
    while True:
        state = serve.status().applications.get(config.app)
        if state is not None and state.status == ApplicationStatus.RUNNING:
            return
        failed = state is not None and state.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
        if failed or time.monotonic() > deadline:
            what = "did not start" if failed else f"was not ready after {config.start_timeout_s:g} s"
            said = _messages(state)
            logging.getLogger("ray.serve").info("application %s %s:\n%s", config.app, what, "\n".join(said))
            if upgrade:
                todo = "the version before goes on answering: mend this one, or deploy that one again"
                raise RunError(f"{what}: {_reason(said)}", where=f"application {config.app}", todo=todo)
            take_down(config.app)
            raise RunError(f"{what}: {_reason(said)}", where=f"application {config.app}")
        time.sleep(POLL_S)


def is_up(app: str) -> bool:
    """Whether the application is still deployed."""
    from ray import serve

    return app in serve.status().applications


def _messages(state: Any) -> list[str]:
    """What Serve says of an application and then of its deployments, by name."""
    if state is None:
        return []
    said = [state.message, *(d.message and f"{name}: {d.message}" for name, d in state.deployments.items())]
    return [message for message in said if message]


def _reason(messages: list[str]) -> str:
    """The last error, which stands below its traceback."""
    for message in reversed(messages):
        errors = [line.strip() for line in message.splitlines() if ERROR_LINE.match(line.strip())]
        if errors:
            return f"{message.partition(':')[0]}: {errors[-1]}"
    return messages[-1] if messages else "Serve gives no reason"


def take_down(app: str) -> None:
    """Removes the application, if it is there."""
    from ray import serve

    with contextlib.suppress(KeyError):
        serve.delete(app)


def stop() -> None:
    """Ends the cluster's Ray Serve."""
    from ray import serve

    serve.shutdown()
