"""The server that one writes first: FastAPI around `generate`, one request at a time. `python -m benchmarks.serve.plain_server FOLDER PORT`."""

import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from transformers import AutoTokenizer

from benchmarks.serve.inprocess import opened


def build(folder: Path) -> FastAPI:
    """The application."""
    import torch

    model, tokenizer, turn, api = opened(folder), AutoTokenizer.from_pretrained(folder), threading.Lock(), FastAPI()

    @api.get("/health")
    def health() -> str:
        return "ok"

    @api.post("/v1/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(body["prompt"], return_tensors="pt")
        with turn, torch.inference_mode():
            out = model.generate(encoded["input_ids"], attention_mask=encoded["attention_mask"], do_sample=False, max_new_tokens=body["max_tokens"])
        return {"choices": [{"text": tokenizer.decode(out[0, encoded["input_ids"].shape[1] :])}]}

    return api


if __name__ == "__main__":
    uvicorn.run(build(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
