"""The engines: one adapter file each, and which one serves a head."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fmray.core.errors import ConfigError
from fmray.model.checkpoint import Head
from fmray.serve.deployment import DeployConfig
from fmray.serve.engine import GenerationEngine, TaskEngine
from fmray.serve.engines.answering import Answering
from fmray.serve.engines.classification import Classification
from fmray.serve.engines.continuous import ContinuousBatching
from fmray.serve.engines.embedding import Embedder
from fmray.serve.engines.filling import Filling
from fmray.serve.engines.summarizing import Summarizing
from fmray.serve.engines.tagging import Tagging
from fmray.serve.engines.vllm import Vllm

TASK_ENGINES: dict[Head, Callable[..., TaskEngine]] = {
    "sequence_classification": Classification,
    "token_classification": Tagging,
    "question_answering": Answering,
    "masked_lm": Filling,
    "seq2seq_lm": Summarizing,
    "encoder": Embedder,
}


def _device(config: DeployConfig) -> str:
    return "cuda" if config.num_gpus > 0 else "cpu"


def _threads(config: DeployConfig) -> int:
    return max(1, int(config.num_cpus))


def generation_engine(path: Path, config: DeployConfig, adapters: Mapping[str, Path] | None = None) -> GenerationEngine:
    """The engine that the config names, with a causal model open in it, and with adapters on it: directories of fine-tuned models by name.

    Raises:
        ArtifactError: it is not a causal language model that can be opened, or an adapter does not fit it.
        ConfigError: the engine's own package is not installed, or it takes no adapters.
    """
    if config.engine == "vllm":
        if adapters:
            raise ConfigError("the engine vllm takes no adapters here", where="engine", todo="use the engine transformers")
        return Vllm(path, dtype=config.dtype, cache_tokens=config.cache_tokens, max_requests=config.max_requests)
    return ContinuousBatching(
        path, device=_device(config), dtype=config.dtype, threads=_threads(config),
        cache_tokens=config.cache_tokens, max_requests=config.max_requests, adapters=adapters,
    )  # fmt: skip


def task_engine(path: Path, head: Head, config: DeployConfig) -> TaskEngine:
    """The engine of a head that reads whole inputs, with a model open in it. Raises ArtifactError when it cannot be opened."""
    return TASK_ENGINES[head](path, device=_device(config), threads=_threads(config))
