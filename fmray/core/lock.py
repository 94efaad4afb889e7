"""One writer an artifact: a lock file with a heartbeat, so that a dead writer's lock is recognised."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from fmray.core.beside import looking
from fmray.core.errors import ArtifactError

HEARTBEAT_S = 5.0
STALE_S = 60.0


@contextlib.contextmanager
def hold(root: Path) -> Iterator[None]:
    """Holds the artifact directory `root` while the block runs. The lock lies beside it, so that `root` itself may be moved aside.

    The holder touches the file every 5 s. A lock is stale when its process is gone (same host) or its last heartbeat
    is more than 60 s old (another host).

    Raises:
        ArtifactError: a live process holds it.
    """
    path = lock_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            holder = live_holder(root)
            if holder is not None:
                raise ArtifactError(f"is being written by {holder}", where=str(root), todo="wait for it to end, or use --name NEW") from None
            path.unlink(missing_ok=True)
    else:
        raise ArtifactError("another process took the lock at the same moment", where=str(root), todo="try again")
    with os.fdopen(descriptor, "w") as file:
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _process_start(os.getpid())}, file)

    def beat() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)

    try:
        with looking(beat, HEARTBEAT_S, "lock"):
            yield
    finally:
        path.unlink(missing_ok=True)


def lock_path(root: Path) -> Path:
    """Where the lock of an artifact directory lies."""
    return root.with_name(f".{root.name}.lock")


def live_holder(root: Path) -> str | None:
    """A description of the live process that writes `root`, or None when nobody does or its lock is stale."""
    path = lock_path(root)
    if not path.exists():
        return None
    try:
        age_s = time.time() - path.stat().st_mtime
        lock = json.loads(path.read_text())
        host, pid, started = str(lock["host"]), int(lock["pid"]), lock["started"]
    except (OSError, ValueError, KeyError, TypeError):
        # Half-written or just removed: young means that its writer is writing it now.
        return "another process" if path.exists() and time.time() - path.stat().st_mtime < STALE_S else None
    here = host == socket.gethostname()
    alive = started is not None and _process_start(pid) == started if here else age_s < STALE_S
    return f"process {pid} on {host}" if alive else None


def _process_start(pid: int) -> str | None:
    """When a process of this host started, in clock ticks (field 22 of /proc/PID/stat), which tells a reused pid apart; None when gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "running"
    return "running"
