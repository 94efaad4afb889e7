"""Tokenize-and-pack through Ray Data beside the raw tokenizer, `datasets.map` and datatrove: interleaved runs on one text.

    python benchmarks/prepare.py TEXT_FOLDER [--mb 300] [--repeats 5] [--out benchmarks/results]

TEXT_FOLDER holds .txt or .txt.gz files; their text is repeated up to --mb. Every contender gets the same documents (lines) from
the same plain text files, the same tokenizer, and 2 cores. Raw: `encode_batch_fast` over documents that lie in memory, two threads,
nothing read or written: the limit. The others read files, tokenize, pack into rows of 256 and write Parquet (datatrove: its own
format), and are timed without their imports and, for Ray, without its start (`ray_start_s`: the cluster, Ray Data's import and the
first workers). Peak memory is the sum of PSS of the whole process tree.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEQ_LEN, VOCAB = 256, 8192
CONTENDERS = ("raw", "fmray", "datasets", "datatrove")


def main() -> None:
    """Prepares the inputs, runs every contender in a process of its own, and prints the medians and ratios."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("--mb", type=int, default=300)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=CONTENDERS)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--child", nargs=2)
    known = arguments.parse_args()
    if known.child:
        print(json.dumps(CHILDREN[known.child[0]](Path(known.child[1]))))
        return
    folder = Path(tempfile.mkdtemp(prefix="fmray-bench-"))
    try:
        n_bytes = write_inputs(known.text, folder, known.mb * 1_000_000)
        runs = measure(folder, known.contenders, known.repeats)
    finally:
        shutil.rmtree(folder)
    report(runs, n_bytes, known)


def write_inputs(source: Path, folder: Path, wanted: int) -> int:
    """Writes the corpus as plain text files of about 16 MB and the tokenizer; gives the corpus's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    paths = sorted([*source.rglob("*.txt"), *source.rglob("*.txt.gz")])
    texts = [gzip.decompress(p.read_bytes()).decode() if p.suffix == ".gz" else p.read_text() for p in paths]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    (folder / "text").mkdir()
    (folder / "tokenizer").mkdir()
    n_bytes = n_files = 0
    while n_bytes < wanted:
        for at in range(0, len(lines), 40_000):
            if n_bytes >= wanted:
                break
            data = ("\n".join(lines[at : at + 40_000]) + "\n").encode()
            (folder / "text" / f"{n_files:04d}.txt").write_bytes(data)
            n_bytes, n_files = n_bytes + len(data), n_files + 1
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|pad|>", "<|bos|>", "<|eos|>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[1], "eos_token": special[2], "pad_token": special[0]}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(names))
    return n_bytes


def measure(folder: Path, contenders: list[str], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Runs the contenders in turn, `repeats` times over."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in contenders:
            command = [sys.executable, __file__, str(folder), "--child", name, str(folder)]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"})
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(repeat, name, runs[name][-1], flush=True)
    return runs


def raw(folder: Path) -> dict[str, float]:
    """The limit: two threads over documents in memory."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "2"}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    n_tokens, spent = 0, 0.0
    for path in sorted((folder / "text").iterdir()):
        lines = path.read_text().splitlines()
        for at in range(0, len(lines), 4096):
            batch = lines[at : at + 4096]
            began = time.perf_counter()
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            spent += time.perf_counter() - began
            n_tokens += sum(map(len, encodings))
    return {"n_tokens": n_tokens, "seconds": spent}


def fmray(folder: Path) -> dict[str, float]:
    """The prepare stage in one pass: no cleaning, no search for duplicates, a loaded tokenizer."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from fmray import cluster
    from fmray.core.experiment import Experiment
    from fmray.memory import PeakMemory

    step = {
        "stage": "prepare", "source": {"type": "text", "path": str(folder / "text"), "documents": "line"}, "seq_len": SEQ_LEN,
        "vocab_size": VOCAB, "tokenizer": {"type": "pretrained", "path": str(folder / "tokenizer")}, "deduplicate": {"exact": False},
        "validation_fraction": 0.001,
    }  # fmt: skip
    began = time.perf_counter()
    cluster.connect()
    import ray.data

    # Ray's start-up is its own figure: the cluster, Ray Data's import, and the first worker processes.
    ray.data.from_items([{"n": n} for n in range(4)], override_num_blocks=4).map_batches(lambda batch: batch).materialize()
    started = time.perf_counter() - began
    storage = folder / "fmray"
    seen: list[tuple[float, float, float]] = []
    clock = time.perf_counter()

    class Watcher:
        def progress(self, step: str, text: str, done: float | None, total: float | None, figures: dict[str, float]) -> None:
            if figures.get("tokens"):
                seen.append((time.perf_counter() - clock, done or 0, total or 1))

    experiment = Experiment({"name": "bench", "steps": {"corpus": step}}, where="bench", storage=str(storage))
    clock = time.perf_counter()
    with PeakMemory() as memory:
        (outcome,) = experiment.run(watcher=Watcher())
    seconds = time.perf_counter() - clock
    payload = outcome.artifact.payload
    shutil.rmtree(storage)
    session = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[union-attr]
    n_spilled = sum(1 for path in session.rglob("*") if "spilled" in str(path) and path.is_file())
    cluster.close()
    first_s, first_done, total = seen[0]
    return {
        "n_tokens": payload.n_tokens + payload.n_validation_tokens - 2 * (payload.n_documents + payload.n_validation_documents),
        "seconds": seconds, "ray_start_s": started, "peak_gb": memory.peak_gb or 0.0, "first_rows_s": first_s, "first_rows_share": first_done / total, "spilled_files": n_spilled,
    }  # fmt: skip


def datasets(folder: Path) -> dict[str, float]:
    """`datasets`: load text, map over two processes into packed rows, write Parquet."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from datasets import disable_caching, disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    from fmray.memory import PeakMemory

    disable_caching()
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    files = [str(p) for p in sorted((folder / "text").iterdir())]
    began = time.perf_counter()
    with PeakMemory() as memory:
        text = load_dataset("text", data_files=files, split="train", cache_dir=str(folder / "cache"))
        rows = text.map(PackLines(tokenizer), batched=True, batch_size=4096, num_proc=2, remove_columns=["text"])
        rows.to_parquet(str(folder / "datasets.parquet"))
    seconds = time.perf_counter() - began
    n_tokens = int(sum(rows["n_tokens"]))
    shutil.rmtree(folder / "cache")
    (folder / "datasets.parquet").unlink()
    return {"n_tokens": n_tokens, "seconds": seconds, "peak_gb": memory.peak_gb or 0.0}


class PackLines:
    """What a user writes for `datasets.map`: tokenize, put bos and eos around, concatenate and chop; the tail of a batch is padded."""

    def __init__(self, tokenizer: object) -> None:
        self.tokenizer = tokenizer

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[object]]:
        import numpy as np

        ids = self.tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]  # type: ignore[operator]
        lengths = np.array([len(i) + 2 for i in ids])
        flat = np.zeros(-(-int(lengths.sum()) // SEQ_LEN) * SEQ_LEN, np.int32)
        flat[: lengths.sum()] = np.concatenate([np.array([1, *i, 2], np.int32) for i in ids])
        begins = np.cumsum(lengths) - lengths
        starts = np.zeros(len(flat), np.int32)
        starts[begins] = 1
        starts[::SEQ_LEN] = 1
        here = np.arange(len(flat), dtype=np.int32)
        positions = here - np.maximum.accumulate(np.where(starts == 1, here, 0))
        segments = np.cumsum(starts.reshape(-1, SEQ_LEN), axis=1)
        n_rows = len(segments)
        n_tokens = [int(lengths.sum()) - 2 * len(ids)] + [0] * (n_rows - 1)
        return {
            "input_ids": list(flat.reshape(n_rows, SEQ_LEN)), "segment_ids": list(segments.astype(np.int32)),
            "position_ids": list(positions.reshape(n_rows, SEQ_LEN)), "n_tokens": n_tokens,
        }  # fmt: skip


def datatrove(folder: Path) -> dict[str, float]:
    """datatrove's DocumentTokenizer over two local processes, in its own binary format (tokens one after the other, no rows)."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    from fmray.memory import PeakMemory

    jsonl = folder / "jsonl"
    if not jsonl.exists():
        jsonl.mkdir()
        for path in sorted((folder / "text").iterdir()):
            with (jsonl / f"{path.stem}.jsonl").open("w") as out:
                for n, line in enumerate(path.read_text().splitlines()):
                    out.write(json.dumps({"text": line, "id": str(n)}) + "\n")
    began = time.perf_counter()
    with PeakMemory() as memory:
        pipeline = [
            JsonlReader(str(jsonl)),
            DocumentTokenizer(str(folder / "trove"), tokenizer_name_or_path=str(folder / "tokenizer" / "tokenizer.json"), eos_token="<|eos|>", shuffle_documents=False, save_filename="x"),
        ]
        LocalPipelineExecutor(pipeline, tasks=8, workers=2, logging_dir=str(folder / "logs"), skip_completed=False).run()
    seconds = time.perf_counter() - began
    n_tokens = sum(p.stat().st_size for p in (folder / "trove").glob("*.ds")) // 2
    for name in ("trove", "logs"):
        shutil.rmtree(folder / name)
    return {"n_tokens": n_tokens, "seconds": seconds, "peak_gb": memory.peak_gb or 0.0}


CHILDREN = {"raw": raw, "fmray": fmray, "datasets": datasets, "datatrove": datatrove}


def report(runs: dict[str, list[dict[str, float]]], n_bytes: int, known: argparse.Namespace) -> None:
    """Prints medians and the ratio to raw of the same round."""
    print(f"\n{n_bytes / 1e6:.0f} MB of text, {known.repeats} interleaved runs, medians [least, most]")
    for name, found in runs.items():
        rates = [run["n_tokens"] / run["seconds"] / 1e6 for run in found]
        line = f"{name:10s} {statistics.median(rates):.2f} [{min(rates):.2f}, {max(rates):.2f}] Mtok/s"
        if "raw" in runs:
            of_raw = [rate / (r["n_tokens"] / r["seconds"] / 1e6) for rate, r in zip(rates, runs["raw"], strict=True)]
            line += f"   of raw: {statistics.median(of_raw):.3f} [{min(of_raw):.3f}, {max(of_raw):.3f}]"
        print(line, {key: round(statistics.median(run[key] for run in found), 3) for key in found[0] if key not in ("n_tokens", "seconds")})
    if known.json:
        known.json.write_text(json.dumps({"mb": n_bytes / 1e6, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
