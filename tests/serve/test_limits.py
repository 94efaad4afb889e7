"""A key's rate is one rate over all replicas of the face: with guards in this process, and on a real Ray Serve."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from fmray.serve import protection
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.foreground import admitted
from fmray.serve.limits import Limits, rated
from fmray.serve.protection import ApiKey, Protection, sha256_of
from tests.serve.test_protection import KEYS, Asked


def two(per_min: int) -> tuple[Asked, Asked, Callable[[float], None]]:
    """Two guards before one count, and what sets the time for all three."""
    limits = Limits(clock=lambda: guards[0].now_s)
    guards = [Asked(Protection(KEYS, requests_per_min=per_min), limits.take) for _ in range(2)]

    def at(now_s: float) -> None:
        for guard in guards:
            guard.now_s = now_s

    return guards[0], guards[1], at


def test_two_replicas_pass_together_what_one_would_pass_alone() -> None:
    one, other, at = two(4)
    assert [guard("Bearer secret")[0] for guard in (one, other, one, other, one, other)] == [200, 200, 200, 200, 429, 429]
    status, headers, body = one("Bearer secret")
    assert (status, headers["retry-after"], body["error"]["code"]) == (429, "15", "rate_limit_exceeded")
    # Another key has its own count.
    assert [guard("Bearer other")[0] for guard in (one, other)] == [200, 429]
    at(15.0)
    assert [guard("Bearer secret")[0] for guard in (other, one)] == [200, 429]


def test_what_all_refuse_costs_a_replica_nothing() -> None:
    one, other, at = two(2)
    assert [one("Bearer secret")[0] for _ in range(2)] == [200, 200]
    assert [other("Bearer secret")[0] for _ in range(5)] == [429] * 5
    at(60.0)
    assert [other("Bearer secret")[0] for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("hangs", [False, True])
def test_without_the_count_of_all_each_replica_keeps_the_rate_by_itself(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def gone(name: str, per_min: int) -> int | None:
        asked.append(name)
        if hangs:
            await asyncio.sleep(60)
        raise RuntimeError("the replica died")

    monkeypatch.setattr(protection, "COUNT_S", 0.01)
    for guard in (Asked(Protection(KEYS, requests_per_min=3), gone) for _ in range(2)):
        assert [guard("Bearer secret")[0] for _ in range(5)] == [200, 200, 200, 429, 429]
        guard.now_s = 20.0
        assert guard("Bearer secret")[0] == 200
    # No request waits for it in vain while another just did; after a pause it is asked again.
    assert asked == ["ada"] * 4


def test_nobody_counts_where_nothing_is_limited() -> None:
    unlimited = (ApiKey("ada", sha256_of("secret")),)
    assert not rated(Protection(unlimited))
    assert rated(Protection(unlimited, requests_per_min=5))
    assert rated(Protection(KEYS))


@pytest.mark.slow
def test_a_rate_holds_over_two_replicas_of_the_face(experiment: Path, serve_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ray import serve

    (tmp_path / "keys").write_text(f"ada:{sha256_of('secret')}\n")
    specs = admitted([experiment / "tuned"], decision=None, waiver=None)
    config = DeployConfig(app="rated", route="/rated", num_cpus=0.1, num_replicas=2, api_keys=str(tmp_path / "keys"), requests_per_min=6)

    with running(specs, config, keep=False) as url:
        states = serve.status().applications["rated"].deployments
        assert (states["face"].replica_states["RUNNING"], states["limits"].replica_states["RUNNING"]) == (2, 1)

        def ask(_: int) -> int:
            return httpx.get(f"{url}/metadata", headers={"Authorization": "Bearer secret"}, timeout=60).status_code

        began = time.monotonic()
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(ask, range(40)))
        took_s = time.monotonic() - began
    passed = answers.count(200)
    assert set(answers) == {200, 429}
    assert 6 <= passed <= 6 * (1 + took_s / 60)
    with capsys.disabled():
        print(f"\nrate of 6 a minute over two faces: {passed} of {len(answers)} passed in {took_s:.1f} s")
