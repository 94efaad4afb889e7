"""What a checkpoint costs training, written beside it and not: `python -m benchmarks.checkpoint --out FILE.md` from the repository.

A decoder of 150 M parameters and its AdamW state in float32 (12 bytes a parameter) on one worker with plain torch. Rounds are interleaved:
each one saves while training waits, and saves while training goes on, of which the stall is what the training thread waited. Every file
is flushed to the device and hashed in both. `--device cuda` measures the same on a GPU, where the copies' buffers are pinned.
"""

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from fmray.core.cursor import Cursor
from fmray.model.architectures.decoder import Decoder
from fmray.model.tensor_file import held_entry, write_sharded
from fmray.objectives.causal_lm import CausalLM
from fmray.train.engine import TorchEngine
from fmray.train.layout import Saved
from fmray.train.optim import Optim
from fmray.train.retention import Keep
from fmray.train.saving import StateWriter
from fmray.train.state import TrainState
from tests.train.rows import packed_rows

SHAPE, VOCAB, SEQ_LEN, ROWS = Decoder(size="125m", num_hidden_layers=18), 32_000, 64, 1
SMALL = Decoder(size="nano")
OBJECTIVE = CausalLM()


@dataclass
class Found:
    """Seconds of every round."""

    synchronous: list[float] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    quiet_step: list[float] = field(default_factory=list)
    busy_step: list[float] = field(default_factory=list)
    first_stall: float = 0.0
    copied_gb: float = 0.0


def engine(shape: Decoder, device: str) -> TorchEngine:
    """The model and its optimizer, one step trained."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape.hf_config(VOCAB, SEQ_LEN))
    made = TorchEngine(model, Optim(), lambda step: 1e-4, precision="bf16", device=device)
    step(made)
    return made


def step(running: TorchEngine) -> float:
    """Seconds of a step."""
    batch = OBJECTIVE.collate(packed_rows(ROWS, SEQ_LEN, seed=running.step))
    begun = time.perf_counter()
    running.train_batch([batch], OBJECTIVE)
    return time.perf_counter() - begun


def state(running: TorchEngine) -> TrainState:
    """What a state says of itself."""
    return TrainState(step=running.step, cursor=Cursor(), engine="torch bf16", world_size=1)


def measure(running: TorchEngine, root: Path, rounds: int) -> Found:
    """Interleaved rounds; the very first state is not counted, for it makes the buffers."""
    found = Found()
    with StateWriter(root, rank=0, world_size=1, attempt="x", keep=Keep(last=1)) as saves:
        begun = time.perf_counter()
        saves.save(running, state(running))
        found.first_stall = time.perf_counter() - begun
        saves.wait()
        found.copied_gb = sum(buffer.nbytes for buffer in saves._copies._buffers.values()) / 1e9
        for _ in range(rounds):
            found.quiet_step += [step(running) for _ in range(4)]
            begun = time.perf_counter()
            saves.save(running, state(running), wait=True)
            found.synchronous.append(time.perf_counter() - begun)
            step(running)
            begun = time.perf_counter()
            saves.save(running, state(running))
            found.stall.append(time.perf_counter() - begun)
            while saves._thread is not None and saves._thread.is_alive():
                found.busy_step.append(step(running))
            found.beside.append(time.perf_counter() - begun)
            saves.wait()
    return found


def export_peaks(root: Path, small: bool) -> dict[str, float]:
    """10^9 bytes by which each way to export raises a process's peak, from a state on disk; each in a process of its own."""
    code = "import sys; from benchmarks.checkpoint import export_once; export_once(*sys.argv[1:])"
    found = {}
    for way in ("tensor by tensor", "whole in memory"):
        done = subprocess.run([sys.executable, "-c", code, str(root), way, str(int(small))], capture_output=True, text=True, check=True)
        found[way] = float(done.stdout.split()[-1])
    return found


def export_once(root: str, way: str, small: str) -> None:
    """Exports the newest state and prints by how much the process's anonymous memory rose at most, in 10^9 bytes."""
    (folder,) = Path(root).glob("step-*")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config((SMALL if int(small) else SHAPE).hf_config(VOCAB, SEQ_LEN))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    ended, before = threading.Event(), anonymous_gb()
    seen = [before]

    def watch() -> None:
        while not ended.wait(0.002):
            seen.append(anonymous_gb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with Saved(folder) as saved, tempfile.TemporaryDirectory(dir=root) as out:
        entries = saved.entries(shapes)
        if way == "whole in memory":
            entries = [held_entry(entry.name, entry.read().view(entry.shape)) for entry in entries]
        write_sharded(Path(out), entries)
    ended.set()
    watcher.join()
    print(max(seen) - before)


def anonymous_gb() -> float:
    """Memory of this process that is no page of a file, 10^9 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e9


def report(found: Found, peaks: dict[str, float], n_params: int, device: str, threads: int, folder: str) -> str:
    """The result as Markdown."""

    def row(name: str, values: Sequence[float]) -> str:
        return f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} to {max(values):.3f} |"

    sync, stall = statistics.median(found.synchronous), statistics.median(found.stall)
    size = found.copied_gb
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{threads} virtual {platform.machine()} cores, no GPU"
    lines = [
        "# What a checkpoint costs", "", *(__doc__ or "").split("\n\n", 1)[1].strip().splitlines(), "",
        f"Machine: {machine}. Python {platform.python_version()}, torch {torch.__version__}. Storage: {folder}.",
        f"{n_params / 1e6:.1f} M parameters, a state of {size:.2f} GB; {len(found.stall)} rounds; a step trains {ROWS * SEQ_LEN} tokens.", "",
        "| what | s, median | lowest to highest |", "|---|--:|--:|",
        row("save that training waits for (written, flushed, hashed, counted)", found.synchronous),
        row("stall of a save beside training", found.stall),
        row("until that save counts", found.beside),
        row("a step, nothing being written", found.quiet_step),
        row("a step while a state is written", found.busy_step), "",
        "| figure | value |", "|---|--:|",
        f"| stall / synchronous save | {stall / sync:.1%} |",
        f"| copy bandwidth | {size / stall:.2f} GB/s |",
        f"| bandwidth of a synchronous save | {size / sync:.2f} GB/s |",
        f"| stall of the very first save, which makes the buffers | {found.first_stall:.3f} s |",
        *(f"| memory that an export takes besides, {way} | {gb:.3f} GB |" for way, gb in peaks.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where states are written (default: a folder below the temporary ones)")
    parser.add_argument("--storage", default="the machine's disk", help="what the report calls it")
    parser.add_argument("--small", action="store_true", help="a model of a few million parameters, to try the script")
    parser.add_argument("--out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    root = Path(tempfile.mkdtemp(prefix="states", dir=given.folder))
    try:
        running = engine(SMALL if given.small else SHAPE, given.device)
        n_params = sum(parameter.numel() for parameter in running.module.parameters())
        found = measure(running, root, given.rounds)
        del running
        told = report(found, export_peaks(root, given.small), n_params, given.device, given.threads, given.storage)
    finally:
        shutil.rmtree(root)
    print(told)
    if given.out:
        Path(given.out).write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
