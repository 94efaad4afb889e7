"""What a served model can do: the Engine protocols, a request's sampling, an answer, and the error a client sees.

One adapter file an engine lives in `fmray/serve/engines`. Everything here is plain data, so that it travels between
replicas without torch.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


class RequestError(Exception):
    """A request that is answered with an error: an HTTP status and the body that OpenAI's clients understand.

    Replicas hand it back as a value (Ray Serve would log a raised one as a fault of the replica); the HTTP face raises it.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.status, self.message, self.param, self.code))

    def body(self) -> dict[str, Any]:
        """The OpenAI error body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _rebuild(status: int, message: str, param: str | None, code: str | None) -> RequestError:
    return RequestError(status, message, param=param, code=code)


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen. temperature 0 is greedy; top_k 0 and top_p 1 are off.

    `seed` fixes the request's random numbers whatever else is in the batch; None draws a fresh one.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next piece of a generated text. `n_tokens` counts all tokens generated so far; the last piece has a finish_reason."""

    text: str
    n_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """A whole generated text with its token counts."""

    text: str
    n_prompt_tokens: int
    n_tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True)
class Scores:
    """One classified text: probability by label, and whether the text was cut to the model's context."""

    scores: dict[str, float]
    n_tokens: int
    truncated: bool


class Engine(Protocol):
    """What every engine offers. `max_model_len` is the longest sequence in tokens, prompt and answer together."""

    max_model_len: int

    def health(self) -> None:
        """Raises RuntimeError when the engine can answer no more; its replica is then replaced."""

    def close(self) -> None:
        """Ends the engine's threads and frees its cache."""


class GenerationEngine(Engine, Protocol):
    """An engine that continues text."""

    def encode(self, prompt: str | Sequence[int], max_tokens: int) -> list[int]:
        """Token ids of a prompt. Raises RequestError (400) for one that this model cannot take, or that with
        `max_tokens` behind it exceeds `max_model_len`."""

    def generate(self, prompt_ids: list[int], sampling: Sampling, *, stream: bool) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer as they come (with `stream`) or in one; closing the iterator cancels the request.

        Raises RequestError (5xx) when the engine fails.
        """


class ClassificationEngine(Engine, Protocol):
    """An engine that scores whole texts."""

    def classify(self, texts: Sequence[str], truncate: Sequence[bool]) -> list[Scores | RequestError]:
        """Scores of each text; a RequestError (400) in the place of one that is too long and not to be truncated."""
