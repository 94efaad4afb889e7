"""What stands before the routes: API keys, limits of rate, body and open requests. Every refusal has an OpenAI error body.

A rate holds over the whole application: each replica of the face counts for itself, which refuses a flood on the spot, and asks
the one that counts for all (`Limits`) about the rest. Of a key with R requests a minute, no more than R pass at once and no more than
R * (1 + t / 60) in any t seconds. While that one does not answer (it is being replaced), the bound is each replica's own: R times
their number; when it is back, it begins with a full minute.
"""

import asyncio
import hashlib
import ipaddress
import logging
import math
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmray.core.errors import ConfigError
from fmray.serve.deployment import DeployConfig
from fmray.serve.engine import RequestError

KEYS_VARIABLE = "FMRAY_API_KEYS"
OPEN_PATHS = frozenset({"", "/", "/health"})
"""Answered without a key: what load balancers ask, and the page that asks for the key."""
MAX_OPEN = 512
# So much of a body that is too long is read and thrown away: most clients read no answer before they have sent all.
MAX_DRAINED_BYTES = 200_000_000
ENTRY = re.compile(r"([\w.@-]+):([0-9a-fA-F]{64})(?::([1-9]\d*))?")
OWN = "fmray"
# What the count of all replicas may cost a request before it goes on without, and how long it is not asked again then.
COUNT_S, ALONE_S = 2.0, 1.0
# Of a key's owner and requests a minute: the whole seconds to wait, or None for now.
Count = Callable[[str, int], Awaitable[int | None]]


@dataclass(frozen=True)
class ApiKey:
    """A key's owner, the sha256 of the key itself, and the owner's requests a minute (None: as many as everyone's)."""

    name: str
    sha256: str
    requests_per_min: int | None = None


@dataclass(frozen=True)
class Protection:
    """What the HTTP face is to refuse, and how long it waits for an answer. No keys: everyone may ask."""

    keys: tuple[ApiKey, ...] = ()
    requests_per_min: int | None = None
    max_body_bytes: int = 2_000_000
    deadline_s: float = 300.0


def sha256_of(key: str) -> str:
    """The sha256 of a key, as `printf %s "$KEY" | sha256sum` gives it."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def protect(config: DeployConfig, own_key: str | None = None) -> Protection:
    """What the config asks for.

    Args:
        own_key: one more key, for the requests that fmray itself sends while it tries the models.

    Raises:
        ConfigError: the keys cannot be read, or there are none and the host can be reached from other machines.
    """
    keys = _keys(config)
    require_keys(config.host, keys, config)
    if keys and own_key is not None:
        keys = (*keys, ApiKey(OWN, sha256_of(own_key)))
    return Protection(keys, config.requests_per_min, int(config.max_body_mb * 1e6), config.deadline_s)


def require_keys(host: str, keys: tuple[ApiKey, ...], config: DeployConfig) -> None:
    """Raises ConfigError where other machines could ask without a key and nobody said that they may."""
    if not keys and not config.open_to_all and not is_loopback(host):
        todo = f"give api_keys (a file of NAME:SHA256 lines), set {KEYS_VARIABLE}, or say open_to_all"
        raise ConfigError(f"{host} can be reached from other machines and there are no API keys", where="host", todo=todo)


def _keys(config: DeployConfig) -> tuple[ApiKey, ...]:
    """The keys of the file and of the environment, by entries NAME:SHA256 or NAME:SHA256:REQUESTS_PER_MINUTE."""
    entries = [(KEYS_VARIABLE, entry) for entry in re.split(r"[\s,]+", os.environ.get(KEYS_VARIABLE, "")) if entry]
    if config.api_keys is not None:
        try:
            lines = Path(config.api_keys).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the keys cannot be read ({error})", where=config.api_keys, todo="give a text file") from None
        entries += [(f"{config.api_keys}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
        if not entries:
            raise ConfigError("holds no key", where=config.api_keys, todo="give lines of NAME:SHA256")
    found = []
    for where, entry in entries:
        match = ENTRY.fullmatch(entry)
        if match is None:
            # Never shown: somebody may have written the key itself here.
            raise ConfigError("is not NAME:SHA256 or NAME:SHA256:REQUESTS_PER_MINUTE", where=where, todo='make the sha256 with: printf %s "$KEY" | sha256sum')
        name, digest, rate = match.groups()
        found.append(ApiKey(name, digest.lower(), int(rate) if rate else None))
    return tuple(found)


class Bucket:
    """A token bucket: `per_min` requests at once, refilled evenly over a minute."""

    def __init__(self, per_min: int, now_s: float) -> None:
        self.per_min, self.left, self.at_s = per_min, float(per_min), now_s

    def take(self, now_s: float) -> int | None:
        """None when the request may pass, else the whole seconds after which one may."""
        self.left = min(float(self.per_min), self.left + (now_s - self.at_s) * self.per_min / 60)
        self.at_s = now_s
        if self.left < 1:
            return math.ceil((1 - self.left) * 60 / self.per_min)
        self.left -= 1
        return None

    def give_back(self) -> None:
        """Takes back one that passed here and was refused elsewhere."""
        self.left += 1


class Guard:
    """ASGI middleware that refuses before anything is parsed: wrong keys (401), rates (429), bodies (413), too many at once (429).

    `count` counts a key's requests over all replicas; None where there is only this one. `refused` is told every refusal.
    """

    def __init__(
        self, app: Any, protection: Protection, clock: Callable[[], float] = time.monotonic, count: Count | None = None,
        refused: Callable[[RequestError], object] = lambda _: None,
    ) -> None:  # fmt: skip
        self._app, self._protection, self._clock, self._count, self._refused = app, protection, clock, count, refused
        self._keys = {key.sha256: key for key in protection.keys}
        self._buckets: dict[str, Bucket] = {}
        self._open = 0
        self._alone_until_s: float | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it with the refusal."""
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        try:
            await self._admit(scope)
            body = await self._body(scope, receive)
        except RequestError as error:
            self._refused(error)
            await JSONResponse(error.body(), error.status, error.headers())(scope, receive, send)
            return
        if body is None:
            return  # the client left while it was sending

        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        self._open += 1
        try:
            await self._app(scope, replay, send)
        finally:
            self._open -= 1

    async def _admit(self, scope: Any) -> None:
        name, per_min = "everyone", self._protection.requests_per_min
        if self._keys:
            scheme, _, given = _header(scope, b"authorization").strip().partition(" ")
            key = self._keys.get(hashlib.sha256(given.strip().encode()).hexdigest()) if scheme.lower() == "bearer" else None
            if key is None:
                what = "incorrect API key" if given else "no API key: send the header Authorization: Bearer KEY"
                raise RequestError(401, what, code="invalid_api_key")
            name, per_min = key.name, key.requests_per_min or (None if key.name == OWN else per_min)
        if per_min is not None:
            wait_s = await self._take(name, per_min)
            if wait_s is not None:
                raise RequestError(429, f"more than {per_min} requests a minute", code="rate_limit_exceeded", retry_after_s=wait_s)
        if self._open >= MAX_OPEN:
            raise RequestError(429, f"{MAX_OPEN} requests are under way: try again later", code="server_full", retry_after_s=1)

    async def _take(self, name: str, per_min: int) -> int | None:
        """The whole seconds after which the owner of a key may ask, or None for now."""
        now_s = self._clock()
        bucket = self._buckets.setdefault(name, Bucket(per_min, now_s))
        wait_s = bucket.take(now_s)
        if wait_s is not None or self._count is None or now_s < (self._alone_until_s or now_s):
            return wait_s
        try:
            async with asyncio.timeout(COUNT_S):
                wait_s = await self._count(name, per_min)
        except Exception as error:
            if self._alone_until_s is None:
                logging.getLogger("ray.serve").warning("rates are counted by this replica alone: the count of all did not answer (%s)", type(error).__name__)
            self._alone_until_s = self._clock() + ALONE_S
            return None
        self._alone_until_s = None
        if wait_s is not None:
            bucket.give_back()
        return wait_s

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """The whole body, or None when the client left. Raises RequestError (413) for one that is too long, of which no more than
        the limit is ever held."""
        limit = self._protection.max_body_bytes
        declared = _header(scope, b"content-length")
        size = int(declared) if declared.isdigit() else 0
        too_long = size > limit
        parts, received, more = list[bytes](), 0, size <= MAX_DRAINED_BYTES
        while more and received <= MAX_DRAINED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            received += len(part)
            too_long = too_long or received > limit
            if too_long:
                parts.clear()
            else:
                parts.append(part)
            more = message.get("more_body", False)
        if too_long:
            raise RequestError(413, f"the body is longer than {limit} bytes", code="request_too_large")
        return b"".join(parts)


def _header(scope: Any, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
