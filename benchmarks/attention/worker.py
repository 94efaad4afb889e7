"""The process that measures: it answers one request after the other, and its parent ends it when one takes too long."""

import ctypes
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention.attend import DTYPES, NotHere, errors, prepare, tensors
from benchmarks.attention.cells import Cell

CHECKED_POSITIONS = 2048
MOST_REPEATS, LEAST_REPEATS = 20, 3
GIB = 2**30


def serve(connection: Connection, device_name: str) -> None:
    """Answers ("about",), ("peak", dtype), ("free",) and ("cell", cell, seconds) until ("end",)."""
    device = torch.device(device_name)
    answers: dict[str, Callable[..., Any]] = {"about": about, "peak": matmul_peak, "free": free_bytes, "cell": measure}
    while (request := connection.recv())[0] != "end":
        connection.send(answers[request[0]](*request[1:], device=device))


def about(device: torch.device) -> dict[str, Any]:
    """What it runs on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {package: version(package) for package in ("torch", "transformers")}
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "python": platform.python_version(), "versions": versions}


def free_bytes(device: torch.device) -> int:
    """Memory that a cell may take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def matmul_peak(dtype: str, device: torch.device) -> float:
    """FLOP/s of a square matrix product, 2048 cubed on a CPU and 8192 cubed on a GPU: the median of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    return 2.0 * size**3 / statistics.median(times(lambda: a @ b, device, seconds=2.0))


def measure(cell: Cell, seconds: float, device: torch.device) -> dict[str, Any]:
    """Times, memory and errors of a cell, or the reason why there are none."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            return _measured(cell, seconds, device)
        except NotHere as error:
            return {"reason": str(error)}
        except Exception as error:
            # Whatever an implementation throws is the answer to whether it runs here.
            said = [first_line(str(error)), *(first_line(str(w.message)) for w in told if "kernel" in str(w.message).lower() or "not used because" in str(w.message))]
            return {"reason": f"{type(error).__name__}: {'; '.join(said[:3])[:300]}"}
        finally:
            _clear(device)


def first_line(text: str) -> str:
    """The first line that says something; what follows in compilers' errors are paths and programs."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _measured(cell: Cell, seconds: float, device: torch.device) -> dict[str, Any]:
    before = _used(device)
    attend = prepare(cell, device)
    made = tensors(cell, device)
    q, k, v, gradient = made
    # The errors' own call warms up (and compiles); beyond the checked lengths a bare one does.
    found: dict[str, Any] = {"errors": errors(cell, attend, made) if cell.seq_len <= CHECKED_POSITIONS else None}
    began = time.perf_counter()
    torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)
    _wait(device)
    once = time.perf_counter() - began
    _clear(device)
    reset = _reset_peak(device)
    forward, backward = [], []
    for _ in range(_repeats(seconds, once)):
        began = time.perf_counter()
        output = attend(q, k, v)
        _wait(device)
        between = time.perf_counter()
        torch.autograd.grad(output, (q, k, v), gradient)
        _wait(device)
        forward.append(between - began)
        backward.append(time.perf_counter() - between)
        del output
    peak = _peak(device) if reset else None
    return found | {
        "forward_s": statistics.median(forward),
        "backward_s": statistics.median(backward),
        "slowest_s": max(a + b for a, b in zip(forward, backward, strict=True)),
        "repeats": len(forward),
        "peak_bytes": None if peak is None else peak - before,
    }


def _repeats(seconds: float, once: float) -> int:
    return max(LEAST_REPEATS, min(MOST_REPEATS, int(seconds / max(once, 1e-9))))


def times(run: Callable[[], object], device: torch.device, *, seconds: float) -> list[float]:
    """Times of several calls after one that is not counted."""
    run()
    _wait(device)
    found: list[float] = []
    while len(found) < LEAST_REPEATS or (sum(found) < seconds and len(found) < MOST_REPEATS):
        began = time.perf_counter()
        run()
        _wait(device)
        found.append(time.perf_counter() - began)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif platform.system() == "Linux":
        # What glibc keeps of freed memory would pass for memory in use.
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _used(device: torch.device) -> int:
    _clear(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _reset_peak(device: torch.device) -> bool:
    """Begins to watch the peak anew; False where the system cannot (not Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
