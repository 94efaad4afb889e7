"""Runs a fine-tuning as a group of Ray Train workers: for the stage finetune, and inside of a trial of a search."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fmray.cluster import require
from fmray.core.errors import ResourceError
from fmray.train.config import Workers
from fmray.train.launch import Work, launch
from fmray.train.tuning import TuningConfig

GROUP = "group"
MAX_FAULTS_PER_NODE = 3
WAIT_S = 60.0


def launch_group(work: Work, config: TuningConfig, folder: Path, *, max_failures: int, watch: Callable[[], None] = lambda: None) -> None:
    """Runs `work` on all workers of a tuning to its end, starting them again after one was lost; `watch` is called meanwhile.

    Args:
        folder: the tuning's own, shared by all nodes; what the group needs lies in `group/` below it.

    Raises:
        FmrayError: see `launch`.
    """
    group = folder / GROUP
    group.mkdir(parents=True, exist_ok=True)
    launch(
        work, folder=group, num_workers=Workers(min=config.num_workers, max=config.num_workers), cpus_per_worker=config.num_cpus,
        use_gpu=config.num_gpus > 0, max_failures=max_failures, max_faults_per_node=MAX_FAULTS_PER_NODE, wait_s=WAIT_S, watch=watch,
    )  # fmt: skip


def bundles(config: TuningConfig) -> Sequence[dict[str, float]]:
    """What each worker of a tuning holds of the cluster."""
    return [{"CPU": float(config.num_cpus)} | ({"GPU": config.num_gpus} if config.num_gpus else {})] * config.num_workers


def require_trials(config: TuningConfig, at_once: int) -> None:
    """Waits until the cluster has room for a trial of one worker, or for so many at once of several.

    Trials of one worker wait for each other. Of several workers two trials could each hold a part of what both need, for ever.

    Raises:
        ResourceError: there is no such room.
    """
    several = config.num_workers > 1
    try:
        require([*bundles(config)] * (at_once if several else 1), WAIT_S)
    except ResourceError as error:
        if not several:
            raise
        said = f"{at_once} trials at a time of {config.num_workers} workers each do not fit: {error.what}"
        raise ResourceError(said, where="max_concurrent_trials", todo="lower it or num_workers, or add nodes") from None
