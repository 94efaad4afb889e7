"""Prometheus figures through Ray: each Serve node's metrics port exports them as `ray_fmray_...`, by model."""

import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from fmray.serve.engine import RequestError

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]
ENGINE_PERIOD_S = 2.0
# Of the names of models' deployments.
DEPLOYMENT_PREFIX = "model-"


class Meters:
    """What the HTTP face counts. `model` is a served name, or `unknown`: a client's invented names must not become series."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        model = ("model",)
        self.requests = Counter("fmray_requests", "requests answered, by route and status", ("model", "route", "status"))
        self.seconds = Histogram("fmray_request_seconds", "from the request's arrival to the end of its answer", SECONDS, ("model", "route"))
        self.prompt_tokens = Counter("fmray_prompt_tokens", "tokens of prompts and inputs, as usage counts them", model)
        self.completion_tokens = Counter("fmray_completion_tokens", "tokens generated; a stream without usage counts its pieces", model)
        self.first_token = Histogram("fmray_time_to_first_token_seconds", "to the first piece of a stream", SECONDS, model)
        self.inter_token = Histogram("fmray_inter_token_seconds", "between two pieces of a stream", SECONDS, model)
        self.in_flight = Gauge("fmray_requests_in_flight", "requests that a face is answering now", model)


def refusals() -> Callable[[RequestError], None]:
    """Counts what the guard turns away, by why. Whose it was is not told: it may have been anybody."""
    from ray.util.metrics import Counter

    counter = Counter("fmray_refused_requests", "requests turned away before the routes: keys, rates, bodies, too many at once", ("code",))
    return lambda error: counter.inc(1, {"code": str(error.code)})


@runtime_checkable
class Loaded(Protocol):
    """An engine that can say how busy it is. vLLM exports such figures by itself."""

    def load(self) -> dict[str, float]:
        """`running` and `waiting` requests, and `cache_use` between 0 and 1."""


def watch_engine(engine: object, model: str | None = None) -> Callable[[], object]:
    """Exports the load of this replica's engine, if it tells it, every two seconds until the function that it gives is called.

    An engine outside of Ray Serve, as tests and benchmarks hold one, has no model's name to be counted under and is not watched.

    Args:
        model: the name that it is counted under; None takes the deployment's.
    """
    gone = threading.Event()
    if not isinstance(engine, Loaded):
        return gone.set
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.util.metrics import Gauge

    try:
        name = model or serve.get_replica_context().deployment.removeprefix(DEPLOYMENT_PREFIX)
    except RayServeException:
        return gone.set
    gauges: dict[str, Any] = {
        "running": Gauge("fmray_engine_running_requests", "requests in the engine's batch; inputs of a head that reads whole ones", ("model",)),
        "waiting": Gauge("fmray_engine_waiting_requests", "requests, or inputs, in the engine's queue", ("model",)),
        "cache_use": Gauge("fmray_engine_cache_use", "share of the key-value cache's pages that is taken", ("model",)),
    }

    def watch() -> None:
        while not gone.wait(ENGINE_PERIOD_S):
            for figure, value in engine.load().items():
                gauges[figure].set(value, {"model": name})
        for gauge in gauges.values():
            gauge.set(0.0, {"model": name})

    threading.Thread(target=watch, daemon=True, name="fmray-engine-meter").start()
    return gone.set
