"""The shapes of answers, for the OpenAPI schema alone: answers are written by `messages`, and not checked again on their way out."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """An answer's fields; more may stand beside them."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ErrorFields(Shape):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Shape):
    """The body of every error."""

    error: ErrorFields


class Usage(Shape):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class Choice(Shape):
    """One choice of a completion or a chat."""

    index: int
    finish_reason: str
    logprobs: dict[str, Any] | None


class CompletionAnswer(Shape):
    """The answer of /v1/completions and /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Datum(Shape):
    """The answer to one input."""

    index: int


class ListAnswer(Shape):
    """The answer of /v1/embeddings and of the task endpoints: one entry for each input."""

    object: str
    model: str
    data: list[Datum]
    usage: Usage


class ModelAnswer(Shape):
    """One served model. `health` is ok, down or unknown; `parent` is the served model that it is an adapter on; `max_model_len` is null
    of a model that was never seen or, in a pool, was not loaded yet, and `loaded` says of such a model whether it is now.
    """

    id: str
    object: str
    created: int
    owned_by: str
    head: str
    health: str
    parent: str | None
    max_model_len: int | None
    loaded: bool | None = None


class ModelsAnswer(Shape):
    """The answer of /v1/models."""

    object: str
    data: list[ModelAnswer]


class HealthAnswer(Shape):
    """The answer of /health: the models' names, or why some do not answer."""

    status: str
    models: list[str] | dict[str, str]


class MetadataAnswer(Shape):
    """The answer of /metadata: each model with its record and the decision or waiver that lets it be served."""

    models: list[dict[str, Any]]


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
"""The OpenAPI `responses` that every route has."""
