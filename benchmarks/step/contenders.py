"""Who is compared: bare loops as one writes them by hand, fmray's loop with and without Ray, and Hugging Face's Trainer."""

import functools
import os
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.step.measuring import (
    CORPUS,
    MODEL,
    OPTIM,
    ROWS,
    SEQ_LEN,
    Speeds,
    batches,
    beside_share,
    between,
    experiment,
    fresh_model,
    one_process,
    timed,
    use_all_cores,
    watched_processes,
)


def bare(folder: Path, steps: int, *, compiled: bool = False) -> Speeds:
    """A loop of torch: autocast over float32 weights, fused AdamW, clipping."""
    import torch
    import torch.nn.functional as F

    model = fresh_model()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM["lr"], fused=True)
    stamps = []
    for batch in list(batches(folder, steps)):
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(input_ids=batch["input_ids_BT"], position_ids=batch["position_ids_BT"], use_cache=False).logits
        F.cross_entropy(logits.float().flatten(0, 1), batch["labels_BT"].flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        stamps.append(time.perf_counter())
    return timed(between(stamps))


def bare_deepspeed(folder: Path, steps: int) -> Speeds:
    """A loop of DeepSpeed's own, with the config that fmray comes to at stage 1: bf16 weights and float32 masters."""
    import torch
    import torch.nn.functional as F

    from fmray.train.deepspeed_engine import Zero, deepspeed_config, prepare_process
    from fmray.train.optim import Optim

    one_process()
    prepare_process(local_world_size=1, use_gpu=False)
    import deepspeed

    model = fresh_model()
    config = deepspeed_config(Optim(), precision="bf16", zero=Zero(stage=1), micro_batch_size=ROWS, grad_accum_steps=1, overrides={})
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM["lr"], fused=True)
    engine, *_ = deepspeed.initialize(model=model, config=config, optimizer=optimizer)
    stamps = []
    for batch in list(batches(folder, steps)):
        logits = engine(input_ids=batch["input_ids_BT"], position_ids=batch["position_ids_BT"], use_cache=False).logits
        engine.backward(F.cross_entropy(logits.float().flatten(0, 1), batch["labels_BT"].flatten(), ignore_index=-100))
        engine.step()
        stamps.append(time.perf_counter())
    return timed(between(stamps))


def pretraining(folder: Path, steps: int, **changes: Any) -> dict[str, Any]:
    """The step `base` of an experiment: one worker with all cores, and no state but the last."""
    base = {
        "stage": "pretrain", "dataset": {"artifact": str(folder / CORPUS)}, "model": MODEL, "optim": OPTIM, "global_batch_size": ROWS,
        "max_steps": steps, "num_workers": 1, "cpus_per_worker": os.cpu_count(), "checkpoint_every_steps": 10**6,
    }  # fmt: skip
    return base | changes


def logged(root: Path) -> Speeds:
    """Of the metrics that a pretraining left; `wait_share` is the part of a step's time spent waiting for data."""
    from fmray.train.metrics import METRICS, read_metrics

    lines = read_metrics(root / METRICS)[1:]
    steps = [SEQ_LEN * ROWS / line["tokens_per_s"] for line in lines]
    behind = len(lines) // 3
    waited = sum(line["data_wait_s"] for line in lines[behind:])
    return timed(steps) | {"wait_share": waited / sum(steps[behind:])}


def under_ray(folder: Path, steps: int, **changes: Any) -> Speeds:
    """The stage pretrain as `fmray run` runs it: under Ray Train. `beside_share` is the CPU time of all processes but the worker, of all cores."""
    from fmray import cluster
    from fmray.train.metrics import METRICS, read_metrics

    storage = folder / "fmray"
    try:
        with watched_processes() as samples:
            experiment(storage, {"base": pretraining(folder, steps, **changes)}).run()
        root = storage / "bench" / "base"
        lines = read_metrics(root / METRICS)
        return logged(root) | {"beside_share": beside_share(samples, lines[len(lines) // 3]["time"], lines[-1]["time"])}
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        cluster.close()


def without_ray(folder: Path, steps: int, **changes: Any) -> Speeds:
    """The same loop in this process, as torch's plain launcher would start it."""
    import torch

    from fmray.core.artifact import load
    from fmray.core.config import load_config
    from fmray.data.dataset import TokenDataset
    from fmray.train.config import PretrainConfig
    from fmray.train.launch import RUN
    from fmray.train.worker import Place, PretrainJob, run_pretraining

    one_process()
    told = {key: value for key, value in pretraining(folder, steps, **changes).items() if key not in ("stage", "dataset")}
    config, corpus, out = load_config(PretrainConfig, told, "bench"), folder / CORPUS, folder / "plain"
    data = load(corpus, TokenDataset).payload
    (out / "work").mkdir(parents=True)
    job = PretrainJob(
        config=config, model=config.model, dataset=corpus, vocab_size=data.vocab_size, seq_len=SEQ_LEN, positions=SEQ_LEN, special_ids=data.special_ids, out=out,
        states=out / "work" / RUN, first_step=0, last_step=steps, previous=None, init=None,
    )  # fmt: skip
    try:
        run_pretraining(job, Place(rank=0, world_size=1, local_world_size=1))
        return logged(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        torch.distributed.destroy_process_group()


def trainer(folder: Path, steps: int, *, packed: bool = False) -> Speeds:
    """Hugging Face's Trainer in bf16, at its defaults but for the batch, the order (that of the rows) and what it reports; the time between its steps.

    It pads documents to the longest of their batch, or with `packed` gets fmray's rows.
    """
    import datasets
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            stamps.append(time.perf_counter())

    use_all_cores()
    tokenizer = AutoTokenizer.from_pretrained(folder / CORPUS / "tokenizer")
    rows = [row for batch in batches(folder, steps) for row in zip(*(batch[name].tolist() for name in ("input_ids_BT", "position_ids_BT", "labels_BT")), strict=True)]
    if packed:
        # transformers shifts labels by itself: one back from where fmray's stand.
        columns = [{"input_ids": ids, "position_ids": positions, "labels": [-100, *labels[:-1]]} for ids, positions, labels in rows]
        collate: Any = default_data_collator
    else:
        columns = [{"input_ids": document} for document in documents(rows, tokenizer.bos_token_id)[: steps * ROWS]]
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    steps = min(steps, len(columns) // ROWS)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=ROWS, max_steps=steps, bf16=True, use_cpu=True, learning_rate=OPTIM["lr"],
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    Trainer(model=fresh_model(), args=arguments, train_dataset=datasets.Dataset.from_list(columns), data_collator=collate, callbacks=[Clock()]).train()
    if packed:
        return timed(between(stamps))
    # Documents differ in length, so steps do: totals over the steps behind the first third, not medians.
    sizes = [[len(column["input_ids"]) for column in columns[at : at + ROWS]] for at in range(0, steps * ROWS, ROWS)]
    behind = steps // 3
    seconds = stamps[-1] - stamps[behind - 1]
    padded = sum(max(step) * len(step) for step in sizes[behind:])
    return {"positions_per_s": padded / seconds, "effective_per_s": sum(sum(step) for step in sizes[behind:]) / seconds}


def documents(rows: list[Any], bos: int) -> list[list[int]]:
    """The documents of packed rows, each at most a row long, as a user would tokenize and cut them."""
    stream = [token for ids, _, _ in rows for token in ids]
    starts = [at for at, token in enumerate(stream) if token == bos]
    return [stream[a:b][:SEQ_LEN] for a, b in pairwise(starts)]


TORCH: dict[str, Any] = {"engine": "torch"}
CONTENDERS: dict[str, Callable[[Path, int], Speeds]] = {
    "bare": bare,
    "bare_compiled": functools.partial(bare, compiled=True),
    "fmray_torch": functools.partial(without_ray, **TORCH),
    "fmray_torch_compiled": functools.partial(without_ray, **TORCH, compile=True),
    "bare_deepspeed": bare_deepspeed,
    "fmray_deepspeed": without_ray,
    "fmray_deepspeed_compiled": functools.partial(without_ray, compile=True),
    "fmray_deepspeed_unfused": functools.partial(without_ray, fused_loss=False),
    "fmray_deepspeed_ray": under_ray,
    "trainer": trainer,
    "trainer_packed": functools.partial(trainer, packed=True),
}
