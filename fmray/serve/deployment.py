"""What is deployed: the stage's config, its inputs, what a replica must know of a model, and the Deployment payload."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmray.core.artifact import Artifact, Payload
from fmray.core.config import Config, runtime
from fmray.core.report import Decision, Metric
from fmray.model.checkpoint import Checkpoint, Head
from fmray.serve.canary import CanaryConfig


class Autoscaling(Config):
    """How many replicas of each model run, by the requests that each is answering."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(ge=1)
    target_ongoing_requests: float = Field(8.0, gt=0, description="requests that each replica should be answering at once")
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    look_back_period_s: float = Field(30.0, gt=0, description="over which the requests are averaged")

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}")
        return self


class DeployConfig(Config):
    """How the models are served and tried. One value holds for every model of the application."""

    app: str = Field("fmray", pattern=r"^[A-Za-z0-9._-]+$", description="name of the Ray Serve application")
    route: str = Field("/", pattern=r"^/[A-Za-z0-9._/-]*$", description="path below which the application answers")
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["transformers", "vllm"] = Field("transformers", description="what generates text; vllm needs a GPU and its own package")
    num_replicas: int = Field(1, ge=1, description="replicas of each model")
    smoke_prompts: tuple[str, ...] = Field(("Return the", "This module provides", "Raise an error if"), min_length=1)
    smoke_requests: int = Field(8, ge=1, description="measured requests to each model")
    smoke_max_tokens: int = Field(16, ge=1, description="tokens of each measured completion")
    canary: CanaryConfig | None = Field(None, description="a new version takes a share of the traffic, and must show itself, before it is the champion")
    adapters: dict[str, str] = Field({}, description="models that are served as low-rank adapters on the weights of another one: {name: base}")
    max_loaded: int | None = runtime(None, ge=1, description="models that a replica holds at once, loaded when asked for; None: each has replicas of its own")
    autoscaling: Autoscaling | None = runtime(None, description="in the place of a fixed num_replicas")
    drain_s: float | None = runtime(None, ge=0, description="that a replica which is replaced may take to finish its answers; None: deadline_s")
    log_prompts: bool = runtime(False, description="whether the request log holds the text of requests")
    host: str = runtime("127.0.0.1")
    port: int | None = runtime(None, ge=1, le=65535)
    num_cpus: float = runtime(0.5, gt=0)
    num_gpus: float = runtime(0.0, ge=0)
    cache_tokens: int = runtime(4096, ge=64)
    max_requests: int = runtime(32, ge=1)
    max_queued: int = runtime(128, ge=0)
    max_prompt_tokens: int | None = runtime(None, ge=1)
    max_new_tokens: int | None = runtime(None, ge=1)
    max_body_mb: float = runtime(2.0, gt=0)
    deadline_s: float = runtime(300.0, gt=0)
    api_keys: str | None = runtime(None)
    open_to_all: bool = runtime(False)
    requests_per_min: int | None = runtime(None, ge=1, description="of each key (without keys: of everyone together), over all replicas")
    start_timeout_s: float = runtime(300.0, gt=0)

    @property
    def least_replicas(self) -> int:
        """Replicas of each model that there are in any case."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.min_replicas

    @model_validator(mode="after")
    def _held_by_the_engine(self) -> "DeployConfig":
        if self.adapters and self.engine == "vllm":
            raise ValueError("adapters: the engine vllm takes none here; use the engine transformers")
        if self.adapters and self.canary is not None:
            raise ValueError("adapters: a canary is of a model with weights of its own; leave one of the two out")
        if self.max_loaded is not None and self.engine == "vllm":
            raise ValueError("max_loaded: the engine vllm keeps its model as long as its replica lives; use the engine transformers")
        return self

    def identity(self) -> dict[str, Any]:
        """Without a canary and adapters, that of a deployment from before there were any."""
        return {key: value for key, value in super().identity().items() if key not in ("canary", "adapters") or value}


@dataclass(frozen=True)
class ServedModel:
    """A checkpoint with the decision that admits it."""

    checkpoint: Artifact[Checkpoint]
    decision: Artifact[Decision]


@dataclass(frozen=True)
class ModelSpec:
    """What a replica and the HTTP face must know of a model. `card` is shown at /metadata: record, decision, waiver. `base` names the
    served model on whose weights this one is an adapter; None: it has weights of its own.
    """

    name: str
    path: str
    head: Head
    fingerprint: str | None
    digest: str
    card: dict[str, Any]
    base: str | None = None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeployedModel(_Frozen):
    """One model of a deployment. `path` and `decision_path` are relative to the deployment's directory; `base` as in `ModelSpec`."""

    name: str
    fingerprint: str
    digest: str
    head: Head
    path: str
    decision_path: str
    base: str | None = None


class Sample(_Frozen):
    """One smoke request: what was asked, what came back, and how long it took."""

    model: str
    prompt: str
    answer: str
    latency_ms: float


class Deployment(Payload, kind="deployment"):
    """Models behind one Ray Serve application, with what their smoke requests measured.

    `live` False: it was tried on a private local Ray and taken down again; `serve_command` brings it back. `canary`: how its
    versions enter service; which of them do is the registry's to say.
    """

    app: str
    route: str
    url: str | None
    live: bool
    replicas: int
    models: tuple[DeployedModel, ...]
    metrics: tuple[Metric, ...]
    samples: tuple[Sample, ...]
    start_s: float
    serve_command: str
    canary: dict[str, Any] | None = None
