"""Whole lives of a run: ended and gone on with, refused and trained further, and as a job on a standing cluster."""

import json
import os
import shutil
import signal
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

from fmray.train.pretrain import LEDGER
from fmray.train.state import latest_state
from tests.data.corpora import topics, write_texts
from tests.e2e.driver import QUICKSTART, ROOT, UNAUDITED, fmray, record, start

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The overrides of every run here: the shrunk quickstart on a smaller corpus."""
    texts = write_texts(tmp_path_factory.mktemp("texts") / "topics", topics())
    return (*UNAUDITED, f"corpus.source={{type: text, path: {texts}}}", "base.max_steps=120", "base.checkpoint_every_steps=20", "base.ledger=true")


def wait_for_steps(metrics_file: Path, steps: int, process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    """Until training has logged so many steps."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended too early"
        if metrics_file.exists() and len(metrics_file.read_text().splitlines()) >= steps:
            return
        time.sleep(0.2)
    raise AssertionError(f"no {steps} steps within {timeout_s} s")


@pytest.fixture(scope="module")
def quiet(life: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an undisturbed run left what it made."""
    folder = tmp_path_factory.mktemp("quiet")
    assert fmray("run", str(QUICKSTART), "base", *life, cwd=folder).returncode == 0
    return folder / "runs/quickstart"


def assert_same(base: Path, quiet: Path) -> None:
    a, b = record(quiet, "base"), record(base, "base")
    assert a["fingerprint"] == b["fingerprint"]
    assert a["payload"]["losses"] == b["payload"]["losses"]
    assert a["payload"]["digest"] == b["payload"]["digest"]


def end(life: tuple[str, ...], folder: Path, number: signal.Signals, steps: int) -> tuple[int, str]:
    """Runs the life, and sends its command a signal once so many steps are logged; its exit code and what it said."""
    process = start("run", str(QUICKSTART), "base", *life, cwd=folder)
    wait_for_steps(folder / "runs/quickstart/base/metrics.jsonl", steps, process)
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=120)
    psutil.wait_procs(descendants, timeout=60)
    return process.returncode, said


def test_a_run_that_was_ended_twice_goes_on_with_the_same_command_and_the_same_losses(life: tuple[str, ...], quiet: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs/quickstart"
    shutil.copytree(quiet / "corpus", root / "corpus")
    assert end(life, tmp_path, signal.SIGKILL, 30)[0] == -signal.SIGKILL
    code, said = end(life, tmp_path, signal.SIGTERM, 70)
    reached = len((root / "base" / "metrics.jsonl").read_text().splitlines())
    assert code == 143
    assert f"fmray: ended by SIGTERM behind step {reached}, whose state is written; the same command" in said
    state = latest_state(root / "base" / "work" / "train")
    assert state is not None
    assert state[1].step == reached < 120
    done = fmray("run", str(QUICKSTART), "base", *life, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(root, quiet)
    proof = json.loads((root / "base" / LEDGER).read_text())
    assert proof["proven"], proof
    assert proof["world_sizes"] == [2, 2, 2]


def test_a_refusal_goes_back_trains_on_and_is_judged_anew(life: tuple[str, ...], quiet: Path, tmp_path: Path) -> None:
    """Round 2 goes on from the last checkpoint of round 1 and both rounds stay as artifacts."""
    root = tmp_path / "runs/quickstart"
    shutil.copytree(quiet, root)
    first = fmray("run", str(QUICKSTART), "base_eval", *life, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    loss = next(m["value"] for m in record(root, "base_eval")["payload"]["metrics"] if m["name"] == "eval/bits_per_byte")
    rule = f"base_gate.rules=['eval/bits_per_byte < {loss - 0.01}']"
    back = "base_gate.on_refusal={back_to: base, max_rounds: 2, set: {base.max_steps: 80}}"
    done = fmray("run", str(QUICKSTART), "base_gate", *life, rule, back, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not record(root, "base_gate")["payload"]["admitted"]
    assert record(root, "base_gate@2")["payload"]["admitted"]
    assert record(root, "base@2")["payload"]["step"] == 120 + 80
    assert record(root, "base@2")["inputs"]["previous"] == record(root, "base")["fingerprint"]


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


def test_a_job_on_a_cluster_with_tokens_makes_the_same_and_ends_with_its_own_exit_code(cluster: Cluster, life: tuple[str, ...], quiet: Path, tmp_path: Path) -> None:
    experiment = str(QUICKSTART.relative_to(ROOT))
    args = ("python", "-m", "fmray", "run", experiment, "base_gate", *life, "--storage", str(tmp_path))
    done = command(cluster, str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--", *args)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert record(tmp_path / "quickstart", "corpus")["fingerprint"] == record(quiet, "corpus")["fingerprint"]
    assert_same(tmp_path / "quickstart", quiet)
    # The same storage through `fmray submit`: all from cache, and a refused gate is exit code 3 here as there.
    args = ("submit", experiment, "base_gate", *life, "--storage", str(tmp_path), "--address", cluster.dashboard)
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
