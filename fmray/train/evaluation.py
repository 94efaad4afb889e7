"""Held-out loss while a training goes on, computed by all workers together and without a trace in what is trained."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fmray.core.errors import ConfigError
from fmray.data.dataset import TokenDataset
from fmray.evaluate.held_out import score_rows
from fmray.evaluate.language_modelling import read_rows
from fmray.objectives import Batch, Rows, Setting
from fmray.train.config import PretrainConfig
from fmray.train.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path

# What hides parts of held-out rows, whatever the run's seed: losses of two runs are about the same targets, as the stage evaluate's are.
SEED = 0


def check_evaluation(config: PretrainConfig, data: TokenDataset, where: str) -> None:
    """Refuses an evaluation that has nothing to measure.

    Raises:
        ConfigError: there are no held-out rows, or fewer than a batch whose rows are told apart needs.
    """
    if config.eval_every_steps is None:
        return
    held_out = min(data.splits.get("validation", 0), config.eval_rows)
    needed = 1 if config.objective.adds_up else config.global_batch_size
    if held_out < needed:
        kind = config.objective.type  # type: ignore[attr-defined]
        why = "the dataset has no validation rows" if not held_out else f"{held_out} held-out rows are no whole global batch of {needed}, which objective {kind} tells apart"
        raise ConfigError(why, where=f"{where}.eval_every_steps", todo="leave it out, prepare a larger validation split" + ("" if needed == 1 else ", or raise eval_rows"))


@contextlib.contextmanager
def looked_at(engine: Engine) -> Iterator[None]:
    """An engine's module without dropout for the block; its mode and the random state are afterwards what they were."""
    import torch

    module, training = engine.module, engine.module.training
    with torch.random.fork_rng(devices=[engine.device] if engine.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        module.eval()
        try:
            yield
        finally:
            module.train(training)


class HeldOut:
    """The mean loss a target of the validation rows, over all workers.

    Row i of the chosen ones is worker i mod W's. Sums and counts are added up over workers, so their number changes nothing; where an
    objective tells the rows of a batch apart, batches are those of `global_batch_size` rows, and rows that make up no whole one are left out.
    """

    def __init__(self, config: PretrainConfig, dataset: "Path", setting: Setting, *, rank: int, world_size: int) -> None:
        self._config, self._dataset, self._rank, self._world_size = config, dataset, rank, world_size
        self._setting = replace(setting, seed=SEED)

    def due(self, step: int, last_step: int) -> bool:
        """Whether the state after a step is evaluated: at every interval, and at the end."""
        every = self._config.eval_every_steps
        return every is not None and (step % every == 0 or step == last_step)

    def loss(self, engine: Engine) -> float:
        """The mean loss of a target, in the engine's precision and without dropout. Every worker calls it; all get the same.

        The module's mode and the random state are afterwards what they were.
        """
        import torch

        objective = self._config.objective
        with looked_at(engine):
            sums, _ = score_rows(engine.forward, engine.device, objective, (batch for batch, _ in self._passes))
        counted = np.array([counts for _, counts in self._passes])
        targets = sum(objective.count(batch) for batch, counts in self._passes if counts)
        total = torch.tensor([float(sums[counted].sum()), float(targets)], dtype=torch.float64, device=engine.device)
        if self._world_size > 1:
            torch.distributed.all_reduce(total)
        loss_sum, count = total.tolist()
        return loss_sum / count if count else math.nan

    @cached_property
    def _passes(self) -> list[tuple[Batch, bool]]:
        """This worker's batches, the same at every evaluation, and whether each counts: all workers make equally many passes, for at ZeRO stage 3 they need each other."""
        rows, size = read_rows(self._dataset, self._config.eval_rows), self._config.rows_per_pass
        if not self._config.objective.adds_up:
            whole = len(rows["row_ids_B"]) // self._config.global_batch_size * self._config.global_batch_size
            rows = {name: values[:whole] for name, values in rows.items()}
        mine = {name: values[self._rank :: self._world_size] for name, values in rows.items()}
        n_passes = math.ceil(math.ceil(len(rows["row_ids_B"]) / self._world_size) / size)
        parts = [{name: values[i * size : (i + 1) * size] for name, values in mine.items()} for i in range(n_passes)]
        stand_in = {name: values[:1] for name, values in rows.items()}
        return [self._pass(part, True) if len(part["row_ids_B"]) else self._pass(stand_in, False) for part in parts]

    def _pass(self, rows: Rows, counts: bool) -> tuple[Batch, bool]:
        return self._config.objective.collate(rows, self._setting), counts
