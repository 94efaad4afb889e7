"""The deployments behind the HTTP face: one class a head, each around its engine. Errors of a request are handed back as values."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from fmray.serve.deployment import DeployConfig
from fmray.serve.engine import Completion, GenerationEngine, Piece, RequestError, Sampling, Scores
from fmray.serve.engines.classification import Classification
from fmray.serve.engines.continuous import ContinuousBatching
from fmray.serve.meters import watch_engine

Prompt = str | list[int]

# Texts of one forward pass, and how long the first waits for others.
CLASSIFY_BATCH = 32
CLASSIFY_WAIT_S = 0.005


def _device(config: DeployConfig) -> str:
    return "cuda" if config.num_gpus > 0 else "cpu"


def _quiet() -> None:
    """Keeps transformers' progress bars out of the log."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _threads(config: DeployConfig) -> int:
    return max(1, int(config.num_cpus))


class GenerationReplica:
    """Continues text."""

    def __init__(self, path: str, config: DeployConfig) -> None:
        _quiet()
        self._engine: GenerationEngine = ContinuousBatching(
            Path(path), device=_device(config), dtype=config.dtype, threads=_threads(config),
            cache_tokens=config.cache_tokens, max_requests=config.max_requests,
        )  # fmt: skip
        watch_engine(self._engine)

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces this replica when it raises."""
        self._engine.health()

    async def describe(self) -> dict[str, Any]:
        """What /v1/models shows of the model beyond its name."""
        self._engine.health()
        return {"max_model_len": self._engine.max_model_len}

    async def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion] | RequestError:
        """One completion for each prompt, all generated together; an error of one is the error of all."""
        tasks: list[asyncio.Task[Completion]] = []
        try:
            encoded = [self._engine.encode(prompt, sampling.max_tokens) for prompt in prompts]
            tasks = [asyncio.create_task(self._complete(ids, sampling)) for ids in encoded]
            return list(await asyncio.gather(*tasks))
        except RequestError as error:
            return error
        finally:
            # When the client left, or one failed, the others must not go on decoding.
            for task in tasks:
                task.cancel()

    async def _complete(self, prompt_ids: list[int], sampling: Sampling) -> Completion:
        text, last = "", None
        async for piece in self._engine.generate(prompt_ids, sampling, stream=False):
            text, last = text + piece.text, piece
        if last is None or last.finish_reason is None:
            raise RequestError(500, "the engine ended the answer without a reason")
        return Completion(text, len(prompt_ids), last.n_tokens, last.finish_reason)

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[int | Piece | RequestError, None]:
        """The number of prompt tokens, then the pieces of the answer; an error ends it."""
        try:
            ids = self._engine.encode(prompt, sampling.max_tokens)
            yield len(ids)
            async for piece in self._engine.generate(ids, sampling, stream=True):
                yield piece
        except RequestError as error:
            yield error


class ClassificationReplica:
    """Scores texts, in batches of those that wait at the same moment."""

    def __init__(self, path: str, config: DeployConfig) -> None:
        from ray import serve

        _quiet()
        self._engine = Classification(Path(path), device=_device(config), threads=_threads(config))

        async def score(asked: list[tuple[str, bool]]) -> list[Scores | RequestError]:
            # In a thread, so that health checks are answered during a long batch.
            return await asyncio.to_thread(self._engine.classify, [text for text, _ in asked], [cut for _, cut in asked])

        self._score = serve.batch(max_batch_size=CLASSIFY_BATCH, batch_wait_timeout_s=CLASSIFY_WAIT_S)(score)

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces this replica when it raises."""
        self._engine.health()

    async def describe(self) -> dict[str, Any]:
        """What /v1/models shows of the model beyond its name."""
        return {"max_model_len": self._engine.max_model_len}

    async def classify(self, texts: Sequence[str], truncate: bool) -> list[Scores] | RequestError:
        """Scores of each text; an error of one is the error of all."""
        answers = await asyncio.gather(*(self._score((text, truncate)) for text in texts))
        error = next((answer for answer in answers if isinstance(answer, RequestError)), None)
        return error if error is not None else [answer for answer in answers if isinstance(answer, Scores)]
