"""What more workers cost: CPU time and bytes sent by ZeRO stage, and where hundreds of GPUs would stand: `python -m benchmarks.growth`.

Workers are processes joined by gloo, without Ray, around fmray's DeepSpeed engine; all of them share this machine's cores, so what
growth costs shows in tokens a CPU-second, not in tokens a second. In a step behind the timed ones every collective that torch is
asked for is put down with its bytes. In a network namespace of its own (`unshare`, where the system allows it) the loopback's
own count says what truly went over it.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import alone
from benchmarks.communication import Collectives, ring_bytes, sent_per_param, table
from fmray.core.config import load_config
from fmray.train.config import PretrainConfig

SEQ_LEN, ROWS, VOCAB, TIMED, WARM = 256, 8, 8192, 5, 2
MODEL = {"type": "decoder", "size": "micro"}
Row = dict[str, Any]


def main() -> None:
    """Runs every stage on 1, 2 and 4 workers and prints what was measured, then the model."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    arguments.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    known = arguments.parse_args()
    if not known.alone and (inside := namespace()):
        raise SystemExit(subprocess.run([*inside, sys.executable, "-m", "benchmarks.growth", *sys.argv[1:], "--alone"], check=False).returncode)
    rows = []
    for workers in known.workers:
        for stage in known.stages:
            rows.append({"workers": workers, "stage": stage} | joined(alone.run(measure, workers, stage), wired=known.alone))
            print(rows[-1], flush=True)
    print("\n".join([*measured_table(rows), "", *bytes_table(rows), "", *table()]))
    if known.json:
        known.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def namespace() -> list[str]:
    """The command in front of one that shall have a loopback of its own; empty where that is not allowed."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return []
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    return inside if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode == 0 else []


def measure(rank: int, world_size: int, stage: int) -> Row:
    """Seconds and CPU-seconds of each timed step, the collectives of one, and the bytes of the loopback in one."""
    import torch
    from transformers import AutoModelForCausalLM

    from fmray.objectives.causal_lm import CausalLM
    from fmray.train.deepspeed_engine import DeepSpeedEngine
    from tests.train.rows import packed_rows

    config = load_config(PretrainConfig, {"model": MODEL, "global_batch_size": ROWS, "max_steps": 1, "num_workers": world_size, "zero": {"stage": stage}}, "case")
    assert config.model is not None
    model = AutoModelForCausalLM.from_config(config.model.hf_config(VOCAB, SEQ_LEN))
    engine = DeepSpeedEngine(model, config.optim, lambda step: 1e-4, config=config.engine_config())
    batch = CausalLM().collate(packed_rows(ROWS // world_size, SEQ_LEN, seed=rank, longest=SEQ_LEN))
    walls, cpus, wires = [], [], []
    for _ in range(WARM + TIMED):
        torch.distributed.barrier()
        wire, began, used = loopback_bytes(), time.perf_counter(), cpu_s()
        engine.train_batch([batch], CausalLM())
        walls.append(time.perf_counter() - began)
        cpus.append(cpu_s() - used)
        torch.distributed.barrier()
        wires.append(loopback_bytes() - wire)
    with Collectives() as collectives:
        engine.train_batch([batch], CausalLM())
    n_params = config.model.count_params(VOCAB, SEQ_LEN)
    return {"walls": walls[WARM:], "cpus": cpus[WARM:], "wires": wires[WARM:], "collectives": dict(collectives.found), "n_params": n_params}


def cpu_s() -> float:
    """CPU time of this process so far, its threads' and the kernel's for it included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def loopback_bytes() -> int:
    """What has gone over the loopback so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[1])


def joined(ranks: list[Row], *, wired: bool) -> Row:
    """The workers' figures in one: a step lasts as long as its slowest worker and costs all workers' CPU time."""
    world_size, tokens = len(ranks), ROWS * SEQ_LEN
    step_s = statistics.median(max(walls) for walls in zip(*(rank["walls"] for rank in ranks), strict=True))
    cpu = statistics.median(sum(cpus) for cpus in zip(*(rank["cpus"] for rank in ranks), strict=True))
    sent: Counter[str] = Counter()
    for (name, dtype, n_bytes), times in ranks[0]["collectives"].items():
        sent[f"{name} {dtype}"] += times * ring_bytes(name, n_bytes, world_size)
    wire = statistics.median(ranks[0]["wires"]) / world_size if wired else None
    return {"n_params": ranks[0]["n_params"], "tokens_per_s": tokens / step_s, "tokens_per_cpu_s": tokens / cpu, "sent": dict(sent), "wire": wire}


def measured_table(rows: list[Row]) -> list[str]:
    """Tokens a second and a CPU-second; efficiency against one worker of the same stage."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    lines = [
        f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores, a thread a worker; {ROWS} rows of {SEQ_LEN} a step over all workers, medians of {TIMED} steps.", "",
        "| stage | workers | tokens/s | tokens/CPU-s | of one worker's, a CPU-second |", "|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in sorted(rows, key=lambda row: (row["stage"], row["workers"])):
        one = next((other["tokens_per_cpu_s"] for other in rows if other["stage"] == row["stage"] and other["workers"] == 1), float("nan"))
        lines.append(f"| {row['stage']} | {row['workers']} | {row['tokens_per_s']:,.0f} | {row['tokens_per_cpu_s']:,.0f} | {row['tokens_per_cpu_s'] / one:.2f} |")
    return lines


def bytes_table(rows: list[Row]) -> list[str]:
    """Bytes a parameter that a worker sends in a step: collective by collective, what the loopback saw, what the model says."""
    lines = ["| stage | workers | collectives, bytes a parameter | sum | loopback | model |", "|--:|--:|---|--:|--:|--:|"]
    for row in sorted(rows, key=lambda row: (row["stage"], row["workers"])):
        if row["workers"] == 1:
            continue
        each = {name: n / row["n_params"] for name, n in row["sent"].items() if n / row["n_params"] >= 0.005}
        wire = "" if row["wire"] is None else f"{row['wire'] / row['n_params']:.2f}"
        parts = ", ".join(f"{name} {value:.2f}" for name, value in each.items())
        lines.append(f"| {row['stage']} | {row['workers']} | {parts} | {sum(each.values()):.2f} | {wire} | {sent_per_param(row['stage'], row['workers']):.2f} |")
    return lines


if __name__ == "__main__":
    main()
