"""Fine-tuning against transformers' Trainer: `python -m benchmarks.finetune --negative FILE --positive FILE` from the repository.

The same sentences, weights, batch size, learning rate, schedule, precision and threads. Variants run in turn, and medians are told.
Time is that of cutting the texts into tokens and of training, without loading the model and without scoring.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.polarity import add_files, encoder, task
from fmray.core.config import load_config
from fmray.tasks import Predictions, TaskData
from fmray.tasks.classifier import Classifier
from fmray.train.engine import TorchEngine
from fmray.train.loop import train
from fmray.train.task_loss import TaskLoss
from fmray.train.tuning import TuningConfig, global_batches

LR, WARMUP = 1e-4, 20
Run = Callable[[TuningConfig, Path, TaskData], tuple[float, Classifier]]


def ours(config: TuningConfig, start: Path, data: TaskData) -> tuple[float, Classifier]:
    """The loop of finetune: rows of like length together, padded to the longest of the batch."""
    opened = Classifier.start(start, data.labels, seed=config.seed)
    length = opened.longest(config.max_length)
    clock = time.perf_counter()
    rows = config.task.encode(opened.tokenizer, data.splits["train"], length, len(data.labels))
    rows["row_ids_B"] = np.arange(len(rows["example_B"]), dtype=np.int64)
    steps = -(-len(rows["row_ids_B"]) // config.global_batch_size)
    engine = TorchEngine(opened.model, config.optim, lambda step: config.optim.lr_at(step, steps * config.epochs), precision=config.precision)
    loss = TaskLoss(config.task, None, engine.device, opened.model.config)
    for epoch in range(config.epochs):
        train(engine, loss, global_batches(rows, config, epoch), max_steps=(epoch + 1) * steps, seed=config.seed, on_step=lambda *told: None)
    return time.perf_counter() - clock, opened


def trainer(strategy: str) -> Run:
    """transformers' Trainer with a sampling strategy; padding to the longest of the batch by its own collator, all else its defaults."""

    def run(config: TuningConfig, start: Path, data: TaskData) -> tuple[float, Classifier]:
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

        opened = Classifier.start(start, data.labels, seed=config.seed)
        length = opened.longest(config.max_length)
        split = data.splits["train"]
        with tempfile.TemporaryDirectory() as folder:
            settings: dict[str, Any] = {
                "output_dir": folder, "per_device_train_batch_size": config.global_batch_size, "num_train_epochs": config.epochs,
                "learning_rate": config.optim.lr, "weight_decay": config.optim.weight_decay, "warmup_steps": config.optim.warmup_steps,
                "bf16": config.precision == "bf16", "use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
                "train_sampling_strategy": strategy, "seed": config.seed,
            }  # fmt: skip
            clock = time.perf_counter()
            encoded = opened.tokenizer(list(split.inputs), truncation=True, max_length=length)
            rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(label)} for ids, label in zip(encoded["input_ids"], split.targets, strict=True)]
            Trainer(
                model=opened.model, args=TrainingArguments(**settings), train_dataset=rows,  # type: ignore[arg-type]
                data_collator=DataCollatorWithPadding(opened.tokenizer),
            ).train()  # fmt: skip
            return time.perf_counter() - clock, opened

    return run


VARIANTS: dict[str, Run] = {"fmray": ours, "Trainer, defaults": trainer("random"), "Trainer, length grouping": trainer("group_by_length")}


def accuracy(opened: Classifier, config: TuningConfig, data: TaskData) -> float:
    """On the test split."""
    test = data.splits["test"]
    rows = config.task.encode(opened.tokenizer, test, opened.tokenizer.model_max_length, len(data.labels))
    said: Predictions = config.task.predict(config.task.outputs(opened, rows), rows, test)
    return config.task.metrics(data.labels, test.targets, said)["accuracy"]


def measured(config: TuningConfig, start: Path, data: TaskData, rounds: int) -> str:
    """A table of all variants, told line by line while it is made."""
    few = TaskData(data.labels, {"train": type(data.splits["train"])(data.splits["train"].inputs[:64], data.splits["train"].targets[:64])}, "")
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    right: dict[str, list[float]] = {name: [] for name in VARIANTS}
    n = len(data.splits["train"]) * config.epochs
    for run in VARIANTS.values():
        run(config.model_copy(update={"epochs": 1}), start, few)
    for seed in range(rounds):
        seeded = config.model_copy(update={"seed": seed})
        for name, run in VARIANTS.items():
            seconds, opened = run(seeded, start, data)
            speeds[name].append(n / seconds)
            right[name].append(accuracy(opened, seeded, data))
            print(f"round {seed + 1}: {name}: {speeds[name][-1]:.1f} examples/s, accuracy {right[name][-1]:.3f}", flush=True)
    base = statistics.median(speeds["Trainer, defaults"])
    lines = ["| loop | examples/s, median | lowest to highest | times Trainer's default | test accuracy, median | lowest to highest |", "|---|--:|--:|--:|--:|--:|"]
    for name in VARIANTS:
        s, r = sorted(speeds[name]), sorted(right[name])
        lines.append(f"| {name} | {statistics.median(s):.1f} | {s[0]:.1f} to {s[-1]:.1f} | {statistics.median(s) / base:.2f} | {statistics.median(r):.3f} | {r[0]:.3f} to {r[-1]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints what a result file holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_files(parser)
    parser.add_argument("--examples", type=int, default=3000, help="so many sentences in all three splits")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    config = load_config(TuningConfig, {
        "task": task(asked.negative, asked.positive, asked.examples, (0.7, 0.1, 0.2)), "optim": {"lr": LR, "warmup_steps": WARMUP},
        "epochs": asked.epochs, "global_batch_size": asked.batch_size, "precision": asked.precision,
    })  # fmt: skip
    data = config.task.load()
    counts = {name: len(split) for name, split in data.splits.items()}
    table = measured(config, encoder(asked.model), data, asked.rounds)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "numpy"))
    print(f"\n{counts['train']} sentences of training, {counts['test']} of test; {asked.epochs} epochs of batches of {asked.batch_size}, {asked.precision}, {asked.threads} threads, {asked.rounds} rounds.")
    print(f"Machine: 2 virtual {platform.machine()} cores, no GPU. Python {platform.python_version()}, {packages}.\n\n{table}")


if __name__ == "__main__":
    main()
