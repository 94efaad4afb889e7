"""The config of the evaluate stage."""

from pydantic import Field

from fmray.core.config import Config, runtime


class EvaluateConfig(Config):
    """What to measure, and with how much of the machine.

    Attributes:
        max_rows: at most so many validation rows, spread evenly over the split; None reads all of them.
        control_rows: on how many of those rows an untrained twin of the same shape is scored as the control.
        micro_batch_size: at most so many rows (or texts) a forward pass; fewer where rows are long.
        num_cpus: cores, and so torch threads, of the worker that scores.
        num_gpus: GPUs of that worker (0 or 1).
    """

    max_rows: int | None = Field(None, ge=1)
    control_rows: int = Field(64, ge=1)
    seed: int = Field(0, ge=0)
    micro_batch_size: int = runtime(16, ge=1)
    num_cpus: int = runtime(2, ge=1)
    num_gpus: int = runtime(0, ge=0, le=1)
