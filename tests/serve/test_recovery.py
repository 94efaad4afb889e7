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
from tests.serve.conftest import MAX_LEN
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
        load.wait(lambda: broken not in replicas("mended", "base") and ready("mended", "base") == 2, 180)
        took_s, seen = time.monotonic() - began, len(load.answers)
        assert healthy < replicas("mended", "base")
        load.wait(lambda: len(load.answers) >= seen + 50, 60)
    assert load.failures == []
    assert load.retried > 0
    assert len(set(load.answers)) == 1
    with capsys.disabled():
        print(f"\ndead engine: {len(load.answers)} requests, 0 lost, {load.retried} asked again; replaced after {took_s:.1f} s; slowest {load.slowest_s:.2f} s")


def pid_of(actor: Any) -> int:
    """The process of an actor; of one that is being started again, once it is there."""
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))


def proxy() -> Any:
    """Ray Serve's one HTTP proxy; None while there is none."""
    import ray
    from ray.util import list_named_actors

    named = [actor for actor in list_named_actors(all_namespaces=True) if "SERVE_PROXY_ACTOR" in actor["name"]]
    try:
        return ray.get_actor(named[0]["name"], namespace=named[0]["namespace"]) if named else None
    except ValueError:
        return None


def test_a_killed_controller_comes_back_and_mends_again_while_answers_go_on(experiment: Path, serve_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    specs = admitted([experiment / "tuned"], decision=None, waiver=None)
    config = DeployConfig(app="steered", route="/steered", num_cpus=0.1, num_replicas=2)
    with running(specs, config, keep=False) as url, Load(url, score, clients=3) as load:
        load.wait(lambda: len(load.answers) >= 50 and ready("steered", "tuned") == 2, 60)
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        killed, before = pid_of(controller), replicas("steered", "tuned")
        began, seen = time.monotonic(), len(load.answers)
        os.kill(killed, signal.SIGKILL)
        load.wait(lambda: len(load.answers) >= seen + 20, 60)
        # The call waits for the new controller, which takes up what the old one had written down.
        assert pid_of(controller) != killed
        load.wait(lambda: ready("steered", "tuned") == 2, 180)
        took_s, during = time.monotonic() - began, len(load.answers) - seen
        assert replicas("steered", "tuned") == before
        os.kill(min(before), signal.SIGKILL)
        load.wait(lambda: len(replicas("steered", "tuned") - {min(before)}) == 2 and ready("steered", "tuned") == 2, 180)
        seen = len(load.answers)
        load.wait(lambda: len(load.answers) >= seen + 50, 60)
    assert load.failures == []
    assert len(set(load.answers)) == 1
    with capsys.disabled():
        print(f"\ncontroller killed: back after {took_s:.1f} s, {during} answers meanwhile; {len(load.answers)} requests, 0 lost, {load.retried} asked again; slowest {load.slowest_s:.2f} s")


def test_a_killed_proxy_is_replaced_and_fmrays_own_client_loses_nothing(experiment: Path, serve_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    specs = admitted([experiment / "tuned"], decision=None, waiver=None)
    config = DeployConfig(app="behind", route="/behind", num_cpus=0.1)
    with running(specs, config, keep=False) as url, Load(url, score, clients=3) as load:
        load.wait(lambda: len(load.answers) >= 50, 60)
        killed, before = pid_of(proxy()), replicas("behind", "tuned")
        began, seen = time.monotonic(), len(load.answers)
        os.kill(killed, signal.SIGKILL)
        load.wait(lambda: not smoke.healthy(url), 10)
        load.wait(lambda: smoke.healthy(url), 180)
        took_s = time.monotonic() - began
        load.wait(lambda: len(load.answers) >= seen + 100, 60)
        assert pid_of(proxy()) != killed
        assert replicas("behind", "tuned") == before
    assert load.failures == []
    assert load.retried >= 1
    assert len(set(load.answers)) == 1
    with capsys.disabled():
        print(f"\nproxy killed: answers again after {took_s:.1f} s; {len(load.answers)} requests, 0 lost, {load.retried} asked again; slowest {load.slowest_s:.2f} s")


def test_requests_to_a_replica_that_hangs_end_with_their_deadline_and_the_others_are_still_listed(experiment: Path, serve_port: int) -> None:
    specs = admitted([experiment / "tuned", experiment / "base"], decision=None, waiver=None)
    config = DeployConfig(app="hung", route="/hung", num_cpus=0.1, cache_tokens=1024, deadline_s=1.0)
    with running(specs, config, keep=False) as url:
        once = Client(url, attempts=1)
        before = score(once)
        healthy = once.models()
        assert [one["health"] for one in healthy] == ["ok", "ok"]
        [hung] = replicas("hung", "tuned")
        os.kill(hung, signal.SIGSTOP)
        try:
            with pytest.raises(RunError, match=r"answered 503: .*no replica of the model answered within 6 s"):
                score(once)
            assert not smoke.healthy(url, timeout_s=30)
            # A list of models is one of all of them, whatever has become of some.
            assert once.models() == [healthy[0] | {"health": "unknown", "fault": "no replica of the model answered within 5 s"}, healthy[1]]
            break_engine("hung", "base")
            with pytest.raises(RunError, match=r"answered (5|408)"):
                write(once, 4)
            said = once.models()
            assert [(one["id"], one["health"], one["max_model_len"]) for one in said] == [("tuned", "unknown", MAX_LEN), ("base", "down", MAX_LEN)]
        finally:
            os.kill(hung, signal.SIGCONT)
        patient = Client(url)
        assert score(patient) == before
        assert write(patient, 4)
        assert {one["health"] for one in once.models()} == {"ok"}


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
