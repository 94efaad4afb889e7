"""Figures and seconds of likelihood tasks beside lm-eval's own, on the same task files, documents and model, in one run.

    python benchmarks/evaluation.py MODEL DATA [--documents 200] [--shots 0 1 5] [--tasks piqa ...] [--batch-size 8] [--threads 2]
    python benchmarks/evaluation.py MODEL DATA --sharded 2

MODEL is a Hugging Face directory (SmolLM2-135M of the test extra: `python -c "from tests.models import smollm2; ..."` saves one), DATA the
folder `lmeval` of the shared data. lm-eval (HFLM, float32) reads YAML files and JSON Lines that this script writes from the shipped
definitions. Seconds count building prompts and scoring, not opening the model; each side goes first in turn. With `--sharded` fmray's own
answers by so many Ray workers of one thread each stand beside those of one process instead.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}

from fmray.core.artifact import write_json
from fmray.evaluate.lm_tasks.asking import Setup, answers, setup
from fmray.evaluate.lm_tasks.config import LmTask
from fmray.evaluate.lm_tasks.documents import Drawn, draw
from fmray.evaluate.lm_tasks.opened import OpenTask
from fmray.evaluate.lm_tasks.workers import Workers

PARADIGMS = ("adjunct_island", "anaphor_number_agreement", "determiner_noun_agreement_2", "irregular_past_participle_verbs", "wh_questions_object_gap")
FILES = {"lambada": "lambada_openai", "piqa": "piqa", "arc_easy": "arc_easy", "winogrande": "winogrande", "wsc": "winograd_wsc", "copa": "copa"}
SEED = 0


def tasks(data: Path, names: list[str], n: int, shots: int) -> dict[str, LmTask]:
    """The tasks by name; those of BLiMP by their paradigm."""
    found = {}
    for name in names:
        stem = FILES.get(name, f"blimp/{name}")
        path = next(path for path in (data / f"{stem}.jsonl.gz", data / f"{stem}.jsonl") if path.exists())
        found[name] = LmTask(task=name if name in FILES else "blimp", path=str(path), shots=shots, limit=n)
    return found


def own_files(folder: Path, name: str, task: LmTask, drawn: Drawn) -> str:
    """Writes a task as lm-eval's own: its YAML and its documents; returns its name there."""
    own = f"own_{name}"
    splits = {"test": drawn.documents, **({"shots": drawn.shots} if task.shots else {})}
    for split, documents in splits.items():
        (folder / f"{own}_{split}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    fixed: dict[str, Any] = {"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}} if task.shots else {}
    files = {split: str(folder / f"{own}_{split}.jsonl") for split in splits}
    definition = {**task.definition, **fixed, "task": own, "dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}, "test_split": "test"}
    (folder / f"{own}.yaml").write_text(json.dumps(definition))  # JSON is YAML
    return own


def theirs(lm: Any, folder: Path, own: str, shots: int) -> dict[str, Any]:
    """lm-eval's figures of a task, and its samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model=lm, tasks=[own], num_fewshot=shots, task_manager=manager, bootstrap_iters=0, log_samples=True)
    assert found is not None
    figures = {key.split(",")[0]: value for key, value in found["results"][own].items() if "," in key and "stderr" not in key}
    return {"figures": figures, "samples": sorted(found["samples"][own], key=lambda sample: sample["doc_id"])}


def ours(name: str, task: LmTask, drawn: Drawn, ready: Setup, workers: Workers) -> tuple[dict[str, float], list[Any]]:
    """Our figures of a task, and our answers in the order of the requests."""
    opened = OpenTask(name, task, drawn)
    given, _ = answers(task.output, opened.asks, ready, workers)
    values = opened.values(dict(enumerate(given)))
    return {metric: opened.figure(metric, items) for metric, items in values.items()}, given


def largest_difference(given: list[Any], samples: list[dict[str, Any]]) -> float:
    """The largest difference of a log-probability, in nats."""
    own = [response[0][0] for sample in samples for response in sample["resps"]]
    return max(abs(a[0] - float(b)) for a, b in zip(given, own, strict=True))


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 5])
    parser.add_argument("--tasks", nargs="+", default=["lambada", "piqa", "arc_easy", *PARADIGMS])
    parser.add_argument("--batch-size", type=int, default=8, help="lm-eval's")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sharded", type=int, help="compare one process with so many Ray workers, and not with lm-eval")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    asked = parser.parse_args()
    if asked.sharded:
        sharded(asked)
        return
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(asked.threads)
    workers = Workers("causal_lm", asked.model, None, 1, asked.threads, 0)
    ready = setup("causal_lm", asked.model, workers, 16)
    lm = HFLM(pretrained=str(asked.model), dtype="float32", batch_size=asked.batch_size, device="cpu")
    print(f"{asked.documents} documents a task, {asked.threads} threads, float32, lm-eval {version('lm_eval')} with batch size {asked.batch_size}, seed {SEED}.")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')}; rows packed: {ready.shares}.\n")
    print("| task | shots | figures, fmray | figures, lm-eval | same | largest difference, nats | fmray, s | lm-eval, s | ratio |\n|---|--:|---|---|---|--:|--:|--:|--:|")
    rows = []
    for shots in asked.shots:
        for name, task in tasks(asked.data, asked.tasks, asked.documents, shots).items():
            rows.append(measured(name, task, ready, workers, lm, ours_first=len(rows) % 2 == 0))
            print(line(rows[-1]), flush=True)
    seconds, own = (sum(row[side] for row in rows) for side in ("ours_s", "theirs_s"))
    print(f"\nTogether {seconds:.1f} s against {own:.1f} s: {own / seconds:.2f} times as fast; {sum(row['same'] for row in rows)} of {len(rows)} with the same figures.")
    if asked.json:
        write_json(asked.json, rows)


def sharded(asked: argparse.Namespace) -> None:
    """Prints for each task whether several workers give the very answers of one process."""
    import ray

    ray.init(address="local", num_cpus=asked.sharded, include_dashboard=False, log_to_driver=False)
    alone, together = (Workers("causal_lm", asked.model, None, n, 1, 0) for n in (1, asked.sharded))
    ready = setup("causal_lm", asked.model, alone, 16)
    print(f"{asked.documents} documents a task, float32, one thread each, {asked.sharded} workers beside one process; rows packed: {ready.shares}.\n")
    print("| task | shots | figures | answers | the same to the last bit |\n|---|--:|---|--:|---|")
    for shots in asked.shots:
        for name, task in tasks(asked.data, asked.tasks, asked.documents, shots).items():
            drawn = draw(name, task, SEED)
            (figures, given), (_, others) = (ours(name, task, drawn, ready, workers) for workers in (alone, together))
            shown = ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
            print(f"| {name} | {shots} | {shown} | {len(given)} | {'yes' if given == others else 'NO'} |", flush=True)
    together.close()


def measured(name: str, task: LmTask, ready: Setup, workers: Workers, lm: Any, *, ours_first: bool) -> dict[str, Any]:
    """One task on both sides."""
    drawn, row = draw(name, task, SEED), {"task": name, "shots": task.shots}
    given: list[Any] = []
    own: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        written = own_files(Path(folder), name, task, drawn)
        for side in ("ours", "theirs") if ours_first else ("theirs", "ours"):
            started = time.perf_counter()
            if side == "ours":
                row["figures"], given = ours(name, task, drawn, ready, workers)
            else:
                own = theirs(lm, Path(folder), written, task.shots)
            row[f"{side}_s"] = time.perf_counter() - started
    row["lm_eval"], row["nats"] = own["figures"], largest_difference(given, own["samples"])
    # Log-probabilities differ in the last digits of float32, and so do perplexities; shares of documents are the same or not.
    row["same"] = all(abs(value - own["figures"][metric]) <= 1e-4 * abs(value) * (metric == "perplexity") for metric, value in row["figures"].items())
    return row


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    shown = [", ".join(f"{metric} {value:.4g}" for metric, value in row[side].items()) for side in ("figures", "lm_eval")]
    ratio = row["theirs_s"] / row["ours_s"]
    return f"| {row['task']} | {row['shots']} | {shown[0]} | {shown[1]} | {'yes' if row['same'] else 'NO'} | {row['nats']:.1e} | {row['ours_s']:.1f} | {row['theirs_s']:.1f} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
