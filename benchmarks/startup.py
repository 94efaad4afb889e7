"""From `fmray run` to the first step, and where the time goes: `python -m benchmarks.startup [--repeats 5] [--before DIR]`.

A pretraining of a small decoder on two workers begins anew each time, over a dataset that is there already. What is timed is start-up
alone: the model and its rows are tiny. Every process writes down when it reached what (benchmarks/marks); the path told is that
of the worker which came to its first step last. `--before` names a checkout of an earlier commit, which runs in turn with this one.
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
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

MARKS, HERE = Path(__file__).parent / "marks", Path(__file__).parents[1]
# What ends each span, in which process (d: driver, w: worker), and what it is called. A function that a run does not call has no span.
PATH = (
    ("d", "main begins", "the command: Python, import of fmray"),
    ("d", "launch begins", "experiment read and checked, step opened"),
    ("d", "connect ends", "Ray starts (its import included)"),
    ("d", "_trainer ends", "the driver imports Ray Train"),
    ("w", "python", "Ray Train's controller; placement; worker processes asked for"),
    ("w", "install begins", "worker: Python, Ray, import of fmray and torch"),
    ("w", "_worker begins", "worker: process group of torch"),
    ("w", "build_model begins", "worker: arrives at the model"),
    ("w", "build_model ends", "worker: import of transformers, model built"),
    ("w", "prepare_process ends", "worker: import of DeepSpeed"),
    ("w", "build_engine ends", "worker: engine"),
    ("w", "train begins", "worker: state looked for, data opened"),
    ("w", "first step", "worker: first step"),
)


def main() -> None:
    """Runs it several times and prints medians."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    arguments.add_argument("--override", nargs="*", default=[], help="of the experiment, such as base.engine=torch base.num_workers=1")
    known = arguments.parse_args()
    trees = {"now": HERE} | ({"before": known.before.resolve()} if known.before else {})
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    folder = Path(tempfile.mkdtemp(prefix="fmray-start-"))
    try:
        files = {name: experiment(folder / name, tree) for name, tree in trees.items()}
        for _ in range(known.repeats):
            for name, tree in trees.items():
                runs[name].append(spans(folder, files[name], tree, known.override))
    finally:
        shutil.rmtree(folder)
    print("\n".join(table(runs)))
    if known.json:
        known.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def experiment(folder: Path, tree: Path) -> Path:
    """The experiment's file, beside a dataset of that checkout's own making."""
    folder.mkdir()
    make = "import sys; from pathlib import Path; from tests.train.dataset import token_dataset; print(token_dataset(Path(sys.argv[1])).path)"
    done = subprocess.run([sys.executable, "-c", make, str(folder / "corpus")], check=True, capture_output=True, text=True, cwd=tree)
    file = folder / "start.yaml"
    dataset = {"artifact": done.stdout.strip()}
    base = {"stage": "pretrain", "dataset": dataset, "model": {"type": "decoder", "size": "nano"}, "global_batch_size": 8, "max_steps": 2, "num_workers": 2}
    file.write_text(json.dumps({"name": "start", "steps": {"base": base}}), encoding="utf-8")
    return file


def spans(folder: Path, file: Path, tree: Path, overrides: list[str]) -> dict[str, float]:
    """Seconds of each span of one run."""
    marks, storage = folder / "marks", folder / "runs"
    marks.mkdir()
    # The checkout stands before whatever is installed, in the workers as well.
    path = os.pathsep.join([str(MARKS), str(tree)])
    environment = os.environ | {"PYTHONPATH": path, "FMRAY_MARKS": str(marks), "RAY_AUTH_MODE": "disabled"}
    began = time.time()
    done = subprocess.run([sys.executable, "-m", "fmray", "run", str(file), "--storage", str(storage), *overrides], check=False, capture_output=True, text=True, env=environment, cwd=tree)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    first = json.loads((storage / "start" / "base" / "metrics.jsonl").read_text().splitlines()[0])["time"]
    processes = [dict(reversed([json.loads(line) for line in one.read_text().splitlines()])) for one in marks.iterdir()]
    reached = {"d": next(marks for marks in processes if "main begins" in marks), "w": max((marks for marks in processes if "train begins" in marks), key=lambda marks: marks["train begins"])}
    reached["w"]["first step"] = first
    shutil.rmtree(marks)
    shutil.rmtree(storage)
    times = [(name, reached[who][at]) for who, at, name in PATH if at in reached[who]]
    found = {name: after - before for (_, before), (name, after) in pairwise([("", began), *times])}
    return found | {"all": first - began}


def table(runs: dict[str, list[dict[str, float]]]) -> list[str]:
    """Medians in Markdown, with the lowest and the highest."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "deepspeed", "transformers"))
    columns = " | ".join(f"{name}, s, median | lowest to highest" for name in runs)
    first = f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores; {len(runs['now'])} runs."
    lines = [first, "", f"| span | {columns} |", "|---|" + "--:|" * 2 * len(runs)]
    for name in runs["now"][0]:
        cells = []
        for one in runs.values():
            found = [run[name] for run in one if name in run]
            cells += [f"{statistics.median(found):.2f}", f"{min(found):.2f} to {max(found):.2f}"] if found else ["not told", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
