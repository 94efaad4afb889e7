"""The ways without a network, each in a process of its own: `python -m benchmarks.serve.inprocess WAY FOLDER N SHRINK` prints JSON."""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.serve.work import Request, requests

BATCH = 32


def opened(folder: Path) -> Any:
    """The model on one thread in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def one_by_one(folder: Path, asked: list[Request]) -> dict[str, Any]:
    """`generate` for one request after another: what the others are compared to, in time and in tokens."""
    import torch

    model = opened(folder)

    def generate(request: Request) -> list[int]:
        ids = torch.tensor([request.ids])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=request.max_tokens)
        return [int(i) for i in out[0, len(request.ids) :]]

    generate(asked[0])
    began, cpu = time.perf_counter(), time.process_time()
    answers = [generate(request) for request in asked]
    return told(sum(map(len, answers)), began, cpu) | {"answers": answers}


def static(folder: Path, asked: list[Request]) -> dict[str, Any]:
    """`generate` for batches of 32, padded on the left, each as long as its longest answer; only tokens that were asked for count."""
    import torch

    model = opened(folder)

    def generate(batch: list[Request]) -> int:
        width = max(len(request.ids) for request in batch)
        rows = [[0] * (width - len(request.ids)) + list(request.ids) for request in batch]
        mask = [[0] * (width - len(request.ids)) + [1] * len(request.ids) for request in batch]
        with torch.inference_mode():
            model.generate(torch.tensor(rows), attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=max(r.max_tokens for r in batch))
        return sum(request.max_tokens for request in batch)

    generate([Request(asked[0].ids, 4)])
    began, cpu = time.perf_counter(), time.process_time()
    return told(sum(generate(asked[i : i + BATCH]) for i in range(0, len(asked), BATCH)), began, cpu)


def engine(folder: Path, asked: list[Request]) -> dict[str, Any]:
    """The bare engine, one stream after another: the mean time to the first token, which HTTP can only add to."""
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
        await first(asked[0])
        return [await first(request) for request in asked[:16]]

    try:
        return {"ttft_ms": 1e3 * statistics.mean(asyncio.run(run()))}
    finally:
        made.close()


def told(n_tokens: int, began: float, cpu: float) -> dict[str, Any]:
    """Tokens with the seconds and CPU-seconds since the moments given."""
    return {"tokens": n_tokens, "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


if __name__ == "__main__":
    ways = {"one_by_one": one_by_one, "static": static, "engine": engine}
    print(json.dumps(ways[sys.argv[1]](Path(sys.argv[2]), requests(int(sys.argv[3]), shrink=int(sys.argv[4])))))
