"""A client that loses no request when a replica dies, a server is full or an upgrade is on its way: it asks again.

Plain urllib, so that asking needs no Ray. Every call here but `feedback` is idempotent (asking twice changes nothing on the
server) and is asked again after a connection that failed, 429 and 5xx, with the pause that `Retry-After` names or one that
doubles. A stream is asked again only as long as no piece of it came.
"""

import contextlib
import http.client
import itertools
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from fmray.core.errors import RunError

T = TypeVar("T")

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
# Together longer than the half minute and the start that it takes Ray Serve, with its own settings, to replace a dead proxy.
ATTEMPTS = 20


class Client:
    """Asks an application at `url`. `attempts` 1 asks once; `retried` counts the questions that had to be asked again."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 120.0, attempts: int = ATTEMPTS) -> None:
        self.url, self.timeout_s, self.attempts = url.rstrip("/"), timeout_s, attempts
        self.retried = 0
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def complete(self, model: str, prompt: str, **options: Any) -> dict[str, Any]:
        """The body of POST /v1/completions. Raises RunError."""
        return self.post("/v1/completions", {"model": model, "prompt": prompt, **options})

    def classify(self, model: str, text: str | list[str], *, truncate: bool = False) -> dict[str, Any]:
        """The body of POST /v1/classify. Raises RunError."""
        return self.post("/v1/classify", {"model": model, "input": text, "truncate": truncate})

    def models(self) -> list[dict[str, Any]]:
        """What /v1/models lists. Raises RunError."""
        return list(self._asked("/v1/models", None, self._read)["data"])

    def feedback(self, **fields: Any) -> dict[str, Any]:
        """Stores feedback. Asked once: a second line for one answer would weigh twice. Raises RunError."""
        return self._once("/v1/feedback", fields, self._read)

    def stream(self, model: str, prompt: str, **options: Any) -> Iterator[str]:
        """The pieces of a completion's text as they come. Raises RunError, also in the middle of a stream that breaks off."""
        body = {"model": model, "prompt": prompt, **options, "stream": True}
        first, rest = self._asked("/v1/completions", body, self._begun, close=False)
        with contextlib.closing(rest):
            yield from first
            yield from rest

    def _begun(self, answer: Any) -> tuple[list[str], Generator[str, None, None]]:
        """A stream's first piece and those to come: a fault before that piece is one of the question, which is asked again."""
        pieces = _pieces(answer, self.url)
        return list(itertools.islice(pieces, 1)), pieces

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a JSON body, asked until it comes.

        Raises:
            RunError: an answer that asking again cannot change, or no good one after `attempts`.
        """
        return self._asked(route, body, self._read)

    def _asked(self, route: str, body: dict[str, Any] | None, read: Callable[[Any], T], *, close: bool = True) -> T:
        pause_s = FIRST_PAUSE_S
        for left in range(self.attempts - 1, -1, -1):
            try:
                return self._once(route, body, read, close=close)
            except _Again as again:
                if not left:
                    raise RunError(again.what, where=again.where) from None
                self.retried += 1
                # Spread out, so that many clients of one dead replica do not come back in the same moment.
                time.sleep(max(again.after_s, pause_s * random.uniform(0.5, 1.0)))
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        raise AssertionError("unreachable")

    def _once(self, route: str, body: dict[str, Any] | None, read: Callable[[Any], T], *, close: bool = True) -> T:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{route}", data, self._headers)
        try:
            answer = urllib.request.urlopen(request, timeout=self.timeout_s)
            try:
                return read(answer)
            finally:
                if close:
                    answer.close()
        except urllib.error.HTTPError as error:
            what = f"answered {error.code}: {_said(error)}"
            if error.code in RETRIED:
                raise _Again(what, request.full_url, _seconds(error.headers.get("Retry-After"))) from None
            raise RunError(what, where=request.full_url) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _Again(f"did not answer ({error})", request.full_url, 0.0) from None

    @staticmethod
    def _read(answer: Any) -> dict[str, Any]:
        return dict(json.load(answer))


class _Again(RunError):
    """A fault that asking again may cure, after a pause."""

    def __init__(self, what: str, where: str, after_s: float) -> None:
        super().__init__(what, where=where)
        self.after_s = after_s


def _seconds(retry_after: str | None) -> float:
    """The pause that a Retry-After header names; 0 for none, or for a date."""
    return min(60.0, float(retry_after)) if retry_after and retry_after.isdigit() else 0.0


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of an error's body; of one that breaks off, that it did."""
    try:
        return error.read().decode(errors="replace")[:300]
    except (OSError, http.client.HTTPException) as broken:
        return f"(its body broke off: {broken})"


def _pieces(answer: Any, url: str) -> Generator[str, None, None]:
    """The texts of a stream's events. Raises RunError, as `_Again` where the same question may find a better answer."""
    with answer:
        try:
            for line in answer:
                event = line.decode().strip().removeprefix("data: ")
                if event == "[DONE]":
                    return
                if event:
                    yield _piece(json.loads(event), url)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _Again(f"broke off in the middle of a stream ({error})", url, 0.0) from None
    raise _Again("ended a stream without its end mark", url, 0.0)


def _piece(event: dict[str, Any], url: str) -> str:
    if "error" in event:
        what = f"failed in the middle of a stream: {event['error'].get('message')}"
        if event["error"].get("type") == "invalid_request_error":
            raise RunError(what, where=url)
        raise _Again(what, url, 0.0)
    return str(event["choices"][0]["text"]) if event.get("choices") else ""
