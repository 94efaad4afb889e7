"""The request log: one JSON line a request, with ids and figures, and without the text of anybody's prompt unless asked."""

import datetime
import json
import logging
import os
from pathlib import Path
from typing import Any

from fmray.serve.asked import Answer, Asked


class RequestLog:
    """Appends lines to a file; None writes none. Several replicas may share it: a line is one write."""

    def __init__(self, file: str | None, *, with_text: bool) -> None:
        self._file = Path(file) if file is not None else None
        self._with_text = with_text

    def write(self, asked: Asked, answer: Answer, model: str) -> None:
        """One line. A log that cannot be written stops no request: it is told once, and not tried again."""
        if self._file is None:
            return
        line: dict[str, Any] = {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"), "id": asked.request_id, "model": model,
            "route": asked.route, "status": answer.status, "ms": round(1e3 * answer.seconds, 2),
            "first_token_ms": round(1e3 * answer.first_s, 2) if answer.first_s is not None else None,
            "n_prompt_tokens": answer.n_prompt_tokens, "n_tokens": answer.n_tokens,
        }  # fmt: skip
        if self._with_text:
            line["request"] = asked.body
        try:
            append(self._file, line)
        except OSError as error:
            logging.getLogger("ray.serve").warning("the request log %s cannot be written (%s)", self._file, error.strerror)
            self._file = None


def append(file: Path, line: dict[str, Any]) -> None:
    """Appends a JSON line in one write, so that lines of several processes never mix. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", errors="replace"))
    finally:
        os.close(descriptor)
