"""The ways without a network, each in a process of its own: `python -m benchmarks.serve.inprocess WAY FOLDER SIZE N SHRINK` prints JSON."""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.serve.work import Request, requests

BATCH = 32
# Requests of which the time to the first token is told.
FIRST = 16


class Opened:
    """The model in float32 on one thread, with its tokenizer."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        end = self.model.generation_config.eos_token_id
        self.ends = set(end) if isinstance(end, list) else set() if end is None else {end}

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        return [int(i) for i in self.tokenizer(text)["input_ids"]]

    def generate(self, rows: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy answers to a batch padded on the left, each up to its end token."""
        import torch

        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = self.model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens)
        return [self._ended([int(i) for i in row[width:]]) for row in out]

    def _ended(self, ids: list[int]) -> list[int]:
        last = next((at for at, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: last + 1]

    def text(self, ids: list[int]) -> str:
        """The text of an answer, as a server tells it."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def one_by_one(folder: Path, asked: list[Request]) -> dict[str, Any]:
    """`generate` for one request after another: what the others are compared to, in time and in tokens."""
    opened = Opened(folder)

    def answer(request: Request) -> list[int]:
        return opened.generate([opened.ids(request.text)], request.max_tokens)[0]

    for request in asked:
        answer(request)
    began, cpu = time.perf_counter(), time.process_time()
    answers = [answer(request) for request in asked]
    return told(sum(map(len, answers)), began, cpu) | {"texts": [opened.text(ids) for ids in answers]}


def static(folder: Path, asked: list[Request]) -> dict[str, Any]:
    """`generate` for batches of 32, each as long as its longest answer; only tokens that were asked for count."""
    opened = Opened(folder)

    def answer(batch: list[Request]) -> int:
        answers = opened.generate([opened.ids(request.text) for request in batch], max(request.max_tokens for request in batch))
        return sum(min(len(ids), request.max_tokens) for ids, request in zip(answers, batch, strict=True))

    answer(asked[:BATCH])
    began, cpu = time.perf_counter(), time.process_time()
    return told(sum(answer(asked[i : i + BATCH]) for i in range(0, len(asked), BATCH)), began, cpu)


def engine(folder: Path, asked: list[Request]) -> dict[str, Any]:
    """The bare engine, one stream after another: the times to the first token, which HTTP can only add to."""
    from fmray.serve.engine import Sampling
    from fmray.serve.engines.continuous import ContinuousBatching

    made = ContinuousBatching(folder, device="cpu", dtype="float32", threads=1, cache_tokens=8192, max_requests=32)

    async def first(request: Request) -> float:
        began = time.perf_counter()
        pieces = made.generate(made.encode(request.text, request.max_tokens), Sampling(max_tokens=request.max_tokens, temperature=0), stream=True)
        await anext(pieces)
        waited = time.perf_counter() - began
        async for _ in pieces:
            pass
        return waited

    async def run() -> list[float]:
        for request in asked[:FIRST]:
            await first(request)
        return [1e3 * await first(request) for request in asked[:FIRST]]

    try:
        ttft_ms = asyncio.run(run())
        return {"ttft_ms": ttft_ms, "mean_ms": statistics.mean(ttft_ms)}
    finally:
        made.close()


def told(n_tokens: int, began: float, cpu: float) -> dict[str, Any]:
    """Tokens with the seconds and CPU-seconds since the moments given."""
    return {"tokens": n_tokens, "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


if __name__ == "__main__":
    ways = {"one_by_one": one_by_one, "static": static, "engine": engine}
    way, model, size, n, shrink = sys.argv[1:]
    print(json.dumps(ways[way](Path(model), requests(size, int(n), shrink=int(shrink)))))
