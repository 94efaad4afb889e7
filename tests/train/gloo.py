"""Fine-tunings in real gloo processes without Ray: several through one launch, for starting costs more than training."""

import functools
from pathlib import Path

import torch
import torch.multiprocessing as mp

from fmray.train.tuning import Epochs, Tuned, TuningConfig, tune_classifier
from fmray.train.worker import Place


def tune_together(world_size: int, folder: Path, start: Path, configs: dict[str, TuningConfig], resume: dict[str, Path] | None = None) -> None:
    """Runs each config in `world_size` processes; the epochs of each lie below `folder`, by its name."""
    folder.mkdir()
    mp.spawn(_process, (world_size, folder, start, configs, resume or {}), nprocs=world_size)


def _process(rank: int, world_size: int, folder: Path, start: Path, configs: dict[str, TuningConfig], resume: dict[str, Path]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    for name, config in configs.items():
        # As in a run, only what the first worker says counts.
        begun = resume.get(name) if rank == 0 else None
        keep = functools.partial(_keep, Epochs(folder / name), rank)
        tune_classifier(config, start, config.task.load(), resume=begun, on_epoch=keep, place=Place(rank, world_size, world_size))
    torch.distributed.destroy_process_group()


def _keep(epochs: Epochs, rank: int, tuned: Tuned) -> bool:
    assert rank == 0, "the first worker alone keeps epochs"
    epochs.add(tuned)
    return True
