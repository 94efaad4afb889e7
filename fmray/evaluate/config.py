"""The config of the evaluate stage."""

import re
from collections.abc import Mapping

from pydantic import Field, field_validator

from fmray.core.config import Config, runtime
from fmray.evaluate.lm_tasks.config import LmTask

NAME = re.compile(r"\w[\w.@-]*")


class EvaluateConfig(Config):
    """What to measure, and with how much of the machine.

    Attributes:
        tasks: likelihood and generation tasks of a language model by name, measured in place of its held-out loss; a dataset is then the
            corpus in which the tasks' documents are looked for.
        max_rows: at most so many validation rows, spread evenly over the split; None reads all of them. Neither this nor `control_rows`
            nor `num_workers` is for a tuned checkpoint, which is judged on all test examples of its task by one worker.
        control_rows: on how many of those rows (or of each task's documents) an untrained twin of the same shape is scored as the control.
        micro_batch_size: at most so many rows (or texts) a forward pass; fewer where rows are long.
        num_workers: workers that share the tasks' documents; they change no figure.
        num_cpus: cores, and so torch threads, of each worker that scores.
        num_gpus: GPUs of each (0 or 1).
    """

    tasks: dict[str, LmTask] = {}

    max_rows: int | None = Field(None, ge=1)
    control_rows: int = Field(64, ge=1)
    seed: int = Field(0, ge=0)
    micro_batch_size: int = runtime(16, ge=1)
    num_workers: int = runtime(1, ge=1)
    num_cpus: int = runtime(2, ge=1)
    num_gpus: int = runtime(0, ge=0, le=1)

    @field_validator("tasks")
    @classmethod
    def _can_be_put(cls, tasks: dict[str, LmTask]) -> dict[str, LmTask]:
        return named(tasks)


def named(tasks: Mapping[str, LmTask]) -> dict[str, LmTask]:
    """Each task with its definition read, which is that of its own name unless it gives another.

    Raises:
        ValueError: a name that no metric could bear.
        ConfigError: see `LmTask.named`.
    """
    for name in tasks:
        if not NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no name for a task: letters, digits and _ . - @, no sign first")
    return {name: task.named(name) for name, task in tasks.items()}
