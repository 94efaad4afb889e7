"""POST /v1/feedback: outputs that people accepted or corrected, kept as JSONL that `prepare` reads: the start of the next round.

A line's `text` is what a model should learn: the prompt with the accepted or corrected completion behind it, or the input of
a classification, whose right `label` stands beside it. So a corpus needs no more than

    corpus: {stage: prepare, source: {type: jsonl, path: feedback/served.jsonl}}
"""

import asyncio
import datetime
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fmray.serve.engine import RequestError
from fmray.serve.messages import Utf8
from fmray.serve.request_log import append
from fmray.serve.schema import ERRORS

if TYPE_CHECKING:
    from fastapi import FastAPI

ROUTE = "/v1/feedback"
MAX_CHARS = 200_000


class FeedbackRequest(BaseModel):
    """What somebody says of one answer: `accepted` as it was, or `corrected` to `correction` (a text, or the right label)."""

    model_config = ConfigDict(strict=True, protected_namespaces=(), extra="allow")

    model: Utf8
    verdict: Literal["accepted", "corrected"]
    input: str = Field(max_length=MAX_CHARS, description="the prompt, or the text that was classified")
    output: str = Field(max_length=MAX_CHARS, description="the completion, or the label")
    correction: str | None = Field(None, max_length=MAX_CHARS)
    kind: Literal["completion", "label"] = "completion"
    request_id: str | None = Field(None, max_length=128)

    def line(self) -> dict[str, Any]:
        """The line to keep.

        Raises:
            RequestError: (400) a correction is missing, or stands beside an acceptance; or there is no text.
        """
        if (self.verdict == "corrected") != (self.correction is not None):
            raise RequestError(400, "give `correction` with the verdict `corrected`, and only then", param="correction")
        right = self.output if self.correction is None else self.correction
        text = self.input + right if self.kind == "completion" else self.input
        if not text.strip():
            raise RequestError(400, "there is no text in it", param="input")
        if self.kind == "label" and not right.strip():
            raise RequestError(400, "the label is empty", param="correction" if self.correction is not None else "output")
        learned = {"label": right} if self.kind == "label" else {"prompt": self.input, "completion": right}
        return {
            "text": text, **learned, "verdict": self.verdict, "output": self.output, "model": self.model, "request_id": self.request_id,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip


def add_feedback(api: "FastAPI", file: str | None, models: Collection[str]) -> None:
    """Adds the route. Without a file it answers 404, so that nobody believes a word was kept."""

    @api.post(ROUTE, status_code=201, responses=ERRORS)
    async def feedback(body: FeedbackRequest) -> dict[str, Any]:
        if file is None:
            raise RequestError(404, "feedback is not kept here: the server was started without a file for it", code="feedback_off")
        if body.model not in models:
            raise RequestError(404, f"the model '{body.model}' does not exist here", param="model", code="model_not_found")
        try:
            await asyncio.to_thread(append, Path(file), body.line())
        except OSError as error:
            raise RequestError(503, f"feedback cannot be stored now ({error.strerror})", code="feedback_unavailable") from error
        return {"object": "feedback", "stored": True, "request_id": body.request_id}
