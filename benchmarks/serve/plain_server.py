"""The server that one writes first: FastAPI around `generate`, one request at a time. `python -m benchmarks.serve.plain_server FOLDER PORT`."""

import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.serve.inprocess import Opened


def build(folder: Path) -> FastAPI:
    """The application."""
    opened, turn, api = Opened(folder), threading.Lock(), FastAPI()

    @api.get("/health")
    def health() -> str:
        return "ok"

    @api.post("/v1/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        with turn:
            ids = opened.generate([opened.ids(body["prompt"])], body["max_tokens"])[0]
        return {"choices": [{"text": opened.text(ids)}], "usage": {"completion_tokens": len(ids)}}

    return api


if __name__ == "__main__":
    uvicorn.run(build(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
