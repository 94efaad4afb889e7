"""The bodies of POST /v1/chat/completions, shaped like OpenAI's."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from fmray.serve.engine import Chat, Completion, FinishReason, Generation, RequestError, TokenLogprob
from fmray.serve.messages import MAX_LOGPROBS, Body, GenerationBody, Utf8, total_usage


class ContentPart(Body):
    """A part of a message; only those of type `text` can be read here."""

    type: Utf8
    text: Utf8 | None = None


class Message(Body):
    """One message of a conversation."""

    role: str = Field(pattern=r"^[A-Za-z_-]{1,64}$")  # templates may make a special token of it
    content: Utf8 | list[ContentPart] | None = None

    def plain(self) -> dict[str, Any]:
        """The message as chat templates read it. Raises RequestError (400) for content that is no text."""
        if isinstance(self.content, list):
            wrong = next((part.type for part in self.content if part.type != "text" or part.text is None), None)
            if wrong is not None:
                raise RequestError(400, f"content of type '{wrong}' is not supported here", param="messages", code="unsupported_parameter")
            return {"role": self.role, "content": "".join(part.text or "" for part in self.content)}
        return {"role": self.role, "content": self.content or ""}


class ChatRequest(GenerationBody):
    """The body of POST /v1/chat/completions. `max_completion_tokens` is OpenAI's newer name of `max_tokens`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    def generation(self) -> Generation:
        """What is asked of the model; without a limit an answer may fill the context.

        Raises:
            RequestError: (400) content that is no text, two different limits, alternatives without log-probabilities, or something
                that the engines cannot do.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        newer, older = self.max_completion_tokens, self.max_tokens
        if newer is not None and older is not None and newer != older:
            raise RequestError(400, "'max_tokens' and 'max_completion_tokens' differ: give one", param="max_tokens")
        chat = Chat(tuple(message.plain() for message in self.messages))
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return Generation((chat,), self.sampling(older if newer is None else newer, logprobs), self.n or 1)


def chat_head(model: str, kind: str) -> dict[str, Any]:
    """The fields that a chat completion (`kind` chat.completion) and its chunks (chat.completion.chunk) begin with."""
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def chat_logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    return {"content": [_token(one.text, one.logprob) | {"top_logprobs": [_token(*pair) for pair in one.top]} for one in told], "refusal": None}


def _token(text: str, logprob: float | None) -> dict[str, Any]:
    # Of a piece of a character the text does not tell the bytes.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def chunk_choice(index: int, text: str | None, finish_reason: FinishReason | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    """One choice of a chunk; `text` None begins it."""
    delta = {"role": "assistant", "content": ""} if text is None else {"content": text}
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_body(model: str, completions: Sequence[Completion], with_logprobs: bool) -> dict[str, Any]:
    """The answer of POST /v1/chat/completions."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": c.text, "refusal": None},
            "logprobs": chat_logprobs(c.logprobs) if with_logprobs else None,
            "finish_reason": c.finish_reason,
        }
        for index, c in enumerate(completions)
    ]
    return chat_head(model, "chat.completion") | {"choices": choices, "usage": total_usage(completions, len(completions))}
