"""The random numbers of a training's forward passes, which drop units: they follow from where rows stand, and nothing is kept of them."""

import numpy as np

from fmray.objectives import Batch, Forward, LossParts
from fmray.train.engine import Learnt


class Draws:
    """What is learnt, with torch's generator seeded anew for every micro-batch from (seed, step, place of its first row in the global batch).

    Worker r of W reads places r, r + W, r + 2 W ... of a global batch, so no two micro-batches of a step drop the same units, on whatever
    worker they are, and a resumed run needs no saved random state. With micro-batches of one row every row drops the same units on any
    number of workers. One worker's only micro-batch draws what a seed from (seed, step) alone would give.
    """

    def __init__(self, learnt: Learnt, seed: int, *, rank: int = 0, world_size: int = 1) -> None:
        self._learnt, self._seed, self._rank, self._world_size = learnt, seed, rank, world_size
        self._step = self._rows = 0

    def begin(self, step: int) -> None:
        """The next losses are those of the update behind `step` finished ones, in the order of their rows."""
        self._step, self._rows = step, 0

    def count(self, batch: Batch) -> int:
        """See `Objective`."""
        return self._learnt.count(batch)

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """See `Objective`."""
        import torch

        place = self._rank + self._world_size * self._rows
        self._rows += len(batch["row_ids_B"])
        # Mixed, for torch's generator on a CPU takes the low 32 bits alone.
        seed = int(np.random.SeedSequence([self._seed, self._step, place]).generate_state(1, np.uint64)[0])
        # Not torch.manual_seed: for each kind of device that is not there it formats the whole stack, 0.2 to 0.4 ms a call.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
        return self._learnt.loss(model, batch)
