"""The training loop: every stage that trains runs this one."""

from collections.abc import Callable, Iterable, Sequence

from fmray.core.cursor import Cursor
from fmray.core.errors import RunError
from fmray.objectives import Batch
from fmray.train.draws import Draws
from fmray.train.engine import Engine, Learnt, StepStats, never

# This worker's micro-batches of one global batch, and where the data stands behind them.
Step = tuple[Sequence[Batch], Cursor]
OnStep = Callable[[int, StepStats, Cursor], None]
OnNonfinite = Callable[[StepStats, Sequence[Batch], Cursor], None]


def train(
    engine: Engine, objective: Learnt, batches: Iterable[Step], *, max_steps: int, seed: int, on_step: OnStep,
    on_nonfinite: OnNonfinite | None = None, stop_asked: Callable[[], bool] = never, rank: int = 0, world_size: int = 1,
) -> None:  # fmt: skip
    """Trains until `engine.step` is `max_steps`, the batches run out or a worker was asked to stop; tells `on_step` after every optimizer step.

    What drops units is seeded for each micro-batch from seed, step and the place of its rows, so it needs no saved random state to resume
    and workers draw apart; see `Draws`.

    Args:
        on_nonfinite: is told of a step that was not applied because loss or gradient norm is no finite number, and raises to stop.
        stop_asked: whether this worker was asked to stop; all workers then leave behind the same step, which `on_step` is told.
        rank: whose batches these are, of `world_size` workers.

    Raises:
        RunError: a loss or gradient norm is no finite number, and no `on_nonfinite` was given. It is the same on every worker, so all stop together.
    """
    remaining, learnt = iter(batches), Draws(objective, seed, rank=rank, world_size=world_size)
    while engine.step < max_steps and (item := next(remaining, None)) is not None:
        micro_batches, cursor = item
        learnt.begin(engine.step)
        stats = engine.train_batch(micro_batches, learnt, stop_asked)
        if not stats.applied:
            if on_nonfinite is None:
                raise RunError(f"{stats.fault} at step {engine.step}", todo="lower optim.lr, raise optim.warmup_steps or look at the data")
            on_nonfinite(stats, micro_batches, cursor)
        on_step(engine.step, stats, cursor)
        if stats.stop:
            return
