"""The bodies of the task endpoints: embeddings (OpenAI's shape), classify, token-classify, fill-mask, question-answer, summarize."""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fmray.serve.engine import (
    Answered,
    Embeddable,
    Embedding,
    Filled,
    Input,
    LongText,
    Masked,
    Question,
    RequestError,
    Scores,
    Summary,
    Tagged,
    Text,
)
from fmray.serve.messages import MAX_TEXTS, Body, Utf8


def _counted(inputs: Sequence[Any]) -> Sequence[Any]:
    """The inputs, if they are as many as one request may hold. Raises RequestError (400)."""
    if not 1 <= len(inputs) <= MAX_TEXTS:
        raise RequestError(400, f"give between 1 and {MAX_TEXTS} inputs, not {len(inputs)}", param="input")
    return inputs


class TextsRequest(Body):
    """The body of POST /v1/classify and /v1/token-classify. `truncate` cuts an input that is longer than the model's context;
    without it that is an error."""

    model: Utf8
    input: Utf8 | list[Utf8]
    truncate: bool = False

    def texts(self) -> list[str]:
        """The texts. Raises RequestError (400): none or too many."""
        return list(_counted([self.input] if isinstance(self.input, str) else self.input))

    def asked(self) -> list[Input]:
        """One input for each text. Raises RequestError (400)."""
        return [Text(text, self.truncate) for text in self.texts()]


class FillMaskRequest(Body):
    """The body of POST /v1/fill-mask: texts with masks, written [MASK] or <mask>."""

    model: Utf8
    input: Utf8 | list[Utf8]
    top_k: int = Field(5, ge=1, le=100)

    def asked(self) -> list[Input]:
        """One input for each text. Raises RequestError (400)."""
        return [Masked(text, self.top_k) for text in _counted([self.input] if isinstance(self.input, str) else self.input)]


class QuestionAnswerRequest(Body):
    """The body of POST /v1/question-answer: a question about a passage."""

    model: Utf8
    question: Utf8
    context: Utf8

    def asked(self) -> list[Input]:
        """The one question. Raises RequestError (400): it is blank."""
        if not self.question.strip():
            raise RequestError(400, "the question is blank", param="question")
        return [Question(self.question, self.context)]


class SummarizeRequest(TextsRequest):
    """The body of POST /v1/summarize."""

    max_tokens: int = Field(64, ge=1, lt=2**31)

    def asked(self) -> list[Input]:
        """One input for each text. Raises RequestError (400)."""
        return [LongText(text, self.max_tokens, self.truncate) for text in self.texts()]


class EmbeddingsRequest(Body):
    """The body of POST /v1/embeddings. `truncate` is an addition to OpenAI's fields, for encoders."""

    model: Utf8
    input: Utf8 | list[Utf8] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    truncate: bool = False

    def asked(self) -> list[Embeddable]:
        """One input for each text or list of token ids. Raises RequestError (400): none, too many, or other dimensions wanted."""
        if self.dimensions is not None:
            raise RequestError(400, "'dimensions' is not supported here", param="dimensions", code="unsupported_parameter")
        single = isinstance(self.input, str) or (len(self.input) > 0 and all(isinstance(token, int) for token in self.input))
        inputs = _counted([self.input] if single else self.input)
        return [Embeddable(one if isinstance(one, str) else tuple(one), self.truncate) for one in inputs]


def _listed(model: str, data: list[dict[str, Any]], n_prompt_tokens: int, n_tokens: int = 0) -> dict[str, Any]:
    numbered = [{"index": index} | one for index, one in enumerate(data)]
    counts = {"prompt_tokens": n_prompt_tokens} | ({"completion_tokens": n_tokens} if n_tokens else {})
    return {"object": "list", "model": model, "data": numbered, "usage": counts | {"total_tokens": n_prompt_tokens + n_tokens}}


def classify_body(model: str, scored: Sequence[Scores]) -> dict[str, Any]:
    """The answer of POST /v1/classify: for each input its likeliest label and the probability of every label."""
    data = [{"label": max(s.scores, key=s.scores.__getitem__), "scores": s.scores, "truncated": s.truncated} for s in scored]
    return _listed(model, data, sum(s.n_tokens for s in scored))


def tagged_body(model: str, tagged: Sequence[Tagged]) -> dict[str, Any]:
    """The answer of POST /v1/token-classify: for each input its spans by characters, and each word's tag."""
    data = [
        {
            "entities": [{"label": e.label, "text": e.text, "start": e.start, "end": e.end, "score": e.score} for e in one.entities],
            "words": [{"word": word, "tag": tag, "score": score} for word, tag, score in one.words],
            "truncated": one.truncated,
        }
        for one in tagged
    ]
    return _listed(model, data, sum(one.n_tokens for one in tagged))


def filled_body(model: str, filled: Sequence[Filled]) -> dict[str, Any]:
    """The answer of POST /v1/fill-mask: for each input, for each mask, the likeliest tokens."""
    data = [{"masks": [[{"token": token, "score": score} for token, score in mask] for mask in one.masks]} for one in filled]
    return _listed(model, data, sum(one.n_tokens for one in filled))


def answered_body(model: str, answered: Sequence[Answered]) -> dict[str, Any]:
    """The answer of POST /v1/question-answer: the span of the context that answers, by characters."""
    data = [{"answer": one.answer, "start": one.start, "end": one.end, "score": one.score} for one in answered]
    return _listed(model, data, sum(one.n_tokens for one in answered))


def summary_body(model: str, summaries: Sequence[Summary]) -> dict[str, Any]:
    """The answer of POST /v1/summarize."""
    data = [{"summary": one.text, "truncated": one.truncated} for one in summaries]
    return _listed(model, data, sum(one.n_prompt_tokens for one in summaries), sum(one.n_tokens for one in summaries))


def embeddings_body(model: str, embeddings: Sequence[Embedding], encoding: str | None) -> dict[str, Any]:
    """The answer of POST /v1/embeddings; base64 is of little-endian float32, as OpenAI's clients decode it."""
    data = [{"object": "embedding", "embedding": _encoded(one.vector) if encoding == "base64" else list(one.vector)} for one in embeddings]
    return _listed(model, data, sum(one.n_tokens for one in embeddings))


def _encoded(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
