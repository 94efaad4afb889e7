"""The HTTP face: OpenAI's routes and error bodies over the deployments of the models."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from fmray.model.checkpoint import Head
from fmray.serve import messages
from fmray.serve.deployment import ModelSpec
from fmray.serve.engine import RequestError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from ray.serve.handle import DeploymentHandle
    from starlette.responses import Response

HEALTH_TIMEOUT_S = 5.0
TASKS: Mapping[Head, str] = {"causal_lm": "/v1/completions", "sequence_classification": "/v1/classify"}


class Face:
    """The ingress deployment: routes the body's `model` to that model's deployment."""

    def __init__(self, specs: tuple[ModelSpec, ...], *handles: "DeploymentHandle[Any]") -> None:
        self.models = {spec.name: (spec, handle) for spec, handle in zip(specs, handles, strict=True)}
        self.started = int(time.time())

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Asked by Ray Serve in the replica, once this object is made."""
        return build_api(self)

    def handle(self, name: str, head: Head) -> "DeploymentHandle[Any]":
        """The deployment of a model.

        Raises:
            RequestError: 404 for a name that is not served, 400 when the model's head cannot do this task.
        """
        if name not in self.models:
            message = f"the model '{name}' does not exist here; served: {', '.join(self.models)}"
            raise RequestError(404, message, param="model", code="model_not_found")
        spec, handle = self.models[name]
        if spec.head != head:
            raise RequestError(400, f"the model '{name}' has a {spec.head} head: ask it at {TASKS[spec.head]}", param="model")
        return handle

    async def list(self) -> dict[str, Any]:
        """The body of /v1/models."""
        return {"object": "list", "data": await asyncio.gather(*(self.describe(name) for name in self.models))}

    async def describe(self, name: str) -> dict[str, Any]:
        """One model of /v1/models.

        Raises:
            RequestError: 404 for a name that is not served, 503 when its deployment does not answer.
        """
        if name not in self.models:
            raise RequestError(404, f"the model '{name}' does not exist here", param="model", code="model_not_found")
        spec, handle = self.models[name]
        about = await ask(asyncio.wait_for(handle.describe.remote(), HEALTH_TIMEOUT_S))
        return {"id": name, "object": "model", "created": self.started, "owned_by": "fmray", "head": spec.head, **about}

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
        handle = self.handle(body.model, "causal_lm")
        return messages.completion_body(body.model, await ask(handle.complete.remote(body.prompts(), body.sampling())))

    async def stream(self, body: messages.CompletionRequest) -> AsyncIterator[str]:
        """The server-sent events of a completion. Raises RequestError before the first one; a later error is an event itself."""
        handle = self.handle(body.model, "causal_lm")
        pieces: Any = handle.options(stream=True).stream.remote(body.prompts()[0], body.sampling())
        n_prompt_tokens = await ask(anext(pieces))
        return self._events(body, n_prompt_tokens, pieces)

    async def _events(self, body: messages.CompletionRequest, n_prompt_tokens: int, pieces: Any) -> AsyncIterator[str]:
        head, n_tokens = messages.completion_head(body.model), 0
        try:
            async for piece in pieces:
                if isinstance(piece, RequestError):
                    raise piece
                n_tokens = piece.n_tokens
                yield event(head | {"choices": [messages.choice(piece.text, piece.finish_reason)]})
        except Exception as error:
            # The status line is long gone; clients raise on an event with an `error`.
            yield event(as_request_error(error).body())
            return
        if body.stream_options is not None and body.stream_options.include_usage:
            yield event(head | {"choices": [], "usage": messages.usage(n_prompt_tokens, n_tokens)})
        yield "data: [DONE]\n\n"

    async def classify(self, body: messages.ClassifyRequest) -> dict[str, Any]:
        """The body of a classification. Raises RequestError."""
        handle = self.handle(body.model, "sequence_classification")
        return messages.classify_body(body.model, await ask(handle.classify.remote(body.texts(), body.truncate)))


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def ask(answer: Any) -> Any:
    """A replica's answer, with its RequestError raised and every fault on the way made a 503."""
    try:
        value = await answer
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
    from fastapi.responses import JSONResponse, StreamingResponse

    api = FastAPI(title="fmray", openapi_url="/openapi.json")
    add_error_bodies(api)

    @api.get("/health")
    async def health() -> JSONResponse:
        status, body = await face.health()
        return JSONResponse(body, status)

    @api.get("/metadata")
    async def metadata() -> dict[str, Any]:
        return face.metadata()

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return await face.list()

    @api.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return await face.describe(name)

    @api.post("/v1/completions", response_model=None)
    async def completions(body: messages.CompletionRequest) -> dict[str, Any] | StreamingResponse:
        if body.stream:
            return StreamingResponse(await face.stream(body), media_type="text/event-stream")
        return await face.complete(body)

    @api.post("/v1/classify")
    async def classify(body: messages.ClassifyRequest) -> dict[str, Any]:
        return await face.classify(body)

    return api


def add_error_bodies(api: "FastAPI") -> None:
    """Makes every error of the application an OpenAI error body with the status that OpenAI's clients expect."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(error: RequestError) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    @api.exception_handler(RequestError)
    async def refused(request: "Request", error: RequestError) -> "Response":
        return answer(error)

    @api.exception_handler(RequestValidationError)
    async def malformed(request: "Request", error: RequestValidationError) -> "Response":
        first = error.errors()[0]
        # Numbers are places in the text, or alternatives of a type: they say nothing to a client.
        place = [part for part in first["loc"] if isinstance(part, str) and part != "body"]
        return answer(RequestError(400, f"{'.'.join(place) or 'body'}: {first['msg']}", param=place[0] if place else None))

    @api.exception_handler(Exception)
    async def broken(request: "Request", error: Exception) -> "Response":
        return answer(RequestError(500, "the server failed on this request"))

    @api.exception_handler(HTTPException)
    async def routed(request: "Request", error: HTTPException) -> "Response":
        return answer(RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
