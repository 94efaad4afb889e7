"""The training step beside bare loops and Hugging Face's Trainer: interleaved runs on one model, one text, one machine.

    python -m benchmarks.step TEXT_FOLDER [--repeats 3] [--steps 36] [--json FILE]

TEXT_FOLDER holds .txt or .txt.gz files; `prepare` packs them into rows of 256 (byte-level BPE, 8,192 tokens). Every contender trains
the same Llama-type decoder in bf16, 4,096 positions a step, in a process of its own with all cores, and tells the median speed of its
steps behind the first third. Bare loops get batches that lie in memory; fmray's read theirs, and write metrics. Each process
measures the bf16 matrix product (2,048 cubed) before and after its training. A padded position counts as work and not as an effective
token.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks.step.contenders import CONTENDERS
from benchmarks.step.measuring import Speeds, flops_per_position, peak_flops, prepare

Runs = dict[str, list[Speeds]]
# Of whom a ratio is told, round by round, and to whom.
RATIOS = (
    ("fmray_deepspeed", "bare_deepspeed", "effective_per_s"),
    ("fmray_deepspeed_unfused", "bare_deepspeed", "effective_per_s"),
    ("fmray_deepspeed", "bare", "effective_per_s"),
    ("fmray_torch", "bare", "effective_per_s"),
    ("fmray_torch_compiled", "bare_compiled", "effective_per_s"),
    ("fmray_deepspeed_ray", "fmray_deepspeed", "effective_per_s"),
    ("fmray_deepspeed_ray", "trainer", "effective_per_s"),
    ("fmray_deepspeed_ray", "trainer_packed", "effective_per_s"),
)


def main() -> None:
    """Prepares the text, runs every contender in turn, and prints medians and ratios."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=36)
    arguments.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--child", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    known = arguments.parse_args()
    if known.child:
        before = peak_flops()
        speeds = CONTENDERS[known.child](known.text, known.steps)
        print(json.dumps(speeds | {"peak_flops": max(before, peak_flops())}))
        return
    folder = Path(tempfile.mkdtemp(prefix="fmray-bench-"))
    try:
        prepare(known.text, folder)
        runs = measure(folder, known)
    finally:
        shutil.rmtree(folder)
    print("\n".join(report(runs)))
    if known.json:
        known.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, known: argparse.Namespace) -> Runs:
    """Runs the contenders in turn, `repeats` times over."""
    runs: Runs = {name: [] for name in known.contenders}
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(os.cpu_count())}
    for repeat in range(known.repeats):
        for name in known.contenders:
            command = [sys.executable, "-m", "benchmarks.step", str(folder), "--child", name, "--steps", str(known.steps)]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(repeat, name, {key: float(f"{value:.4g}") for key, value in runs[name][-1].items()}, flush=True)
    return runs


def report(runs: Runs) -> list[str]:
    """Markdown: medians of every contender, then ratios of pairs within a round."""
    flops = flops_per_position()
    rounds = len(next(iter(runs.values())))
    # The limit of a round is the best that any of its processes reached: a neighbour can only take from it.
    peaks = [max(found[at]["peak_flops"] for found in runs.values()) for at in range(rounds)]
    names = ("torch", "deepspeed", "transformers", "ray")
    lines = [
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}; {os.cpu_count()} cores; {rounds} rounds.",
        f"bf16 matrix-product peak, {statistics.median(peaks) / 1e9:,.0f} GFLOP/s (median of the rounds' best); {flops / 1e6:.1f} MFLOP a position.", "",
        "| contender | positions/s | effective tokens/s | of the peak | waiting for data | CPU time beside the worker, of all cores |", "|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, found in runs.items():
        positions, effective = (statistics.median(run[key] for run in found) for key in ("positions_per_s", "effective_per_s"))
        share = spread([run["positions_per_s"] * flops / peak for run, peak in zip(found, peaks, strict=True)])
        waited, beside = (f"{statistics.median(run[key] for run in found):.2%}" if key in found[0] else "" for key in ("wait_share", "beside_share"))
        lines.append(f"| {name} | {positions:,.0f} | {effective:,.0f} | {share} | {waited} | {beside} |")
    lines += ["", "| ratio, round by round | median [lowest, highest] |", "|---|--:|"]
    for one, other, key in RATIOS:
        if one in runs and other in runs:
            lines.append(f"| {one} / {other} | {spread([a[key] / b[key] for a, b in zip(runs[one], runs[other], strict=True)])} |")
    return lines


def spread(values: list[float]) -> str:
    """The median between the lowest and the highest."""
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    main()
