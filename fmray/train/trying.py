"""Finds the largest micro-batch by trying: real steps of this very training, each size in a process of its own, within a bound of memory."""

import json
import math
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fmray.core import plugins
from fmray.core.artifact import load
from fmray.core.cursor import Cursor
from fmray.core.errors import RunError
from fmray.data.dataset import TokenDataset
from fmray.data.reader import TokenReader
from fmray.objectives import setting_for
from fmray.train.batches import row_batches
from fmray.train.config import PretrainConfig, Workers
from fmray.train.plan import GIB, size, worker_bytes_per_param
from fmray.train.worker import Place, PretrainJob, build_engine

STEPS = 2
LOOK_EVERY_S = 0.01
OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True)
class Tried:
    """One size: the most memory that a worker held (None: it took more than the bound), and the seconds of its last step."""

    rows: int
    peak_bytes: float | None
    step_s: float | None

    def __str__(self) -> str:
        return f"{self.rows}: does not fit" if self.peak_bytes is None else f"{self.rows}: {size(self.peak_bytes)}, {self.step_s:.3g} s a pass"


def sizes(config: PretrainConfig) -> list[int]:
    """The micro-batches that can be chosen, whatever number of workers there is: what divides each one's rows."""
    rows = math.gcd(*(config.global_batch_size // n for n in config.num_workers.counts))
    return [n for n in range(1, rows + 1) if rows % n == 0] if config.objective.adds_up else [rows]


def trial_lines(job: PretrainJob) -> dict[str, str]:
    """For `fmray check`: what fits, and the table of what was tried."""
    bound = bound_bytes(job.config)
    tried = try_sizes(job, bound)
    fitting = [one.rows for one in tried if one.peak_bytes is not None]
    best = f"{fitting[-1]} of {sizes(job.config)[-1]} rows" if fitting else "none"
    return {"micro-batch tried": "\n".join([f"{best} in {size(bound)} a worker", *(f"  {one}" for one in tried)])}


def bound_bytes(config: PretrainConfig) -> float:
    """The memory of a worker: what is declared of its device, else what the GPU has, else what is free on this machine."""
    if config.device.memory_gb is not None:
        return config.device.memory_gb * GIB
    if config.use_gpu:
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return float(psutil.virtual_memory().available)


def try_sizes(job: PretrainJob, bound: float) -> list[Tried]:
    """Grows the micro-batch until one does not fit, or none is left.

    One process stands for one of the workers: what it holds of weights, gradients and optimizer beyond a worker's shard, by the formulas
    of `plan`, is allowed on top of the bound and taken off what is told.

    Raises:
        RunError: a step failed otherwise.
    """
    tried: list[Tried] = []
    for rows in sizes(job.config):
        tried.append(_try(job, rows, bound))
        if tried[-1].peak_bytes is None:
            break
    return tried


def _try(job: PretrainJob, rows: int, bound: float) -> Tried:
    import psutil

    config = job.config
    beyond = worker_bytes_per_param(config.with_workers(1)) - worker_bytes_per_param(config)
    with tempfile.TemporaryDirectory(prefix="fmray-try-") as name:
        folder = Path(name)
        plain = replace(job, config=_alone(config, rows))
        (folder / "job.pkl").write_bytes(pickle.dumps((plugins.sources(), pickle.dumps(plain), bound, beyond)))
        with (folder / "said.txt").open("w") as said:
            process = subprocess.Popen([sys.executable, "-m", "fmray.train.trying", name], stdout=said, stderr=said)
        watched = psutil.Process(process.pid)
        allowed: float | None = None
        while process.poll() is None:
            # How many parameters there are is known once the model is built.
            if allowed is None and (folder / "n_params").exists():
                allowed = bound + beyond * int((folder / "n_params").read_text())
            if not config.use_gpu and _resident(watched) > (allowed or max(bound, GIB)):
                process.kill()
                process.wait()
                return Tried(rows, None, None)
            time.sleep(LOOK_EVERY_S)
        if not (folder / "result.json").exists():
            last = ((folder / "said.txt").read_text().strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
            raise RunError(f"a step of {rows} rows failed: {last}", todo="look at it with `fmray run` and max_steps=1")
        told = json.loads((folder / "result.json").read_text())
    if told == OUT_OF_MEMORY:
        return Tried(rows, None, None)
    peak = told["peak_bytes"] - beyond * told["n_params"]
    return Tried(rows, peak, told["step_s"]) if peak <= bound else Tried(rows, None, None)


def _peak_bytes(use_gpu: bool) -> int:
    """The most that this process has held; on a GPU with what the allocator keeps between tensors, which must fit as well."""
    import torch

    return int(torch.cuda.max_memory_reserved()) if use_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident(process: Any) -> float:
    import psutil

    try:
        return float(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0


def _alone(config: PretrainConfig, rows: int) -> PretrainConfig:
    """One worker with this micro-batch, which accumulates where the run would."""
    passes = 2 if rows < sizes(config)[-1] else 1
    return config.model_copy(update={"global_batch_size": rows * passes, "micro_batch_size": rows, "num_workers": Workers(min=1, max=1)})


def _steps(folder: Path) -> None:
    """In the process that tries: builds the engine, takes two steps (the optimizer's state is made by the first), and tells."""
    sources, pickled, bound, beyond = pickle.loads((folder / "job.pkl").read_bytes())
    plugins.install(sources)
    job: PretrainJob = pickle.loads(pickled)
    config = job.config
    import torch

    torch.set_num_threads(config.cpus_per_worker)
    if config.engine == "deepspeed":
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        torch.distributed.init_process_group("nccl" if config.use_gpu else "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    try:
        engine = build_engine(job, Place(0, 1, 1))
        module: Any = engine.module
        n_params = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())
        (folder / "n_params.part").write_text(str(n_params))
        (folder / "n_params.part").rename(folder / "n_params")
        if config.use_gpu:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (bound + beyond * n_params) / total))
        reader = TokenReader(job.dataset, "train", config.seed, config.global_batch_size)
        setting = setting_for(job.dataset, load(job.dataset, TokenDataset).payload, module.config.to_dict(), config.seed)
        steps = row_batches(reader, config.objective, setting, Cursor(epoch=0, row=0), rank=0, world_size=1, micro_batch_size=config.rows_per_pass)
        for _ in range(STEPS):
            micro_batches, _ = next(steps)
            begun = time.perf_counter()
            engine.train_batch(micro_batches, config.objective)
            took = time.perf_counter() - begun
        steps.close()
        told: Any = {"peak_bytes": _peak_bytes(config.use_gpu), "step_s": took / len(micro_batches), "n_params": n_params}
    except torch.cuda.OutOfMemoryError:
        told = OUT_OF_MEMORY
    (folder / "result.json").write_text(json.dumps(told))


if __name__ == "__main__":
    _steps(Path(sys.argv[1]))
