"""The one client that asks every server: whole answers all at once, streams with the time of each piece, or load for minutes."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.serve.work import Request

# Longer than the slowest server takes for all requests one by one.
TIMEOUT_S = 900.0
FAULTS = (aiohttp.ClientError, OSError, RuntimeError, ValueError, KeyError, IndexError)


@dataclass(frozen=True)
class Whole:
    """An answer that came in one: its text, and how many tokens the server counted."""

    text: str
    n_tokens: int


@dataclass(frozen=True)
class Stream:
    """When a stream's pieces came, in seconds after it was asked for, and their text."""

    at_s: tuple[float, ...]
    text: str = ""

    @property
    def ttft_s(self) -> float:
        """The time to the first piece."""
        return self.at_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """The times between pieces."""
        return [b - a for a, b in zip(self.at_s, self.at_s[1:], strict=False)]


@dataclass
class Load:
    """What came of a load: answers, those that were not the first one's equal, and faults."""

    n_answers: int = 0
    n_different: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=aiohttp.TCPConnector(limit=0))


def _body(model: str, request: Request, stream: bool) -> dict[str, Any]:
    return {"model": model, "prompt": request.text, "max_tokens": request.max_tokens, "temperature": 0, "stream": stream}


async def _whole(session: aiohttp.ClientSession, url: str, model: str, request: Request) -> Whole:
    async with session.post(f"{url}/v1/completions", json=_body(model, request, False)) as answer:
        said = await answer.text()
        if answer.status != 200:
            raise RuntimeError(f"answered {answer.status}: {said[:200]}")
        body = json.loads(said)
        return Whole(str(body["choices"][0]["text"]), int(body["usage"]["completion_tokens"]))


async def _stream(session: aiohttp.ClientSession, url: str, model: str, request: Request) -> Stream:
    began, at_s, texts = time.perf_counter(), [], []
    async with session.post(f"{url}/v1/completions", json=_body(model, request, True)) as answer:
        if answer.status != 200:
            raise RuntimeError(f"answered {answer.status}: {(await answer.text())[:200]}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"failed in the middle of a stream: {event['error']}")
            if event["choices"] and event["choices"][0]["text"]:
                at_s.append(time.perf_counter() - began)
                texts.append(event["choices"][0]["text"])
    return Stream(tuple(at_s), "".join(texts))


def whole(url: str, model: str, asked: list[Request]) -> tuple[list[Whole], float]:
    """All requests at once: the answers, and the seconds until the last. Raises RuntimeError for one that is refused."""

    async def run() -> tuple[list[Whole], float]:
        async with _session() as session:
            began = time.perf_counter()
            answers = await asyncio.gather(*(_whole(session, url, model, request) for request in asked))
            return list(answers), time.perf_counter() - began

    return asyncio.run(run())


def streams(url: str, model: str, asked: list[Request], clients: int) -> list[Stream]:
    """Streams of the requests, shared out among so many clients, each of which asks one after another; those without text left out."""

    async def run() -> list[Stream]:
        waiting, done = list(reversed(asked)), list[Stream]()
        async with _session() as session:

            async def client() -> None:
                while waiting:
                    done.append(await _stream(session, url, model, waiting.pop()))

            await asyncio.gather(*(client() for _ in range(clients)))
        return [one for one in done if one.at_s]

    return asyncio.run(run())


def load(url: str, model: str, asked: list[Request], clients: int, seconds: float) -> Load:
    """Clients that each ask one request after another, once each, whole and streamed in turn, for so many seconds."""
    found, texts = Load(), dict[int, str]()

    async def run() -> None:
        began = time.perf_counter()
        async with _session() as session:

            async def client(number: int) -> None:
                turn = number
                while time.perf_counter() - began < seconds:
                    which, turn = turn % len(asked), turn + 1
                    request = asked[which]
                    try:
                        answer = await (_stream if turn % 2 else _whole)(session, url, model, request)
                    except FAULTS as error:
                        found.faults.append(f"{type(error).__name__}: {error}"[:200])
                        await asyncio.sleep(0.1)
                        continue
                    found.n_answers += 1
                    found.n_different += texts.setdefault(which, answer.text) != answer.text

            await asyncio.gather(*(client(2 * number) for number in range(clients)))
        found.seconds = time.perf_counter() - began

    asyncio.run(run())
    return found
