"""The same run through a job on a standing cluster with token authentication: same fingerprints, the job's own exit code."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.e2e.driver import QUICKSTART, ROOT, SHRUNK, fmray, record

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


class Cluster(NamedTuple):
    """A standing Ray: its dashboard, and the environment that reaches it."""

    dashboard: str
    env: dict[str, str]


def free_port() -> int:
    """A free port outside the range that Ray gives to its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port >= 20000:
            return port


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="fms", dir="/tmp"))
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": f"{BIN}:{env['PATH']}"}
    port = free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={free_port()}", f"--dashboard-port={port}", f"--temp-dir={folder}"]
    command += ["--dashboard-host=127.0.0.1", "--disable-usage-stats", f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for_dashboard(port, head)
        yield Cluster(f"http://127.0.0.1:{port}", env)
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in reversed(processes):
            process.kill()
        psutil.wait_procs(processes, timeout=30)


def wait_for_dashboard(port: int, head: subprocess.Popen[bytes]) -> None:
    """Until the dashboard answers; 401 is an answer, for this cluster wants its token."""
    for _ in range(120):
        assert head.poll() is None, "the head ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2)
            return
        except urllib.error.HTTPError:
            time.sleep(3)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("no dashboard within a minute")


def command(cluster: Cluster, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(args, capture_output=True, text=True, cwd=cwd, env=cluster.env, timeout=600, check=False)


def test_a_job_gives_the_same_fingerprints_and_its_exit_code(cluster: Cluster, tmp_path: Path) -> None:
    experiment = str(QUICKSTART.relative_to(ROOT))
    local = fmray("run", str(QUICKSTART), "base_gate", *SHRUNK, cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    by_ray = tmp_path / "by_ray"
    args = ("python", "-m", "fmray", "run", experiment, "base_gate", *SHRUNK, "--storage", str(by_ray))
    done = command(cluster, str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--", *args)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for step in ("corpus", "base", "base_gate"):
        assert record(by_ray / "quickstart", step)["fingerprint"] == record(tmp_path / "runs/quickstart", step)["fingerprint"]
    # The same storage through `fmray submit`: all from cache, and a refused gate is exit code 3 here as there.
    args = ("submit", experiment, "base_gate", *SHRUNK, "--storage", str(by_ray), "--address", cluster.dashboard)
    cached = command(cluster, sys.executable, "-m", "fmray", *args)
    assert cached.returncode == 0, cached.stdout + cached.stderr
    assert "cached" in cached.stdout
    refused = command(cluster, sys.executable, "-m", "fmray", *args, "base_gate.rules=['eval/bits_per_byte < 0.1']")
    assert refused.returncode == 3, refused.stdout + refused.stderr


def test_a_wrong_address_and_a_wrong_token_are_one_line(cluster: Cluster, tmp_path: Path) -> None:
    args = ("submit", str(QUICKSTART.relative_to(ROOT)), "--storage", str(tmp_path), "--address")
    nobody = command(cluster, sys.executable, "-m", "fmray", *args, f"http://127.0.0.1:{free_port()}")
    assert nobody.returncode == 2
    assert "no Ray dashboard answers" in nobody.stderr
    stranger = Cluster(cluster.dashboard, cluster.env | {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "f" * 64})
    refused = command(stranger, sys.executable, "-m", "fmray", *args, cluster.dashboard)
    assert refused.returncode == 2
    assert refused.stderr.strip().count("\n") == 0
