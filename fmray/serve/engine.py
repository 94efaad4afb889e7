"""What a served model can do: the Engine protocols, a request's sampling, an answer, and the error a client sees.

One adapter file an engine lives in `fmray/serve/engines`. Everything here is plain data, so that it travels between
replicas without torch.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


class RequestError(Exception):
    """A request that is answered with an error: an HTTP status and the body that OpenAI's clients understand.

    Replicas hand it back as a value (Ray Serve would log a raised one as a fault of the replica); the HTTP face raises it.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        self.status, self.message, self.param, self.code, self.retry_after_s = status, message, param, code, retry_after_s
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.status, self.message, self.param, self.code, self.retry_after_s))

    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        named = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return named if self.retry_after_s is None else named | {"Retry-After": str(self.retry_after_s)}

    def body(self) -> dict[str, Any]:
        """The OpenAI error body."""
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _rebuild(status: int, message: str, param: str | None, code: str | None, retry_after_s: int | None) -> RequestError:
    return RequestError(status, message, param=param, code=code, retry_after_s=retry_after_s)


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    `seed` fixes the request's random numbers whatever else is in the batch; None draws a fresh one. `max_tokens` None means
    as many as the context still holds. `logprobs` is the number of likeliest alternatives told beside each token's own
    log-probability; None tells none at all: they are those of the model itself, whatever shifts its logits here.

    Three things shift the logits before a token is chosen, in this order. `repetition_penalty` divides the positive logits of tokens that
    stand in prompt or answer and multiplies the negative ones (Keskar et al. 2019); 1 is off. `presence_penalty` is taken off each token
    that the answer holds and `frequency_penalty` as often as it holds it, both as OpenAI has them. `logit_bias` is added by token id.
    Then every token is ruled out that would break `schema`, a JSON schema: the answer keeps to it, unless `max_tokens` cuts it off.
    """

    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    schema: str | None = None

    @property
    def shifts(self) -> bool:
        """Whether anything changes the model's logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias or self.schema) or self.repetition_penalty != 1.0


@dataclass(frozen=True)
class Chat:
    """A conversation, which the model's own chat template makes a prompt of."""

    messages: tuple[dict[str, Any], ...]


Prompt = str | list[int] | Chat


@dataclass(frozen=True)
class Generation:
    """One request for generated text: `n` answers to each prompt, with `echo` each behind its prompt.

    `adapter` names the low-rank adapter on the engine's model that answers; None: the model itself.
    """

    prompts: tuple[Prompt, ...]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    echo: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """One token's text and log-probability (nats; None where nothing stands before it), and the likeliest tokens at its place."""

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next piece of a generated text. `n_tokens` counts all tokens generated so far; the last piece has a finish_reason.

    `logprobs` are those of the tokens that came since the piece before, where they were asked for.
    """

    text: str
    n_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A whole generated text with its token counts."""

    text: str
    n_prompt_tokens: int
    n_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Text:
    """One input of a head that reads whole texts; a text that is too long is cut only with `truncate`."""

    text: str
    truncate: bool = False


@dataclass(frozen=True)
class Masked:
    """One text with masks to fill, each with its `top_k` likeliest tokens."""

    text: str
    top_k: int = 5


@dataclass(frozen=True)
class Question:
    """One question about a passage."""

    question: str
    context: str


@dataclass(frozen=True)
class LongText:
    """One text to shorten to at most `max_tokens` tokens."""

    text: str
    max_tokens: int = 64
    truncate: bool = False


@dataclass(frozen=True)
class Embeddable:
    """One text, or its token ids, to embed."""

    text: str | tuple[int, ...]
    truncate: bool = False


Input = Text | Masked | Question | LongText | Embeddable


@dataclass(frozen=True)
class Scores:
    """One classified text: probability by label, and whether the text was cut to the model's context."""

    scores: dict[str, float]
    n_tokens: int
    truncated: bool


@dataclass(frozen=True)
class Entity:
    """One span of a tagged text, by characters from `start` to before `end`, with the mean probability of its words' tags."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Tagged:
    """One tagged text: its spans, and each word's tag."""

    entities: tuple[Entity, ...]
    words: tuple[tuple[str, str, float], ...]
    n_tokens: int
    truncated: bool


@dataclass(frozen=True)
class Filled:
    """One text's masks in order: of each the likeliest tokens with their probabilities."""

    masks: tuple[tuple[tuple[str, float], ...], ...]
    n_tokens: int


@dataclass(frozen=True)
class Answered:
    """The span of a passage that answers best, by characters, with the score start + end (logits) by which it was chosen."""

    answer: str
    start: int
    end: int
    score: float
    n_tokens: int


@dataclass(frozen=True)
class Summary:
    """One shortened text."""

    text: str
    n_prompt_tokens: int
    n_tokens: int
    truncated: bool


@dataclass(frozen=True)
class Embedding:
    """One text's vector, of length 1."""

    vector: tuple[float, ...]
    n_tokens: int
    truncated: bool = False


Answer = Scores | Tagged | Filled | Answered | Summary | Embedding


class Engine(Protocol):
    """What every engine offers. Making one opens the model and starts it.

    `max_model_len` is the longest sequence in tokens, prompt and answer together. What an engine cannot do for a request
    is a RequestError (400) and never ignored.
    """

    max_model_len: int

    def health(self) -> None:
        """Raises RuntimeError when the engine can answer no more; its replica is then replaced."""

    def close(self) -> None:
        """Ends the engine's threads and frees its cache."""


class GenerationEngine(Engine, Protocol):
    """An engine that continues text, with its model or with one of the low-rank adapters that it was opened with, by name."""

    async def check(self, sampling: Sampling, adapter: str | None = None) -> None:
        """Raises RequestError (400) for sampling that the engine cannot do with this model."""

    def encode(self, prompt: Prompt, max_tokens: int | None, adapter: str | None = None) -> list[int]:
        """Token ids of a prompt. Raises RequestError (400) for one that this model cannot take, or that with
        `max_tokens` behind it exceeds `max_model_len`."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, *, stream: bool, adapter: str | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer as they come (with `stream`) or in one; closing the iterator, or cancelling the task that
        reads it, cancels the request.

        Raises RequestError (400) for what `check` refuses, (5xx) when the engine fails.
        """

    async def score(self, rows: Sequence[list[int]], top: int, adapter: str | None = None) -> list[tuple[TokenLogprob, ...]]:
        """The log-probability of every token of given texts, with the `top` likeliest at its place; None for the first."""

    async def embed(self, rows: Sequence[list[int]], adapter: str | None = None) -> list[Embedding]:
        """A vector of each text: the mean of its tokens' last hidden states, of length 1."""


class TaskEngine(Engine, Protocol):
    """An engine of a head that reads whole inputs: classify, token-classify, fill-mask, question-answer, summarize, embed."""

    def answer(self, asked: Sequence[Any]) -> list[Answer | RequestError]:
        """An answer to each input, in its place a RequestError (400) for one that this model cannot take."""
