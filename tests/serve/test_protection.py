"""The guard before the routes: keys, rates, bodies; and the keys' file."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fmray.core.errors import ConfigError
from fmray.serve.deploy import ready
from fmray.serve.deployment import DeployConfig
from fmray.serve.protection import (
    KEYS_VARIABLE,
    ApiKey,
    Bucket,
    Count,
    Guard,
    Protection,
    is_loopback,
    protect,
    sha256_of,
)

KEYS = (ApiKey("ada", sha256_of("secret")), ApiKey("bob", sha256_of("other"), requests_per_min=1))


class Asked:
    """A guard before an application that echoes the length of the body, asked as an ASGI server asks."""

    def __init__(self, protection: Protection, count: Count | None = None) -> None:
        self.now_s, self.reached, self.refused = 0.0, 0, list[str | None]()
        self.guard = Guard(self._app, protection, clock=lambda: self.now_s, count=count, refused=lambda error: self.refused.append(error.code))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        size = len((await receive()).get("body", b""))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"size": size}).encode()})

    def __call__(self, key: str | None = None, *, path: str = "/v1/models", chunks: tuple[bytes, ...] = (b"",), length: int | None = None) -> tuple[int, dict[str, str], Any]:
        headers = [] if key is None else [(b"authorization", key.encode())]
        headers += [] if length is None else [(b"content-length", str(length).encode())]
        waiting = [{"type": "http.request", "body": part, "more_body": i + 1 < len(chunks)} for i, part in enumerate(chunks)]
        sent: list[Any] = []

        async def receive() -> Any:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.guard({"type": "http", "method": "POST", "path": path, "root_path": "/api", "headers": headers}, receive, send))
        headers_sent = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers_sent, json.loads(sent[1]["body"])


@pytest.mark.parametrize("given", [None, "secret", "Bearer wrong", "Bearer ", "Basic secret", f"Bearer {sha256_of('secret')}", "Bearer s\u00e9cret"])
def test_a_wrong_key_goes_no_further(given: str | None) -> None:
    asked = Asked(Protection(KEYS))
    status, headers, body = asked(given)
    assert (status, headers["www-authenticate"], asked.reached) == (401, "Bearer", 0)
    assert (body["error"]["code"], set(body["error"])) == ("invalid_api_key", {"message", "type", "param", "code"})
    assert asked.refused == ["invalid_api_key"]


def test_a_right_key_passes_and_health_needs_none() -> None:
    asked = Asked(Protection(KEYS))
    assert asked("Bearer secret")[0] == 200
    assert asked("bearer other")[0] == 200
    for path in ("/health", "/api/health", "/api/"):
        assert asked(path=path)[0] == 200
    for path in ("/api/metadata", "/api/health/x", "/openapi.json"):
        assert asked(path=path)[0] == 401


def test_each_key_has_its_own_rate_and_is_told_when_to_come_back() -> None:
    asked = Asked(Protection(KEYS, requests_per_min=3))
    assert [asked("Bearer secret")[0] for _ in range(4)] == [200, 200, 200, 429]
    status, headers, body = asked("Bearer secret")
    assert (status, headers["retry-after"], body["error"]["type"]) == (429, "20", "rate_limit_error")
    assert [asked("Bearer other")[0] for _ in range(2)] == [200, 429]
    asked.now_s = 20.0
    assert [asked("Bearer secret")[0] for _ in range(2)] == [200, 429]
    assert asked.refused == ["rate_limit_exceeded"] * 4
    everyone = Asked(Protection(requests_per_min=1))
    assert [everyone()[0] for _ in range(2)] == [200, 429]


def test_a_bucket_never_holds_more_than_a_minutes_worth() -> None:
    bucket = Bucket(2, 0.0)
    assert [bucket.take(1e6) for _ in range(3)] == [None, None, 30]


def test_a_long_body_is_refused_however_it_comes() -> None:
    asked = Asked(Protection(max_body_bytes=10))
    assert asked(chunks=(b"12345", b"67890"))[2] == {"size": 10}
    for refused in (asked(length=11), asked(chunks=(b"12345", b"67890", b"1")), asked(length=3, chunks=(b"x" * 11,))):
        assert (refused[0], refused[2]["error"]["code"]) == (413, "request_too_large")
    assert asked.reached == 1
    assert asked.refused == ["request_too_large"] * 3


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.5", False), ("example.org", False)])
def test_other_hosts_need_keys_before_anything_starts(host: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_loopback(host) is alone
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    if alone:
        assert protect(DeployConfig(host=host)).keys == ()
        return
    with pytest.raises(ConfigError, match="there are no API keys") as refused:
        ready(DeployConfig(host=host))
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)
    assert protect(DeployConfig(host=host, open_to_all=True)).keys == ()
    monkeypatch.setenv(KEYS_VARIABLE, f"ada:{sha256_of('secret')}")
    assert [key.name for key in protect(DeployConfig(host=host), "own").keys] == ["ada", "fmray"]


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\nada:{sha256_of('secret').upper()}\n")
    monkeypatch.setenv(KEYS_VARIABLE, f"bob:{sha256_of('other')}:1, eve:{sha256_of('third')}")
    found = {key.name: key for key in protect(DeployConfig(api_keys=str(file), requests_per_min=9)).keys}
    assert (found["ada"], found["bob"]) == KEYS
    assert set(found) == {"ada", "bob", "eve"}


@pytest.mark.parametrize("content", ["my-secret-key", "ada:1234", f"ada:{'0' * 64}:0", "", "\xff"])
def test_a_bad_keys_file_is_one_line_that_shows_no_key(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    (tmp_path / "keys").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as refused:
        protect(DeployConfig(api_keys=str(tmp_path / "keys")))
    assert refused.value.exit_code == 2
    assert not content or content not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        protect(DeployConfig(api_keys=str(tmp_path / "absent")))


def test_vllm_needs_its_package_and_a_gpu() -> None:
    with pytest.raises(ConfigError, match="vllm"):
        ready(DeployConfig(engine="vllm"))
