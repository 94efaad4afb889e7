"""The HTTP face: OpenAI's routes and error bodies over the deployments of the models."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmray.model.checkpoint import Head
from fmray.serve import chat_messages, messages, task_messages
from fmray.serve.deployment import ModelSpec
from fmray.serve.engine import Generation, Input, RequestError
from fmray.serve.meters import refusals
from fmray.serve.protection import Count, Guard, Protection
from fmray.serve.schema import (
    ERRORS,
    CompletionAnswer,
    HealthAnswer,
    ListAnswer,
    MetadataAnswer,
    ModelAnswer,
    ModelsAnswer,
)
from fmray.serve.streams import DONE, ChatChunks, Chunks, CompletionChunks, event

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from ray.serve.handle import DeploymentHandle
    from starlette.responses import Response

HEALTH_TIMEOUT_S = 5.0
# Beyond a request's deadline, which its replica keeps and tells of itself, where there is one.
GRACE_S = 5.0
RETRY_AFTER_S = 1
ROUTES: Mapping[Head, str] = {
    "causal_lm": "/v1/completions",
    "sequence_classification": "/v1/classify",
    "token_classification": "/v1/token-classify",
    "masked_lm": "/v1/fill-mask",
    "question_answering": "/v1/question-answer",
    "seq2seq_lm": "/v1/summarize",
    "encoder": "/v1/embeddings",
}
EMBEDDING: tuple[Head, ...] = ("encoder", "causal_lm")


class Face:
    """The ingress deployment: routes the body's `model` to that model's deployment."""

    def __init__(
        self, specs: tuple[ModelSpec, ...], *handles: "DeploymentHandle[Any]", protection: Protection | None = None,
        limits: "DeploymentHandle[Any] | None" = None, pooled: bool = False,
    ) -> None:  # fmt: skip
        self.protection, self._limits = protection or Protection(), limits
        self.models = {spec.name: (spec, of_model(handle, spec) if pooled else handle) for spec, handle in zip(specs, handles, strict=True)}
        self._about: dict[str, dict[str, Any]] = {}
        self.started = int(time.time())

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Asked by Ray Serve in the replica, once this object is made."""
        return build_api(self)

    @property
    def count(self) -> Count | None:
        """What counts the requests of all replicas, where anybody's rate is limited."""
        return None if self._limits is None else self._limits.take.remote

    def handle(self, name: str, *heads: Head) -> "DeploymentHandle[Any]":
        """The deployment of a model.

        Raises:
            RequestError: 404 for a name that is not served, 400 when the model's head cannot do this task.
        """
        if name not in self.models:
            message = f"the model '{name}' does not exist here; served: {', '.join(self.models)}"
            raise RequestError(404, message, param="model", code="model_not_found")
        spec, handle = self.models[name]
        if spec.head not in heads:
            raise RequestError(400, f"the model '{name}' has a {spec.head} head: ask it at {ROUTES[spec.head]}", param="model")
        return handle

    def adapter(self, name: str) -> str | None:
        """The adapter that a model is on its base's deployment, if it is one."""
        return name if self.models[name][0].base is not None else None

    async def list(self) -> dict[str, Any]:
        """The body of /v1/models: every model, also while it does not answer."""
        return {"object": "list", "data": await asyncio.gather(*(self._listed(name) for name in self.models))}

    async def _listed(self, name: str) -> dict[str, Any]:
        """A model as `describe` has it; one that does not answer as it was last seen, with its health: `down` where its replica
        said so, `unknown` where none said anything."""
        try:
            return await self.describe(name)
        except RequestError as error:
            health = {"health": "unknown" if isinstance(error, NoAnswer) else "down", "fault": error.message}
            return self._known(name) | health

    async def describe(self, name: str) -> dict[str, Any]:
        """One model of /v1/models.

        Raises:
            RequestError: 404 for a name that is not served, 503 when its deployment does not answer.
        """
        if name not in self.models:
            raise RequestError(404, f"the model '{name}' does not exist here", param="model", code="model_not_found")
        self._about[name] = await ask(self.models[name][1].describe.remote(), HEALTH_TIMEOUT_S)
        return self._known(name) | {"health": "ok"}

    def _known(self, name: str) -> dict[str, Any]:
        """What this face knows of a model without asking it."""
        spec = self.models[name][0]
        about = self._about.get(name, {"max_model_len": None})
        return {"id": name, "object": "model", "created": self.started, "owned_by": "fmray", "head": spec.head, "parent": spec.base, **about}

    def metadata(self) -> dict[str, Any]:
        """The body of /metadata: each model's record with the decision or waiver that lets it be served."""
        return {
            "models": [
                {"name": spec.name, "head": spec.head, "fingerprint": spec.fingerprint, "digest": spec.digest, **spec.card}
                for spec, _ in self.models.values()
            ]
        }

    async def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /health: 200 when a replica of every model answers, else 503 with the reasons."""
        answers = await asyncio.gather(*(self.describe(name) for name in self.models), return_exceptions=True)
        faults = {name: str(answer) for name, answer in zip(self.models, answers, strict=True) if isinstance(answer, BaseException)}
        return (503, {"status": "degraded", "models": faults}) if faults else (200, {"status": "ok", "models": list(self.models)})

    async def complete(self, body: messages.CompletionRequest) -> dict[str, Any]:
        """The body of a completion that is not streamed. Raises RequestError."""
        handle, asked = self._generating(body)
        found = await self.ask(handle.complete.remote(asked))
        return messages.completion_body(body.model, found, asked.n, body.logprobs is not None)

    async def chat(self, body: chat_messages.ChatRequest) -> dict[str, Any]:
        """The body of a chat completion that is not streamed. Raises RequestError."""
        handle, asked = self._generating(body)
        found = await self.ask(handle.complete.remote(asked))
        return chat_messages.chat_body(body.model, found, bool(body.logprobs))

    async def stream(self, body: messages.CompletionRequest | chat_messages.ChatRequest) -> AsyncIterator[str]:
        """The server-sent events of an answer. Raises RequestError before the first one; a later error is an event itself."""
        handle, asked = self._generating(body)
        pieces: Any = handle.options(stream=True).stream.remote(asked)
        n_prompt_tokens = await self.ask(pieces, anext(pieces))
        chunks = CompletionChunks(body) if isinstance(body, messages.CompletionRequest) else ChatChunks(body)
        return self._events(chunks, n_prompt_tokens, pieces, with_usage=body.wants_usage())

    def _generating(self, body: messages.CompletionRequest | chat_messages.ChatRequest) -> "tuple[DeploymentHandle[Any], Generation]":
        handle = self.handle(body.model, "causal_lm")
        return handle, dataclasses.replace(body.generation(), adapter=self.adapter(body.model))

    async def _events(self, chunks: Chunks, n_prompt_tokens: int, pieces: Any, *, with_usage: bool) -> AsyncIterator[str]:
        head = chunks.head | {"usage": None} if with_usage else chunks.head
        n_tokens: dict[int, int] = {}
        try:
            for choice in chunks.begin():
                yield event(head | {"choices": [choice]})
            async for told in pieces:
                if isinstance(told, RequestError):
                    raise told
                n_tokens |= {index: piece.n_tokens for index, piece in told}
                yield "".join(event(head | {"choices": [chunks.choice(index, piece)]}) for index, piece in told)
        except (asyncio.CancelledError, GeneratorExit):
            # The client left: the replica must not go on.
            pieces.cancel()
            raise
        except Exception as error:
            # The status line is long gone; clients raise on an event with an `error`.
            yield event(as_request_error(error).body())
            return
        if with_usage:
            yield event(head | {"choices": [], "usage": messages.usage(n_prompt_tokens, sum(n_tokens.values()))})
        yield DONE

    async def embed(self, body: task_messages.EmbeddingsRequest) -> dict[str, Any]:
        """The body of embeddings. Raises RequestError."""
        handle, asked = self.handle(body.model, *EMBEDDING), body.asked()
        adapter = self.adapter(body.model)
        # Encoders have none to be told of.
        found = await self.ask(handle.embed.remote(asked) if adapter is None else handle.embed.remote(asked, adapter))
        return task_messages.embeddings_body(body.model, found, body.encoding_format)

    async def answer(self, head: Head, name: str, asked: Sequence[Input]) -> Sequence[Any]:
        """What a model with a task's head says to each input. Raises RequestError."""
        found: Sequence[Any] = await self.ask(self.handle(name, head).answer.remote(asked))
        return found

    async def ask(self, call: Any, answer: Any = None) -> Any:
        """A replica's answer within the deadline of a request, also while there is no replica that could keep it. Raises RequestError."""
        return await ask(call, self.protection.deadline_s + GRACE_S, answer)


def of_model(handle: "DeploymentHandle[Any]", spec: ModelSpec) -> "DeploymentHandle[Any]":
    """The handle of a pool for one of its models: Serve prefers a replica that holds it, else one that holds the fewest."""
    return handle.options(multiplexed_model_id=spec.base or spec.name)


class NoAnswer(RequestError):
    """No replica of a model answered in time."""


async def ask(call: Any, wait_s: float, answer: Any = None) -> Any:
    """A replica's answer, with its RequestError raised and every fault on the way made a 503.

    Args:
        call: what a handle's `remote` gives; it is cancelled when nothing came of it within `wait_s`.
        answer: what is awaited of it; None: itself.
    """
    try:
        async with asyncio.timeout(wait_s):
            value = await (call if answer is None else answer)
    except TimeoutError:
        call.cancel()
        said = f"no replica of the model answered within {wait_s:g} s"
        raise NoAnswer(503, said, code="replica_unavailable", retry_after_s=RETRY_AFTER_S) from None
    except Exception as error:
        raise as_request_error(error) from error
    if isinstance(value, RequestError):
        raise value
    return value


def as_request_error(error: Exception) -> RequestError:
    """What a client is told of a fault behind the face."""
    if isinstance(error, RequestError):
        return error
    return RequestError(503, f"the model's replica did not answer ({type(error).__name__})", code="replica_unavailable")


def build_api(face: Face) -> "FastAPI":
    """The FastAPI application over a face."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    api = FastAPI(title="fmray", openapi_url="/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False)
    api.add_middleware(Guard, protection=face.protection, count=face.count, refused=refusals())
    add_error_bodies(api)

    @api.get("/health", responses={200: {"model": HealthAnswer}, **ERRORS, 503: {"model": HealthAnswer}})
    async def health() -> JSONResponse:
        status, body = await face.health()
        return JSONResponse(body, status)

    @api.get("/metadata", responses={200: {"model": MetadataAnswer}, **ERRORS})
    async def metadata() -> JSONResponse:
        return JSONResponse(face.metadata())

    @api.get("/v1/models", responses={200: {"model": ModelsAnswer}, **ERRORS})
    async def models() -> JSONResponse:
        return JSONResponse(await face.list())

    @api.get("/v1/models/{name}", responses={200: {"model": ModelAnswer}, **ERRORS})
    async def model(name: str) -> JSONResponse:
        return JSONResponse(await face.describe(name))

    add_generation(api, face)
    add_tasks(api, face)
    return api


def add_generation(api: "FastAPI", face: Face) -> None:
    """The routes of causal models, streamed or not."""
    from fastapi.responses import JSONResponse, StreamingResponse

    events = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    said: dict[int | str, dict[str, Any]] = {200: {"model": CompletionAnswer, **events}, **ERRORS}

    @api.post("/v1/completions", response_model=None, responses=said)
    async def completions(body: messages.CompletionRequest) -> JSONResponse | StreamingResponse:
        if body.stream:
            return StreamingResponse(await face.stream(body), media_type="text/event-stream")
        return JSONResponse(await face.complete(body))

    @api.post("/v1/chat/completions", response_model=None, responses=said)
    async def chat(body: chat_messages.ChatRequest) -> JSONResponse | StreamingResponse:
        if body.stream:
            return StreamingResponse(await face.stream(body), media_type="text/event-stream")
        return JSONResponse(await face.chat(body))

    @api.post("/v1/embeddings", responses={200: {"model": ListAnswer}, **ERRORS})
    async def embeddings(body: task_messages.EmbeddingsRequest) -> JSONResponse:
        return JSONResponse(await face.embed(body))


def add_tasks(api: "FastAPI", face: Face) -> None:
    """The routes of the tasks' heads: each reads its own body and writes its own answer."""
    from fastapi.responses import JSONResponse

    def add(head: Head, body_type: Any, write: Callable[[str, Any], dict[str, Any]]) -> None:
        async def route(body: Any) -> JSONResponse:
            return JSONResponse(write(body.model, await face.answer(head, body.model, body.asked())))

        route.__annotations__["body"] = body_type
        path = ROUTES[head]
        api.add_api_route(path, route, methods=["POST"], name=path.rpartition("/")[2], responses={200: {"model": ListAnswer}, **ERRORS})

    add("sequence_classification", task_messages.TextsRequest, task_messages.classify_body)
    add("token_classification", task_messages.TextsRequest, task_messages.tagged_body)
    add("masked_lm", task_messages.FillMaskRequest, task_messages.filled_body)
    add("question_answering", task_messages.QuestionAnswerRequest, task_messages.answered_body)
    add("seq2seq_lm", task_messages.SummarizeRequest, task_messages.summary_body)


def add_error_bodies(api: "FastAPI") -> None:
    """Makes every error of the application an OpenAI error body with the status that OpenAI's clients expect."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(error: RequestError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @api.exception_handler(RequestError)
    async def refused(request: "Request", error: RequestError) -> "Response":
        return answer(error)

    @api.exception_handler(RequestValidationError)
    async def malformed(request: "Request", error: RequestValidationError) -> "Response":
        first = error.errors()[0]
        # Numbers are places in the text, and types stand for alternatives: they say nothing to a client.
        place = [part for part in first["loc"] if isinstance(part, str) and part.isidentifier() and part not in ("body", "str", "int")]
        said = first["msg"].removeprefix("Value error, ")
        return answer(RequestError(400, f"{'.'.join(place) or 'body'}: {said}", param=place[0] if place else None))

    @api.exception_handler(Exception)
    async def broken(request: "Request", error: Exception) -> "Response":
        return answer(RequestError(500, "the server failed on this request"))

    @api.exception_handler(HTTPException)
    async def routed(request: "Request", error: HTTPException) -> "Response":
        told = RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(told.body(), told.status, dict(error.headers or {}))
