"""What surrounds every POST under /v1: an id, the choice of a version, meters, a line in the request log, and shadow requests.

A plain ASGI layer inside all protection and outside the routes, so that it sees the status that a client sees and never
holds back a stream.
"""

import asyncio
import dataclasses
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from fmray.serve.asked import Answer, Asked, Message, Receive, Scope, read
from fmray.serve.canary import Observation, failed
from fmray.serve.judge import Canary
from fmray.serve.meters import Meters
from fmray.serve.operation import Operation, Route, Router
from fmray.serve.request_log import RequestLog
from fmray.serve.shadow import agreement, deterministic

Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Observe = Callable[[str, list[Observation]], Any]

CLIENT_LEFT = 499


class Traffic:
    """The layer. `observe` takes what a canary's judge is to know."""

    def __init__(self, app: App, *, operation: Operation, models: Collection[str], routes: Collection[str], observe: Observe) -> None:
        self._app, self._models, self._routes, self._observe = app, frozenset(models), frozenset(routes), observe
        self._router, self._meters = Router(operation.canaries), Meters()
        self._log = RequestLog(operation.request_log, with_text=operation.log_prompts)
        self._in_flight: dict[str, int] = {}
        self._shadowed: dict[str, int] = {}
        self._shadows: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = str(scope.get("path", "")).removeprefix(str(scope.get("root_path", "")))
        if scope["type"] != "http" or scope["method"] != "POST" or not path.startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        asked = await read(scope, receive, path if path in self._routes else "other")
        route = self._router.route(asked.model or "", asked.request_id)
        answer = Answer(began)
        label = route.served if route.served in self._models else "unknown"
        counted = label
        self._count(counted, 1)
        try:
            await self._attempt(asked, route, send, answer)
            if answer.withheld and route.fallback is not None:
                self._tell(asked, route, answer)
                self._measure(label, asked, answer)
                route = dataclasses.replace(route.fallback, canary=None)
                label = route.served
                answer = Answer(began)
                await self._attempt(asked, route, send, answer)
        except asyncio.CancelledError:
            answer.status = answer.status if answer.ended else CLIENT_LEFT
            raise
        except Exception:
            answer.status = 500
            self._tell(asked, route, answer)
            raise
        finally:
            answer.ended = time.perf_counter()
            self._count(counted, -1)
            self._measure(label, asked, answer)
        self._tell(asked, route, answer)
        self._shadow(asked, route, answer)

    async def _attempt(self, asked: Asked, route: Route, send: Send, answer: Answer) -> None:
        """Asks the version of a route, and notes its answer. A failure of one that has a fallback is kept from the client as long as nothing was sent."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.withheld = answer.status >= 500 and route.fallback is not None
                names = [] if asked.named else [(b"x-request-id", asked.request_id.encode())]
                names += [(b"x-fmray-model", urllib.parse.quote(route.served, errors="replace").encode())] if asked.model else []
                message = {**message, "headers": [*message.get("headers", ()), *names]}
            else:
                answer.take(message)
            if not answer.withheld:
                await send(message)

        scope, receive = asked.whole() if asked.model in (None, route.served) else asked.renamed(route.served)
        try:
            await self._app(scope, receive, watched)
        except Exception:
            if answer.status:
                raise
            answer.status, answer.withheld = 500, route.fallback is not None
            if not answer.withheld:
                raise

    def _count(self, label: str, change: int) -> None:
        self._in_flight[label] = self._in_flight.get(label, 0) + change
        self._meters.in_flight.set(self._in_flight[label], {"model": label})

    def _measure(self, label: str, asked: Asked, answer: Answer) -> None:
        tags, meters = {"model": label}, self._meters
        meters.requests.inc(1, {**tags, "route": asked.route, "status": str(answer.status)})
        meters.seconds.observe(answer.seconds, {**tags, "route": asked.route})
        for counter, count in ((meters.prompt_tokens, answer.n_prompt_tokens), (meters.completion_tokens, answer.n_tokens)):
            if count > 0:
                counter.inc(count, tags)
        if answer.first_s is not None:
            meters.first_token.observe(answer.first_s, tags)
        for gap_s in answer.gaps_s:
            meters.inter_token.observe(gap_s, tags)
        self._log.write(asked, answer, label)

    def _tell(self, asked: Asked, route: Route, answer: Answer) -> None:
        # What a client did wrong, or that the server was full, says nothing about a version.
        if route.canary is not None and route.version is not None and (answer.status < 400 or failed(answer.status)):
            self._observe(route.canary.name, [Observation(asked.request_id, route.version, answer.status, round(1e3 * answer.seconds, 3))])

    def _shadow(self, asked: Asked, route: Route, answer: Answer) -> None:
        """Begins a shadow request, one at a time, so that canaries add little load."""
        canary = route.canary
        if canary is None or answer.status != 200 or self._shadows or self._shadowed.get(canary.name, 0) >= canary.config.shadow:
            return
        body = deterministic(asked.route, asked.body)
        if body is not None:
            self._shadowed[canary.name] = self._shadowed.get(canary.name, 0) + 1
            task = asyncio.create_task(self._compare(asked, body, canary))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _compare(self, asked: Asked, body: dict[str, Any], canary: Canary) -> None:
        said = [await asked.repeated(self._app, {**body, "model": name}) for name in (canary.name, canary.candidate_name)]
        if said[0].status == 200:
            agreed = agreement(said[0].body, said[1].body) if said[1].status == 200 else 0.0
            seen = Observation(asked.request_id, canary.candidate, said[1].status, round(1e3 * said[1].seconds, 3), agreed)
            self._observe(canary.name, [seen])
        else:
            self._shadowed[canary.name] -= 1  # the champion failed: there is nothing to compare with
