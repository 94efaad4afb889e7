"""A deployment that holds a few of many models at a time: one is loaded when it is asked for, in the place of the one asked longest ago."""

import asyncio
import contextlib
import gc
import logging
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from fmray.serve.deployment import DeployConfig, ModelSpec
from fmray.serve.engine import Answer, Completion, Embeddable, Embedding, Generation, Input, RequestError
from fmray.serve.replicas import GenerationReplica, TaskReplica, Told

POOL = "models"
"""The name of the deployment."""
# What requests under way may take beyond their deadline before the model that they ask is ended all the same.
GRACE_S = 10.0


def adapters_of(base: str, specs: Sequence[ModelSpec]) -> dict[str, str]:
    """The directories of the models that are adapters on one, by name."""
    return {spec.name: spec.path for spec in specs if spec.base == base}


class Held:
    """A loaded model, and how many requests it is answering.

    Ray Serve ends the model that was asked longest ago by calling `__del__` in a thread, and loads the next one when that is done: there
    are never more models in memory than `max_loaded`.
    """

    def __init__(self, model: GenerationReplica | TaskReplica, wait_s: float) -> None:
        self.model: Any = model
        self._wait_s = wait_s
        self._users, self._ending = 0, False
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """Begins a request; False where the model is being ended."""
        with self._changed:
            self._users += not self._ending
            return not self._ending

    def leave(self) -> None:
        """Ends a request that `enter` began."""
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def check_health(self) -> None:
        """Raises when the model can answer no more."""
        with self._changed:
            if not self._ending:
                self.model.check_health()

    def __del__(self) -> None:
        """Ends the model, once its requests have their answers."""
        with self._changed:
            if self._ending:
                return
            self._ending = True
            self._changed.wait_for(lambda: not self._users, self._wait_s)
        self.model.close()
        del self.model
        gc.collect()  # an engine and its manager know each other, so counting references frees neither


class PooledReplica:
    """Answers for any of the models, by the id that Serve routed the request with; at most `max_loaded` are in memory.

    An adapter is in its base's engine, and the id is the base's.
    """

    def __init__(self, specs: tuple[ModelSpec, ...], config: DeployConfig) -> None:
        from ray import serve

        assert config.max_loaded is not None
        self._specs = {spec.name: spec for spec in specs}
        self._config = config
        self._held: weakref.WeakValueDictionary[str, Held] = weakref.WeakValueDictionary()
        self._lengths: dict[str, int] = {}

        async def load(name: str) -> Held:
            # In a thread, so that the other models answer meanwhile.
            held = Held(await asyncio.to_thread(self._open, name), config.deadline_s + GRACE_S)
            self._lengths[name] = (await held.model.describe())["max_model_len"]
            self._held[name] = held
            return held

        self._load = serve.multiplexed(max_num_models_per_replica=config.max_loaded)(load)

    def _open(self, name: str) -> GenerationReplica | TaskReplica:
        spec = self._specs[name]
        if spec.head == "causal_lm":
            return GenerationReplica(spec.path, self._config, adapters_of(name, tuple(self._specs.values())), model=name)
        return TaskReplica(spec.path, spec.head, self._config)

    @contextlib.asynccontextmanager
    async def _model(self) -> AsyncIterator[Any]:
        """The model that this request is for, held while the block runs. Raises RequestError (503) when it cannot be loaded."""
        from ray import serve

        name = serve.get_multiplexed_model_id()
        while True:
            try:
                # A client who leaves must not leave a model behind that is half loaded: nobody would end it.
                held: Held = await asyncio.shield(asyncio.ensure_future(self._load(name)))
            except Exception as error:
                logging.getLogger("ray.serve").error("the model %s cannot be loaded", name, exc_info=error)
                raise RequestError(503, f"the model '{name}' cannot be loaded ({type(error).__name__})", code="model_not_loaded") from error
            if held.enter():
                break
        try:
            yield held.model
        finally:
            held.leave()

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces this replica when it raises."""
        for held in list(self._held.values()):
            held.check_health()

    async def describe(self) -> dict[str, Any]:
        """What /v1/models shows of the model beyond its name. It is not loaded for that."""
        from ray import serve

        name = serve.get_multiplexed_model_id()
        held = self._held.get(name)
        if held is None or not held.enter():
            return {"max_model_len": self._lengths.get(name), "loaded": False}
        try:
            return await held.model.describe() | {"loaded": True}
        finally:
            held.leave()

    async def complete(self, asked: Generation) -> list[Completion] | RequestError:
        """See `GenerationReplica.complete`."""
        return await self._asked("complete", asked)

    async def embed(self, asked: Sequence[Embeddable], *adapter: str) -> list[Embedding] | list[Answer] | RequestError:
        """See `GenerationReplica.embed`, and of an encoder `TaskReplica.embed`, which knows no adapter."""
        return await self._asked("embed", asked, *adapter)

    async def answer(self, asked: Sequence[Input]) -> list[Answer] | RequestError:
        """See `TaskReplica.answer`."""
        return await self._asked("answer", asked)

    async def _asked(self, method: str, *asked: Any) -> Any:
        try:
            async with self._model() as model:
                return await getattr(model, method)(*asked)
        except RequestError as error:
            return error

    async def stream(self, asked: Generation) -> AsyncGenerator[int | list[Told] | RequestError, None]:
        """See `GenerationReplica.stream`."""
        try:
            async with self._model() as model, contextlib.aclosing(model.stream(asked)) as running:
                async for told in running:
                    yield told
        except RequestError as error:
            yield error
