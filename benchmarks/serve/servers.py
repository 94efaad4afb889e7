"""The servers that are compared, each up while its block runs, with the processes whose CPU-seconds and memory count."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmray.serve.admission import Waiver, admit
from fmray.serve.application import free_port
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.specs import specs_of

APP = "bench"
TITLES = {"replica": f"ray::ServeReplica:{APP}:model-", "face": f"ray::ServeReplica:{APP}:face", "proxy": "ray::ProxyActor"}
CACHE_TOKENS = 8192
START_S, STOP_S = 180.0, 10.0


@dataclass(frozen=True)
class Server:
    """A server's base URL, the name by which it knows the model, and its processes by name."""

    url: str
    model: str
    processes: Mapping[str, psutil.Process]

    def cpu_s(self) -> float:
        """The processes' CPU-seconds until now."""
        times = [process.cpu_times() for process in self.processes.values()]
        return float(sum(one.user + one.system for one in times))

    def memory_mb(self) -> dict[str, float]:
        """Memory of each process that no other one shares, in MB of a million bytes."""
        return {name: process.memory_full_info().uss / 1e6 for name, process in self.processes.items()}


@contextlib.contextmanager
def fmray_serve(folder: Path) -> Iterator[Server]:
    """fmray behind Ray Serve on a Ray of its own; the replica, the HTTP face and the proxy count."""
    import ray

    temp = tempfile.mkdtemp(prefix="fmb", dir="/tmp")
    ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=temp, object_store_memory=200_000_000, log_to_driver=False)
    try:
        config = DeployConfig(app=APP, num_cpus=1.0, cache_tokens=CACHE_TOKENS, port=free_port("127.0.0.1"), deadline_s=1800.0, drain_s=STOP_S)
        specs = specs_of([admit(folder, waiver=Waiver("benchmarks", "measured"))], ["bench"])
        with running(specs, config, keep=False) as url:
            yield Server(url, "bench", _serving(temp))
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _serving(temp: str) -> dict[str, psutil.Process]:
    """This Ray's serving processes by name. Raises RuntimeError where they are not one of each: another Ray may run on the machine."""
    found = [(name, p) for p in psutil.process_iter(["cmdline"]) if (name := _name(p)) and _is_below(p, temp)]
    if sorted(name for name, _ in found) != sorted(TITLES):
        raise RuntimeError(f"the serving processes found are {sorted(name for name, _ in found)}, not one of each of {sorted(TITLES)}")
    return dict(found)


def _name(process: psutil.Process) -> str | None:
    title = (process.info["cmdline"] or [""])[0]
    return next((name for name, begin in TITLES.items() if title.startswith(begin)), None)


def _is_below(process: psutil.Process, temp: str) -> bool:
    try:
        return any(temp in file.path for file in process.open_files())
    except psutil.Error:
        return False


@contextlib.contextmanager
def _child(command: list[str], port: int, model: str) -> Iterator[Server]:
    """A server in a process of its own. What it says goes to a file: a pipe that nobody reads would stop it once it is full."""
    with tempfile.TemporaryFile() as said:
        environment = os.environ | {"HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
            while not _up(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"did not start: {(said.read().decode(errors='replace').strip().splitlines() or ['said nothing'])[-1]}")
                time.sleep(0.2)
            yield Server(url, model, {"server": psutil.Process(process.pid)})
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                # transformers' server does not end while the thread of its continuous batching lives.
                process.kill()
                process.wait(STOP_S)


def _up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2):
            return True
    except (OSError, urllib.error.URLError):
        return False


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[Server]:
    """FastAPI around `generate`."""
    port = free_port("127.0.0.1")
    with _child([sys.executable, "-m", "benchmarks.serve.plain_server", str(folder), str(port)], port, "bench") as server:
        yield server


@contextlib.contextmanager
def transformers_serve(folder: Path) -> Iterator[Server]:
    """transformers' own server, with continuous batching and the cache that fmray has (its default takes most of the memory)."""
    port = free_port("127.0.0.1")
    command = [
        sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--continuous-batching", "--cb-num-blocks", str(CACHE_TOKENS // 32),
        "--cb-block-size", "32", "--cb-max-batch-tokens", "256", "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with _child(command, port, str(folder)) as server:
        yield server
