"""fmray's training loop on one device: decoders of several sizes, every lever with a row of its own: `python -m benchmarks.gpu --peak-tflops 989`.

Every row is a process of its own that runs what a Ray Train worker runs (`run_pretraining`), without Ray, over made rows; it is ended
once enough steps are in its metrics. Rows are packed with documents of 512 tokens on average. MFU is tokens/s x (6 N + 12 L d T) over the
declared peak (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B), with N the parameters that multiply, L layers of
width d and rows of T: the whole T x T square, though packed and causal rows need less. A lever is one change of fmray's config; one that
this fmray or this machine does not have says so. At the end, all that were faster run together.
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
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention.cells import documents
from fmray.model.architectures.decoder import SIZES, Decoder

VOCAB = 32_768
WARM = 4
# What changes against fmray's defaults on one device. `rows` and `loss` are this benchmark's own, all others fields of PretrainConfig.
LEVERS: dict[str, dict[str, Any]] = {
    "fmray's defaults (DeepSpeed stage 1, sdpa, fused AdamW, packed rows)": {},
    "torch engine (autocast over float32 weights)": {"engine": "torch"},
    "torch.compile": {"compile": True},
    "AdamW not fused (foreach)": {"optim": {"lr": 1e-4, "implementation": "foreach"}},
    "eager attention": {"attention": "eager"},
    "flash_attention_2": {"attention": "flash_attention_2"},
    "flash_attention_3": {"attention": "flash_attention_3"},
    "a document fills its row": {"rows": "whole"},
    "not packed: a document a row, padded": {"rows": "padded"},
    "loss behind the head, over all logits": {"fused_loss": False},
    "Liger's fused linear and cross-entropy": {"loss": "liger", "fused_loss": False},
    "activation checkpointing": {"activation_checkpointing": True},
}
# Levers that change what is computed, or what it is compared with, are not put together with others.
ALONE = ("rows", "optim")
Row = dict[str, Any]


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["125m", "350m", "1b"], choices=list(SIZES))
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--levers", nargs="+", type=int, help="numbers of the levers, 0 being none; all if left out")
    parser.add_argument("--tokens", type=int, default=32_768, help="of a step, which is one pass; halved until it fits")
    parser.add_argument("--steps", type=int, default=16, help="that are timed")
    parser.add_argument("--limit-s", type=float, default=300.0, help="after which a row is given up")
    parser.add_argument("--peak-tflops", type=float, help="declared of the device in bf16; without it MFU is not known")
    parser.add_argument("--out", type=Path, help="folder for the result files")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measures row after row, prints each, and writes the result files."""
    known = arguments().parse_args()
    if known.child:
        train(json.loads(known.child[0]), Path(known.child[1]))
        return
    peak = matmul_peak(known.device)
    chosen = list(LEVERS) if known.levers is None else [list(LEVERS)[i] for i in known.levers]
    rows: list[Row] = []
    for size in known.sizes:
        for seq_len in known.seq_lens:
            here = [tried(known, size, seq_len, name, LEVERS[name], rows) for name in chosen]
            if together := faster(here):
                tried(known, size, seq_len, "together: " + "; ".join(together), {key: value for name in together for key, value in LEVERS[name].items()}, rows)
    text = report(rows, peak, known)
    print(text)
    if known.out:
        known.out.mkdir(parents=True, exist_ok=True)
        stem = known.out / f"training_{known.device}_{time.strftime('%Y%m')}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps({"peak": peak, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def faster(rows: list[Row]) -> list[str]:
    """The levers that gained more than one in a hundred against the first row, where several did."""
    if not rows or "tokens_per_s" not in rows[0]:
        return []
    gained = [row["name"] for row in rows[1:] if row.get("tokens_per_s", 0.0) > 1.01 * rows[0]["tokens_per_s"] and not set(ALONE) & set(LEVERS[row["name"]])]
    # Of two attentions, or two losses, the faster.
    best = {tuple(sorted(LEVERS[name])): name for name in sorted(gained, key=lambda name: next(row["tokens_per_s"] for row in rows if row["name"] == name))}
    return list(best.values()) if len(best) > 1 else []


def tried(known: argparse.Namespace, size: str, seq_len: int, name: str, lever: dict[str, Any], rows: list[Row]) -> Row:
    """One row: its figures, or why it has none. With too little memory for the tokens of a step, half of them."""
    tokens = max(seq_len, known.tokens)
    while True:
        case = {"size": size, "seq_len": seq_len, "rows": tokens // seq_len, "device": known.device, "lever": lever}
        row = {"size": size, "seq_len": seq_len, "name": name, "rows": case["rows"]} | run(case, known.steps, known.limit_s)
        if "out of memory" not in row.get("reason", "").lower() or tokens <= seq_len:
            break
        tokens //= 2
    row["flops_per_token"] = Decoder(size=size).flops_per_token(VOCAB, seq_len)  # type: ignore[arg-type]
    print(row, flush=True)
    rows.append(row)
    return row


def run(case: dict[str, Any], steps: int, limit_s: float) -> Row:
    """Starts the row's process and ends it when its metrics hold enough steps."""
    from fmray.train.metrics import METRICS, read_metrics

    folder = Path(tempfile.mkdtemp(prefix="fmray-gpu-"))
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", "--child", json.dumps(case), str(folder)], stdout=file, stderr=subprocess.STDOUT)
    deadline, lines = time.monotonic() + limit_s, list[Row]()
    try:
        while process.poll() is None and time.monotonic() < deadline and len(lines) < WARM + steps:
            time.sleep(0.2)
            lines = read_metrics(folder / "out" / METRICS)
        if len(lines) >= WARM + steps:
            return figures(lines[WARM : WARM + steps], case)
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if process.poll() is None:
            return {"reason": f"{len(lines)} steps within {limit_s:g} s"}
        # The end of a long traceback may be advice; the error itself is the line that names one.
        return {"reason": next((line for line in reversed(said) if "Error" in line), (said or ["ended without a word"])[-1])[:300]}
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def figures(lines: list[Row], case: dict[str, Any]) -> Row:
    """Medians over steps. Effective tokens are those that teach: neither padding nor the last of a document."""
    speed = statistics.median(line["tokens_per_s"] for line in lines)
    share = statistics.mean(line["n_targets"] for line in lines) / (case["rows"] * case["seq_len"])
    return {"tokens_per_s": speed, "effective_per_s": speed * share, "peak_gb": max(line["peak_gb"] for line in lines), "data_wait_s": statistics.median(line["data_wait_s"] for line in lines)}


def train(case: dict[str, Any], folder: Path) -> None:
    """The row's process: fmray's worker on this device, until it is ended."""
    import torch

    from fmray.core.config import load_config
    from fmray.train import worker
    from fmray.train.config import PretrainConfig
    from tests.train.dataset import token_dataset

    lever, gpu = dict(case["lever"]), case["device"] == "cuda"
    kind, liger = lever.pop("rows", "packed"), lever.pop("loss", "") == "liger"
    # transformers knows more names than the config lists.
    attention = lever.pop("attention", "sdpa")
    fields = {
        "model": {"type": "decoder", "size": case["size"]}, "global_batch_size": case["rows"], "max_steps": 10**6, "num_workers": 1,
        "cpus_per_worker": os.cpu_count(), "use_gpu": gpu, "checkpoint_every_steps": 10**6, "optim": {"lr": 1e-4},
    }  # fmt: skip
    config = load_config(PretrainConfig, fields | lever, "row").model_copy(update={"attention": attention})
    if liger:
        config = config.model_copy(update={"objective": liger_objective()})
    data = token_dataset(folder / "corpus", n_rows=8 * case["rows"], seq_len=case["seq_len"], rows={"packed": packed, "whole": whole, "padded": padded}[kind], ids=VOCAB).payload
    (folder / "out" / "work").mkdir(parents=True)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29517"), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    job = worker.PretrainJob(
        config=config, model=config.model, dataset=folder / "corpus", vocab_size=VOCAB, seq_len=case["seq_len"], positions=case["seq_len"], special_ids=data.special_ids,
        out=folder / "out", states=folder / "out" / "work" / "train", first_step=0, last_step=10**6, previous=None, init=None,
    )  # fmt: skip
    worker.run_pretraining(job, worker.Place(rank=0, world_size=1, local_world_size=1))


def packed(n_rows: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
    """Rows filled with documents of about 512 tokens each."""
    return made([list(lengths) for lengths in documents(n_rows, seq_len)], seq_len, seed)


def whole(n_rows: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of one document each."""
    return made([[seq_len]] * n_rows, seq_len, seed)


def padded(n_rows: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of one document each, of the lengths that packed rows have, and empty behind it."""
    lengths = [length for row in documents(n_rows, seq_len) for length in row]
    return made([[max(2, length)] for length in lengths[:n_rows]], seq_len, seed)


def made(lengths: list[list[int]], seq_len: int, seed: int) -> dict[str, np.ndarray]:
    """Random tokens in documents of these lengths; segment 0 is the empty rest."""
    shape = (len(lengths), seq_len)
    segments, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, sizes in enumerate(lengths):
        segments[row, : sum(sizes)] = np.repeat(np.arange(1, 1 + len(sizes)), sizes)
        positions[row, : sum(sizes)] = np.concatenate([np.arange(size) for size in sizes])
    ids = np.where(segments > 0, np.random.default_rng(seed).integers(3, VOCAB, shape), 0)
    return {"row_ids_B": np.arange(len(lengths)), "input_ids_BT": ids, "segment_ids_BT": segments, "position_ids_BT": positions}


def liger_objective() -> Any:
    """fmray's causal_lm with Liger's fused output head and cross-entropy, which never holds all logits; its sum, like ours."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    from transformers import LlamaForCausalLM

    from fmray.objectives import LossParts
    from fmray.objectives.causal_lm import CausalLM

    fused = LigerFusedLinearCrossEntropyLoss(ignore_index=-100, reduction="sum")

    def forward(self: Any, input_ids: Any, position_ids: Any, labels_BT: Any) -> Any:
        hidden_BTD = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return fused(self.lm_head.weight, hidden_BTD.flatten(0, 1), labels_BT.flatten())

    LlamaForCausalLM.forward = forward  # type: ignore[method-assign]

    class Liger(CausalLM):
        def loss(self, model: Any, batch: Any) -> LossParts:
            labels_BT = batch["labels_BT"]
            return LossParts(model(input_ids=batch["input_ids_BT"], position_ids=batch["position_ids_BT"], labels_BT=labels_BT), (labels_BT != -100).sum())

    return Liger()


def matmul_peak(device: str) -> dict[str, Any]:
    """The device's name and its bf16 matrix product, measured in a process of its own so that this one holds nothing of the device."""
    code = f"import json, torch; from benchmarks.attention.worker import matmul_peak as m; d = torch.device({device!r}); print(json.dumps([m('bf16', d), torch.cuda.get_device_name() if d.type == 'cuda' else 'CPU']))"
    flops, name = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {"flops_per_s": flops, "name": name}


def report(rows: list[Row], peak: dict[str, Any], known: argparse.Namespace) -> str:
    """The tables in Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    declared = f"{known.peak_tflops:g} TFLOP/s declared" if known.peak_tflops else "no peak declared"
    lines = [
        "# Training on one device", "", f"{peak['name']}, {declared}; its bf16 matrix product reaches {peak['flops_per_s'] / 1e12:,.3g} TFLOP/s here. Python {platform.python_version()}, {versions}.",
        f"bf16, one worker, vocabulary {VOCAB:,}; medians of {known.steps} steps behind {WARM}. MFU = tokens/s x (6 N + 12 L d T) / declared peak.", "",
    ]  # fmt: skip
    for size, seq_len in dict.fromkeys((row["size"], row["seq_len"]) for row in rows):
        lines += [f"## {size}, rows of {seq_len:,}", "", "| | rows a step | tokens/s | effective | against the first | MFU | of the matrix product | peak memory, GB |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
        here = [row for row in rows if (row["size"], row["seq_len"]) == (size, seq_len)]
        lines += [table_row(row, here[0], peak, known.peak_tflops) for row in here] + [""]
    return "\n".join(lines)


def table_row(row: Row, first: Row, peak: dict[str, Any], declared: float | None) -> str:
    """A row of the table: figures, or the reason."""
    if "reason" in row:
        return f"| {row['name']} | {row['rows']} | {row['reason'].replace('|', '/')} | | | | | |"
    flops = row["tokens_per_s"] * row["flops_per_token"]
    mfu = f"{flops / (declared * 1e12):.1%}" if declared else "not known"
    against = f"{row['effective_per_s'] / first['effective_per_s']:.2f}" if "effective_per_s" in first else ""
    return f"| {row['name']} | {row['rows']} | {row['tokens_per_s']:,.0f} | {row['effective_per_s']:,.0f} | {against} | {mfu} | {flops / peak['flops_per_s']:.1%} | {row['peak_gb']:.2f} |"


if __name__ == "__main__":
    main()
