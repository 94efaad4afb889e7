"""Gathers the provenance of an artifact: commit, versions, arguments without secrets, host."""

import datetime
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fmray.core.artifact import Provenance

PACKAGES = ("fmray", "torch", "ray", "deepspeed", "transformers", "tokenizers", "pyarrow", "numpy", "scikit-learn", "optuna", "peft", "lm_eval")
SECRET = re.compile(r"(^|[._-])(api[_-]?key|token|secret|password|passwd|credentials?|private[_-]?key)$", re.IGNORECASE)
REDACTED = "[redacted]"
# `fmray submit` hands the commit on: the folder that a job unpacks is no checkout.
GIT_VARIABLE = "FMRAY_GIT_COMMIT"


def gather(*, started_at: datetime.datetime, devices: Sequence[str], device_hours: float) -> Provenance:
    """The provenance of what this process made since `started_at`."""
    commit, dirty = git_state()
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        argv=redact_argv(sys.argv),
        host=socket.gethostname(),
        python=platform.python_version(),
        versions=versions(),
        devices=tuple(devices),
        device_hours=device_hours,
        started_at=started_at.isoformat(timespec="seconds"),
    )


@cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the code that runs: what `fmray submit` handed on, else of fmray's own checkout, else of the
    working folder's; (None, None) when there is none.
    """
    handed_on = os.environ.get(GIT_VARIABLE)
    if handed_on:
        return handed_on.removesuffix("+dirty"), handed_on.endswith("+dirty")
    for folder in (Path(__file__).parent, Path.cwd()):
        try:
            commit = _git(folder, "rev-parse", "HEAD")
            return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError):
            continue
    return None, None


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Versions of the installed packages that shape results."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def redact_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments with the values of secret-looking keys replaced (`x.api_key=...`, `--token ...`)."""
    shown: list[str] = []
    hide_next = False
    for arg in argv:
        key, equals, _ = arg.partition("=")
        if hide_next:
            shown.append(REDACTED)
        elif equals and SECRET.search(key):
            shown.append(f"{key}={REDACTED}")
        else:
            shown.append(arg)
        hide_next = arg.startswith("--") and not equals and bool(SECRET.search(arg.lstrip("-")))
    return tuple(shown)


def redact(value: Any) -> Any:
    """Plain config with the values of secret-looking keys replaced."""
    if isinstance(value, Mapping):
        return {k: REDACTED if SECRET.search(str(k)) and isinstance(v, str) else redact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value
