"""Server-sent events of streamed answers: how a completion's and a chat's chunks are written."""

import json
from typing import Any, Protocol

from fmray.serve import chat_messages, messages
from fmray.serve.engine import Piece

DONE = "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class Chunks(Protocol):
    """Writes the chunks of one stream: `head` is what they share."""

    head: dict[str, Any]

    def begin(self) -> list[dict[str, Any]]:
        """The choices that stand before the first piece."""

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice that a piece is."""


class CompletionChunks:
    """Chunks of POST /v1/completions."""

    def __init__(self, body: messages.CompletionRequest) -> None:
        self.head = messages.completion_head(body.model)
        self._logprobs = body.logprobs is not None
        self._offsets: dict[int, int] = {}

    def begin(self) -> list[dict[str, Any]]:
        """Nothing stands before the first piece."""
        return []

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice that a piece is; offsets go on from the piece before."""
        logprobs = None
        if self._logprobs:
            offset = self._offsets.get(index, 0)
            logprobs = messages.completion_logprobs(piece.logprobs, offset)
            self._offsets[index] = offset + sum(len(one.text) for one in piece.logprobs)
        return messages.choice(piece.text, piece.finish_reason, index, logprobs)


class ChatChunks:
    """Chunks of POST /v1/chat/completions."""

    def __init__(self, body: chat_messages.ChatRequest) -> None:
        self.head = chat_messages.chat_head(body.model, "chat.completion.chunk")
        self._n, self._logprobs = body.n or 1, bool(body.logprobs)

    def begin(self) -> list[dict[str, Any]]:
        """Each choice's role."""
        return [chat_messages.chunk_choice(index, None, None, None) for index in range(self._n)]

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice that a piece is."""
        logprobs = chat_messages.chat_logprobs(piece.logprobs) if self._logprobs else None
        return chat_messages.chunk_choice(index, piece.text, piece.finish_reason, logprobs)
