"""The deployments behind the HTTP face, each around its engine. Errors of a request are handed back as values."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmray.model.checkpoint import Head
from fmray.serve.deployment import DeployConfig
from fmray.serve.engine import (
    Answer,
    Completion,
    Embeddable,
    Embedding,
    Generation,
    GenerationEngine,
    Input,
    Piece,
    Prompt,
    RequestError,
    Sampling,
    TaskEngine,
    TokenLogprob,
)
from fmray.serve.engines import generation_engine, task_engine
from fmray.serve.meters import watch_engine

# Inputs of one forward pass, and how long the first waits for others.
TASK_BATCH = 32
TASK_WAIT_S = 0.005
RETRY_AFTER_S = 1
# Keeps the seeds of a request's choices apart.
SEED_STEP = 0x9E3779B97F4A7C15

Told = tuple[int, Piece]


def _quiet() -> None:
    """Keeps transformers' progress bars out of the log."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class _Room:
    """How many answers are under way, and how many may be: beyond it a request is told to come back later."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    @contextlib.contextmanager
    def hold(self, n: int) -> Iterator[None]:
        """Room for `n` answers while the block runs. Raises RequestError: 400 for more than ever fit, 429 when they do not fit now."""
        if n > self.limit:
            raise RequestError(400, f"asks for {n} answers at once; this server takes {self.limit}", param="n")
        if self.taken + n > self.limit:
            raise RequestError(429, "the model's queue is full: try again later", code="queue_full", retry_after_s=RETRY_AFTER_S)
        self.taken += n
        try:
            yield
        finally:
            self.taken -= n


class _Batches:
    """A room whose inputs are taken a batch at a time, as a meter reads it."""

    def __init__(self, room: _Room) -> None:
        self._room = room

    def load(self) -> dict[str, float]:
        """Inputs in the batch and behind it."""
        taken = self._room.taken
        return {"running": min(taken, TASK_BATCH), "waiting": max(0, taken - TASK_BATCH)}


def _failed(error: Exception) -> RequestError:
    """What a client is told of a fault of the engine, which is logged with its traceback."""
    logging.getLogger("ray.serve").error("the engine failed", exc_info=error)
    return RequestError(500, f"the engine failed ({type(error).__name__})")


def _too_late(deadline_s: float) -> RequestError:
    return RequestError(408, f"the answer was not ready within this server's deadline of {deadline_s:g} s", code="deadline_exceeded")


class GenerationReplica:
    """Continues text, with a model or with one of the adapters on it.

    `adapters` are the directories of these by name. `model` is the name under which the engine's load is counted where it is not the
    deployment's.
    """

    def __init__(self, path: str, config: DeployConfig, adapters: Mapping[str, str] | None = None, *, model: str | None = None) -> None:
        _quiet()
        self._engine: GenerationEngine = generation_engine(Path(path), config, {name: Path(folder) for name, folder in (adapters or {}).items()})
        self._config = config
        self._room = _Room(config.max_requests + config.max_queued)
        self._unwatch = watch_engine(self._engine, model)

    def close(self) -> None:
        """Ends the engine and frees its memory; for a replica that ends with its process there is no need."""
        self._unwatch()
        self._engine.close()
        del self._engine

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces this replica when it raises."""
        self._engine.health()

    async def describe(self) -> dict[str, Any]:
        """What /v1/models shows of the model beyond its name."""
        self._engine.health()
        return {"max_model_len": self._engine.max_model_len}

    async def load(self) -> int:
        """Answers under way or waiting in this replica."""
        return self._room.taken

    async def complete(self, asked: Generation) -> list[Completion] | RequestError:
        """Every choice, in order: `n` for the first prompt, then for the next. An error of one is the error of all."""
        try:
            rows = await self._encode(asked)
            choices: list[list[Piece]] = [[] for _ in range(len(rows) * asked.n)]
            with self._room.hold(len(choices)):
                async for told in self._run(rows, asked, stream=False):
                    for index, piece in told:
                        choices[index].append(piece)
            return [_joined(pieces, len(rows[index // asked.n])) for index, pieces in enumerate(choices)]
        except RequestError as error:
            return error

    async def stream(self, asked: Generation) -> AsyncGenerator[int | list[Told] | RequestError, None]:
        """The number of prompt tokens, then the pieces of the choices as they come; an error ends it."""
        try:
            rows = await self._encode(asked)
            with self._room.hold(len(rows) * asked.n):
                # What is refused is refused before this: with it the answer begins, and its status is settled.
                yield sum(len(row) for row in rows)
                async with contextlib.aclosing(self._run(rows, asked, stream=True)) as running:
                    async for told in running:
                        yield told
        except RequestError as error:
            yield error

    async def embed(self, inputs: Sequence[Embeddable], adapter: str | None = None) -> list[Embedding] | RequestError:
        """A vector of each input; an error of one is the error of all."""
        try:
            rows = [self._embeddable(one, adapter) for one in inputs]
            with self._room.hold(len(rows)):
                async with asyncio.timeout(self._config.deadline_s):
                    return await self._engine.embed(rows, adapter)
        except RequestError as error:
            return error
        except TimeoutError:
            return _too_late(self._config.deadline_s)

    def _embeddable(self, one: Embeddable, adapter: str | None) -> list[int]:
        if one.truncate:
            raise RequestError(400, "this model's engine does not truncate: shorten the input", param="truncate", code="unsupported_parameter")
        prompt: Prompt = one.text if isinstance(one.text, str) else list(one.text)
        try:
            return self._engine.encode(prompt, 0, adapter)
        except RequestError as error:
            error.param = "input"
            raise

    async def _encode(self, asked: Generation) -> list[list[int]]:
        limit, max_tokens = self._config.max_new_tokens, asked.sampling.max_tokens
        if limit is not None and max_tokens is not None and max_tokens > limit:
            raise RequestError(400, f"this server gives at most {limit} tokens an answer", param="max_tokens")
        await self._engine.check(asked.sampling, asked.adapter)
        rows = [self._engine.encode(prompt, max_tokens, asked.adapter) for prompt in asked.prompts]
        longest = max(len(row) for row in rows)
        if self._config.max_prompt_tokens is not None and longest > self._config.max_prompt_tokens:
            message = f"this server takes prompts of at most {self._config.max_prompt_tokens} tokens, and one has {longest}"
            raise RequestError(400, message, param="prompt", code="context_length_exceeded")
        return rows

    async def _run(self, rows: list[list[int]], asked: Generation, *, stream: bool) -> AsyncGenerator[list[Told], None]:
        """The pieces of all choices as they come. Leaving it (the client left, one choice failed, time is up) cancels them all."""
        sampling = asked.sampling
        if sampling.max_tokens is None and self._config.max_new_tokens is not None:
            room = self._engine.max_model_len - max(len(row) for row in rows)
            sampling = dataclasses.replace(sampling, max_tokens=min(self._config.max_new_tokens, room))
        queue: asyncio.Queue[Told | RequestError] = asyncio.Queue()
        n_open = len(rows) * asked.n
        timer = asyncio.get_running_loop().call_later(self._config.deadline_s, queue.put_nowait, _too_late(self._config.deadline_s))
        feeding = asyncio.create_task(self._feed_all(rows, asked, sampling, queue, stream=stream))
        try:
            while n_open:
                told = [await queue.get()]
                while not queue.empty():
                    told.append(queue.get_nowait())
                pieces = []
                for one in told:
                    if isinstance(one, RequestError):
                        raise one
                    pieces.append(one)
                    n_open -= one[1].finish_reason is not None
                yield pieces
        finally:
            timer.cancel()
            feeding.cancel()

    async def _feed_all(self, rows: list[list[int]], asked: Generation, sampling: Sampling, queue: "asyncio.Queue[Told | RequestError]", *, stream: bool) -> None:
        """Runs every choice side by side and puts what they give into the queue, the first failure too."""
        try:
            scored: list[tuple[TokenLogprob, ...]] = [()] * len(rows)
            if asked.echo and sampling.logprobs is not None:
                scored = await self._engine.score(rows, sampling.logprobs, asked.adapter)
            async with asyncio.TaskGroup() as group:
                for index in range(len(rows) * asked.n):
                    row, choice = divmod(index, asked.n)
                    if asked.echo:
                        prompt = asked.prompts[row]
                        text = prompt if isinstance(prompt, str) else self._engine.decode(rows[row])
                        queue.put_nowait((index, Piece(text, 0, None, scored[row])))
                    group.create_task(self._feed(index, rows[row], _seeded(sampling, choice), asked.adapter, queue, stream=stream))
        except* RequestError as errors:
            queue.put_nowait(_first(errors))
        except* Exception as errors:
            queue.put_nowait(_failed(_first(errors)))

    async def _feed(
        self, index: int, row: list[int], sampling: Sampling, adapter: str | None, queue: "asyncio.Queue[Told | RequestError]", *, stream: bool
    ) -> None:
        if sampling.max_tokens == 0:
            queue.put_nowait((index, Piece("", 0, "length")))
            return
        last = None
        async for last in self._engine.generate(row, sampling, stream=stream, adapter=adapter):
            queue.put_nowait((index, last))
        if last is None or last.finish_reason is None:
            raise RequestError(500, "the engine ended the answer without a reason")


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    found: Any = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of one choice: the first has the request's own seed, so that it is what a request for one would get."""
    if sampling.seed is None or choice == 0:
        return sampling
    return dataclasses.replace(sampling, seed=(sampling.seed + choice * SEED_STEP) % 2**63)


def _joined(pieces: list[Piece], n_prompt_tokens: int) -> Completion:
    text = "".join(piece.text for piece in pieces)
    logprobs = tuple(one for piece in pieces for one in piece.logprobs)
    last = pieces[-1]
    assert last.finish_reason is not None
    return Completion(text, n_prompt_tokens, last.n_tokens, last.finish_reason, logprobs)


def answered(engine: TaskEngine, asked: Sequence[Input]) -> list[Answer | RequestError]:
    """An engine's answers to a batch. An input that it fails on has a RequestError (500) in its place, and costs nobody else's answer."""
    try:
        return engine.answer(asked)
    except Exception as error:
        if len(asked) == 1:
            return [_failed(error)]
    return [answer for one in asked for answer in answered(engine, [one])]


class TaskReplica:
    """Answers whole inputs (classify, tag, fill, answer, summarize, embed), in batches of those that wait at the same moment."""

    def __init__(self, path: str, head: Head, config: DeployConfig) -> None:
        from ray import serve

        _quiet()
        self._engine: TaskEngine = task_engine(Path(path), head, config)
        self._config = config
        self._room = _Room(TASK_BATCH + config.max_queued)

        async def answer(asked: list[Input]) -> list[Answer | RequestError]:
            # In a thread, so that health checks are answered during a long batch.
            return await asyncio.to_thread(answered, self._engine, asked)

        watch_engine(_Batches(self._room))
        self._answer = serve.batch(max_batch_size=TASK_BATCH, batch_wait_timeout_s=TASK_WAIT_S)(answer)

    def close(self) -> None:
        """Ends the engine and frees its memory; for a replica that ends with its process there is no need."""
        self._engine.close()
        del self._engine

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces this replica when it raises."""
        self._engine.health()

    async def describe(self) -> dict[str, Any]:
        """What /v1/models shows of the model beyond its name."""
        return {"max_model_len": self._engine.max_model_len}

    async def load(self) -> int:
        """Inputs under way or waiting in this replica."""
        return self._room.taken

    async def answer(self, asked: Sequence[Input]) -> list[Answer] | RequestError:
        """The answer to each input; an error of one is the error of all."""
        try:
            with self._room.hold(len(asked)):
                async with asyncio.timeout(self._config.deadline_s):
                    answers = await asyncio.gather(*(self._answer(one) for one in asked))
        except RequestError as error:
            return error
        except TimeoutError:
            return _too_late(self._config.deadline_s)
        refused = next((answer for answer in answers if isinstance(answer, RequestError)), None)
        return refused if refused is not None else [answer for answer in answers if not isinstance(answer, RequestError)]

    async def embed(self, asked: Sequence[Embeddable]) -> list[Answer] | RequestError:
        """The same door as a causal model's: see `answer`."""
        return await self.answer(asked)
