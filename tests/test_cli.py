"""The command line as a user types it: exit codes, one line on standard error, what it prints."""

import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from fmray.cli import guarded, split_rest
from fmray.core.errors import ConfigError, GateRefused, RunError

QUICKSTART = Path(__file__).parent.parent / "jobs" / "quickstart.yaml"


def fmray(*args: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fmray", *args], capture_output=True, text=True, cwd=cwd, env=env, timeout=120, check=False)


def test_steps_and_overrides_are_told_apart() -> None:
    assert split_rest(["base", "base.optim.lr=1e-3", "base_eval"]) == (["base", "base_eval"], ["base.optim.lr=1e-3"])


@pytest.mark.parametrize(("error", "code"), [(RunError("x"), 1), (ConfigError("x"), 2), (GateRefused("x"), 3), (KeyboardInterrupt(), 130), (ValueError("x"), 1)])
def test_every_way_to_end_has_its_exit_code_and_one_line(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    assert guarded(command) == code
    printed = capsys.readouterr().err
    assert printed.startswith("fmray: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "missing.yaml"], "missing.yaml: cannot be read (No such file or directory)"),
        (["run", str(QUICKSTART), "bsae"], "there is no step 'bsae', did you mean 'base'"),
        (["run", str(QUICKSTART), "base.optim.lrr=1"], "base.optim.lrr: unknown key 'lrr', did you mean 'lr'"),
        (["run", str(QUICKSTART), "base.global_batch_size=eight"], "base.global_batch_size: "),
        (["run", str(QUICKSTART), "base.model={type: decodr}"], "base.model: unknown architecture 'decodr', did you mean 'decoder'"),
        (["run", str(QUICKSTART), "corpus.source={type: text, path: nowhere}"], "nowhere"),
        (["run", str(QUICKSTART), "base.global_batch_size=9"], "base: "),
        (["run", str(QUICKSTART), "--storage", "s3://bucket/x"], "storage 's3://bucket/x' is not supported"),
        (["check", str(QUICKSTART), "base_gate.rules=['eval/perplexity <<= 3']"], "base_gate"),
        (["show", "nowhere"], "nowhere"),
        (["runn"], "runn"),
        (["submit", str(QUICKSTART)], "'runs' is relative"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(args: list[str], message: str, tmp_path: Path) -> None:
    done = fmray(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    # Nothing half-written: at most the folder of logs.
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "logs"]


def test_inside_a_job_a_relative_storage_is_refused(tmp_path: Path) -> None:
    import os

    done = fmray("run", str(QUICKSTART), cwd=tmp_path, env={**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
    assert done.returncode == 2
    assert "'runs' is relative, and this job's folder vanishes with the job" in done.stderr


def test_check_prints_the_plan_in_no_time(tmp_path: Path) -> None:
    began = time.monotonic()
    done = fmray("check", str(QUICKSTART), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "FLOPs", "memory", "tokens"):
        assert word in done.stdout
    assert time.monotonic() - began < 30
    assert not list(tmp_path.iterdir())


def test_fingerprints_are_the_same_wherever_it_runs(tmp_path: Path) -> None:
    """The identity of the first step holds no path, host or time."""
    from fmray import load

    a = load(QUICKSTART, storage=str(tmp_path / "a")).steps["corpus"].config.identity()
    b = load(QUICKSTART, storage=str(tmp_path / "b"), name="other").steps["corpus"].config.identity()
    assert a == b
    assert str(tmp_path) not in json.dumps(a)


def test_it_says_its_version_and_what_an_empty_registry_lacks(tmp_path: Path) -> None:
    assert fmray("--version", cwd=tmp_path).stdout == f"fmray {metadata.version('fmray')}\n"
    done = fmray("status", cwd=tmp_path)
    assert done.returncode == 0
    assert "no model is registered in" in done.stdout
    assert not list(tmp_path.iterdir())
