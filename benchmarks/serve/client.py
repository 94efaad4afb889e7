"""The one client that asks every server: whole answers all at once, or streams with the time of each event."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.serve.work import Request


@dataclass(frozen=True)
class Stream:
    """When a stream's pieces came, in seconds after it was asked for."""

    at_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        """The time to the first piece."""
        return self.at_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """The times between pieces."""
        return [b - a for a, b in zip(self.at_s, self.at_s[1:], strict=False)]


def _body(model: str, request: Request, stream: bool) -> dict[str, Any]:
    return {"model": model, "prompt": request.text, "max_tokens": request.max_tokens, "temperature": 0, "stream": stream}


def whole(url: str, model: str, asked: list[Request]) -> tuple[list[str], float]:
    """All requests at once: the answers' texts, and the seconds until the last."""

    async def run() -> tuple[list[str], float]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600), connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(request: Request) -> str:
                async with session.post(f"{url}/v1/completions", json=_body(model, request, False)) as answer:
                    body = await answer.json()
                    if answer.status != 200:
                        raise RuntimeError(f"{url} answered {answer.status}: {body}")
                    return str(body["choices"][0]["text"])

            began = time.perf_counter()
            texts = await asyncio.gather(*(one(request) for request in asked))
            return list(texts), time.perf_counter() - began

    return asyncio.run(run())


def streams(url: str, model: str, asked: list[Request], clients: int) -> list[Stream]:
    """Streams of the requests, shared out among so many clients, each of which asks one after another."""

    async def run() -> list[Stream]:
        waiting, done = list(asked), []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600), connector=aiohttp.TCPConnector(limit=0)) as session:

            async def client() -> None:
                while waiting:
                    request = waiting.pop()
                    began, at_s = time.perf_counter(), []
                    async with session.post(f"{url}/v1/completions", json=_body(model, request, True)) as answer:
                        async for line in answer.content:
                            if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                                at_s.append(time.perf_counter() - began)
                    done.append(Stream(tuple(at_s)))

            await asyncio.gather(*(client() for _ in range(clients)))
        return done

    return asyncio.run(run())
