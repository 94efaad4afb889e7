"""The client against a real HTTP server that fails in every way a replica can: what it asks again, and what it never does."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fmray.core.errors import RunError
from fmray.serve.client import ATTEMPTS, FIRST_PAUSE_S, LONGEST_PAUSE_S, Client

Answers = list[tuple[int, dict[str, str], bytes]]
EVENTS = b'data: {"choices": [{"text": "a"}]}\n\ndata: {"choices": [{"text": "b"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def server() -> Iterator[Callable[[Answers], tuple[Client, list[dict[str, Any]]]]]:
    """Starts a server that gives these answers in turn (status 0 hangs up), and a client of it with what the server was asked."""
    running: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> tuple[Client, list[dict[str, Any]]]:
        asked: list[dict[str, Any]] = []
        waiting = iter(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, headers, body = next(waiting)
                if not status:
                    self.connection.close()
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return Client(f"http://127.0.0.1:{running[-1].server_port}", attempts=4), asked

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def test_it_asks_again_until_there_is_an_answer(server: Any) -> None:
    client, asked = server([(503, {}, b"{}"), (0, {}, b""), (500, {}, b"{}"), (200, {}, b'{"choices": [1]}')])
    assert client.complete("m", "p", max_tokens=3) == {"choices": [1]}
    assert asked == [{"model": "m", "prompt": "p", "max_tokens": 3}] * 4
    assert client.retried == 3


def test_it_waits_as_long_as_a_full_server_says(server: Any) -> None:
    client, _ = server([(429, {"Retry-After": "1"}, b"{}"), (200, {}, b"{}")])
    began = time.monotonic()
    client.classify("m", "x")
    assert time.monotonic() - began >= 1.0


def test_a_patient_client_outlives_the_replacement_of_a_proxy() -> None:
    # Ray Serve's own settings: three checks, ten seconds apart, and the start of a process.
    shortest = sum(0.5 * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(ATTEMPTS - 1))
    assert shortest >= 35


def test_it_gives_up_with_the_last_answer(server: Any) -> None:
    client, asked = server([(503, {}, b"no replica")] * 4)
    with pytest.raises(RunError, match="answered 503: no replica"):
        client.complete("m", "p")
    assert len(asked) == 4


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_the_client_did_wrong_is_not_asked_again(server: Any, status: int) -> None:
    client, asked = server([(status, {}, b"wrong")])
    with pytest.raises(RunError, match=f"answered {status}: wrong"):
        client.complete("m", "p")
    assert len(asked) == 1


def test_feedback_is_never_stored_twice(server: Any) -> None:
    client, asked = server([(503, {}, b"{}")])
    with pytest.raises(RunError, match="answered 503"):
        client.feedback(model="m", verdict="accepted", input="a", output="b")
    assert len(asked) == 1


def failed(kind: str) -> bytes:
    return b"data: " + json.dumps({"error": {"message": "lost", "type": kind}}).encode() + b"\n\n"


def test_a_stream_is_asked_again_only_before_its_first_piece(server: Any) -> None:
    broken = (200, {"Content-Length": "100"}, b"")
    client, asked = server([(503, {}, b"{}"), (200, {}, failed("server_error")), broken, (200, {}, EVENTS + DONE)])
    assert list(client.stream("m", "p")) == ["a", "b"]
    assert (len(asked), asked[0]["stream"], client.retried) == (4, True, 3)
    client, asked = server([(200, {}, EVENTS)])
    pieces = client.stream("m", "p")
    assert [next(pieces), next(pieces)] == ["a", "b"]
    with pytest.raises(RunError, match="without its end mark"):
        next(pieces)
    assert len(asked) == 1
    for answer in (EVENTS + failed("server_error"), failed("invalid_request_error")):
        client, asked = server([(200, {}, answer)])
        with pytest.raises(RunError, match="failed in the middle of a stream: lost"):
            list(client.stream("m", "p"))
        assert len(asked) == 1


def test_an_error_whose_body_breaks_off_is_an_answer_like_any_other(server: Any) -> None:
    client, asked = server([(503, {"Content-Length": "100"}, b"{"), (200, {}, b'{"choices": [1]}')])
    assert client.complete("m", "p") == {"choices": [1]}
    assert len(asked) == 2
