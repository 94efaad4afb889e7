"""The servers that are compared, each up while its block runs, with the processes whose CPU-seconds count."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmray.serve.admission import Waiver, admit
from fmray.serve.application import free_port
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.specs import specs_of

COUNTED = ("ray::ServeReplica", "ray::ProxyActor")
N_COUNTED = 3  # the model's replica, the face, the proxy
CACHE_TOKENS = 8192
START_S = 180.0


@dataclass(frozen=True)
class Server:
    """A server's base URL, the name by which it knows the model, and its CPU-seconds until now."""

    url: str
    model: str
    cpu_s: Callable[[], float]


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


@contextlib.contextmanager
def fmray_serve(folder: Path) -> Iterator[Server]:
    """fmray behind Ray Serve on a Ray of its own; the replica, the HTTP face and the proxy count."""
    import ray

    temp = tempfile.mkdtemp(prefix="fmb", dir="/tmp")
    ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=temp, object_store_memory=200_000_000, log_to_driver=False)
    try:
        config = DeployConfig(app="bench", num_cpus=1.0, cache_tokens=CACHE_TOKENS, port=free_port("127.0.0.1"))
        specs = specs_of([admit(folder, waiver=Waiver("benchmarks", "measured"))], ["bench"])
        with running(specs, config, keep=False) as url:
            mine = [p for p in psutil.process_iter(["cmdline"]) if _is_serving(p, temp)]
            if len(mine) != N_COUNTED:
                raise ValueError(f"{len(mine)} serving processes were found, not {N_COUNTED}")
            yield Server(url, "bench", lambda: _cpu_s(mine))
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _is_serving(process: psutil.Process, temp: str) -> bool:
    """Whether a process is one of this Ray's serving actors: another Ray may run on the machine."""
    titled = (process.info["cmdline"] or [""])[0].startswith(COUNTED)
    try:
        return titled and any(temp in file.path for file in process.open_files())
    except psutil.Error:
        return False


@contextlib.contextmanager
def _child(command: list[str], port: int, model: str) -> Iterator[Server]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not _up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"{command[2]} did not start: {(process.stderr.read() if process.stderr else b'')[-400:].decode()}")
            time.sleep(0.2)
        counted = [psutil.Process(process.pid)]
        yield Server(url, model, lambda: _cpu_s(counted))
    finally:
        process.terminate()
        process.wait(30)


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
