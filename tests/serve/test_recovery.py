"""An application that mends and scales itself under load, on a real Ray Serve: asserted on order and counts."""

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fmray.core.errors import RunError
from fmray.serve import smoke
from fmray.serve.client import Client
from fmray.serve.deploy import running
from fmray.serve.deployment import Autoscaling, DeployConfig
from fmray.serve.foreground import admitted
from tests.serve.load import Load, ready, replicas

pytestmark = pytest.mark.slow


def score(client: Client) -> float:
    return float(client.classify("tuned", "Return the value")["data"][0]["scores"]["os"])


def write(client: Client, max_tokens: int) -> str:
    return str(client.complete("base", "Return the", max_tokens=max_tokens, temperature=0)["choices"][0]["text"])


def break_engine(app: str, model: str) -> int:
    """Makes the next forward pass of one replica fail, as an error of a device does; gives the replica's process."""
    import ray
    from ray.util import list_named_actors

    def broken(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def break_it(_: Any) -> int:
        import threading

        # The engine's own thread knows its manager.
        [loop] = [one for thread in threading.enumerate() if (one := getattr(thread, "_target", None)) and one.__name__ == "_run_generation_loop"]
        loop.__self__._generation_step = broken
        return os.getpid()

    named = next(actor for actor in list_named_actors(all_namespaces=True) if f"{app}#model-{model}#" in actor["name"])
    actor: Any = ray.get_actor(named["name"], namespace=named["namespace"])
    return int(ray.get(actor.__ray_call__.remote(break_it), timeout=30))


def test_a_replica_whose_engine_died_is_replaced_and_loses_no_request(experiment: Path, serve_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    specs = admitted([experiment / "base"], decision=None, waiver=None)
    config = DeployConfig(app="mended", route="/mended", num_cpus=0.1, num_replicas=2, cache_tokens=1024)
    with running(specs, config, keep=False) as url, Load(url, lambda client: write(client, 4), clients=3) as load:
        load.wait(lambda: len(load.answers) >= 50 and ready("mended", "base") == 2, 60)
        broken = break_engine("mended", "base")
        began, healthy = time.monotonic(), replicas("mended", "base") - {broken}
        load.wait(lambda: broken not in replicas("mended", "base") and ready("mended", "base") == 2, 90)
        took_s, seen = time.monotonic() - began, len(load.answers)
        assert healthy < replicas("mended", "base")
        load.wait(lambda: len(load.answers) >= seen + 50, 60)
    assert load.failures == []
    assert load.retried > 0
    assert len(set(load.answers)) == 1
    with capsys.disabled():
        print(f"\ndead engine: {len(load.answers)} requests, 0 lost, {load.retried} asked again; replaced after {took_s:.1f} s; slowest {load.slowest_s:.2f} s")


def test_requests_to_a_replica_that_hangs_end_with_their_deadline(experiment: Path, serve_port: int) -> None:
    specs = admitted([experiment / "tuned"], decision=None, waiver=None)
    config = DeployConfig(app="hung", route="/hung", num_cpus=0.1, deadline_s=1.0)
    with running(specs, config, keep=False) as url:
        once = Client(url, attempts=1)
        before = score(once)
        [hung] = replicas("hung", "tuned")
        os.kill(hung, signal.SIGSTOP)
        try:
            with pytest.raises(RunError, match=r"answered 503: .*no replica of the model answered within 6 s"):
                score(once)
            assert not smoke.healthy(url, timeout_s=30)
        finally:
            os.kill(hung, signal.SIGCONT)
        assert score(Client(url)) == before


def test_replicas_follow_the_load_up_and_down_and_no_request_fails(experiment: Path, serve_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One light client asks all the time, once each; six heavy ones come and go."""
    specs = admitted([experiment / "base"], decision=None, waiver=None)
    scaling = Autoscaling(min_replicas=1, max_replicas=3, target_ongoing_requests=1.5, upscale_delay_s=1.0, downscale_delay_s=2.0, look_back_period_s=2.0)
    config = DeployConfig(app="scaled", route="/scaled", num_cpus=0.1, cache_tokens=1024, autoscaling=scaling)
    with running(specs, config, keep=False) as url, Load(url, lambda client: write(client, 1), clients=1, attempts=1) as light:
        counts: list[int] = []

        def reached(n: int) -> bool:
            counts.append(ready("scaled", "base"))
            return counts[-1] == n

        light.wait(lambda: reached(1), 30)
        with Load(url, lambda client: write(client, 64), clients=6, attempts=1) as heavy:
            heavy.wait(lambda: reached(3), 120)
        light.wait(lambda: reached(1), 120)
        seen = len(light.answers)
        light.wait(lambda: len(light.answers) >= seen + 20, 30)
    assert light.failures == heavy.failures == []
    assert len(set(light.answers)) == len(set(heavy.answers)) == 1
    order = [count for count, _ in itertools.groupby(counts)]
    top = order.index(3)
    assert order[: top + 1] == sorted(set(order[: top + 1]))
    assert order[top:] == sorted(set(order[top:]), reverse=True)
    assert (order[0], order[-1]) == (1, 1)
    with capsys.disabled():
        print(f"\nscaling: replicas {order}; {len(light.answers)} light and {len(heavy.answers)} heavy requests, 0 failed; slowest {light.slowest_s:.2f} s")
