"""Clients that put load on a served application, and what can be seen of its replicas meanwhile."""

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from fmray.core.errors import RunError
from fmray.serve.client import ATTEMPTS, Client


class Load:
    """Clients that each ask one question after another until they are told to stop, and what came of it."""

    def __init__(self, url: str, ask: Callable[[Client], Any], *, clients: int, attempts: int = ATTEMPTS) -> None:
        self.answers: list[Any] = []
        self.failures: list[str] = []
        self.slowest_s = 0.0
        self._ask, self._ended = ask, threading.Event()
        self._clients = [Client(url, attempts=attempts) for _ in range(clients)]
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in self._clients]

    def _run(self, client: Client) -> None:
        # The pause leaves the replicas that come up a part of a small machine.
        while not self._ended.wait(0.02):
            began = time.monotonic()
            try:
                self.answers.append(self._ask(client))
            except RunError as error:
                self.failures.append(str(error))
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Until the condition holds; fails after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not reached: {len(self.answers)} answers, failures: {self.failures[:3]}"
            time.sleep(0.1)

    @property
    def retried(self) -> int:
        """Questions that had to be asked again."""
        return sum(client.retried for client in self._clients)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def replicas(app: str, model: str) -> set[int]:
    """The processes of a model's replicas."""
    title = f"ray::ServeReplica:{app}:model-{model}"
    found = set()
    for process in psutil.process_iter():
        try:
            if (process.cmdline() or [""])[0].startswith(title):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def ready(app: str, model: str) -> int:
    """How many of a model's replicas take requests."""
    from ray import serve

    return serve.status().applications[app].deployments[f"model-{model}"].replica_states.get("RUNNING", 0)
