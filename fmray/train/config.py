"""The config of the stage pretrain."""

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fmray.core.config import Config, runtime
from fmray.model.architectures import Architecture
from fmray.objectives import Objective
from fmray.objectives.causal_lm import CausalLM
from fmray.train.deepspeed_engine import Zero, deepspeed_config
from fmray.train.device import Device
from fmray.train.engine import Precision
from fmray.train.optim import Optim


class PretrainConfig(Config):
    """What is trained, how, and where it runs.

    Attributes:
        model: the architecture; left out when the step has an `init` checkpoint to continue from.
        global_batch_size: rows of one optimizer step, over all workers.
        max_steps: optimizer steps of this run; `epochs` may stand instead. A round that a gate sent back trains as many more.
        attention: transformers' attention implementation.
        deepspeed: merged last into the DeepSpeed config.
        micro_batch_size: rows of one forward pass on one worker; all of a worker's rows when left out.
        keep_checkpoints: states to resume from that are kept while it runs.
        max_failures: how often the workers are started again after one died.
        wait_s: how long to wait for the cluster to have the workers' resources.
        device: what is declared of a worker's device, for plan and MFU.
        ledger: whether every worker puts down which rows it read, and the record then proves that each was read once an epoch.
    """

    model: Architecture | None = None
    objective: Objective = CausalLM()
    optim: Optim = Optim()
    global_batch_size: int = Field(ge=1)
    max_steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Precision = "bf16"
    attention: Literal["sdpa", "eager"] = "sdpa"
    compile: bool = False
    deepspeed: dict[str, Any] = {}
    engine: Literal["deepspeed", "torch"] = runtime("deepspeed")
    num_workers: int = runtime(2, ge=1)
    use_gpu: bool = runtime(False)
    cpus_per_worker: int = runtime(1, ge=1)
    zero: Zero = runtime(Zero())
    micro_batch_size: int | None = runtime(None, ge=1)
    checkpoint_every_steps: int = runtime(200, ge=1)
    keep_checkpoints: int = runtime(2, ge=1)
    max_failures: int = runtime(3, ge=0)
    wait_s: float = runtime(60.0, ge=0)
    device: Device = runtime(Device())
    ledger: bool = runtime(False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give either max_steps or epochs")
        rows, left = divmod(self.global_batch_size, self.num_workers)
        if left:
            raise ValueError(f"global_batch_size {self.global_batch_size} does not divide among num_workers {self.num_workers}")
        if rows % (self.micro_batch_size or rows):
            raise ValueError(f"the {rows} rows of each worker (global_batch_size / num_workers) do not divide into micro_batch_size {self.micro_batch_size}")
        if self.engine == "torch" and self.num_workers > 1:
            raise ValueError(f"engine torch runs on one worker, not on num_workers {self.num_workers}")
        kind, family = self.objective.type, self.objective.family  # type: ignore[attr-defined]
        if family is None:
            raise ValueError(f"objective {kind} does not pretrain: it is for finetune and search")
        if self.model is not None and self.model.family != family:
            raise ValueError(f"objective {kind} trains an architecture of the family {family}, and model {self.model.type} is of {self.model.family}")  # type: ignore[attr-defined]
        self.engine_config()
        return self

    @property
    def rows_per_pass(self) -> int:
        """Rows of one forward pass on one worker."""
        return self.micro_batch_size or self.global_batch_size // self.num_workers

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes of one worker for one optimizer step."""
        return self.global_batch_size // self.num_workers // self.rows_per_pass

    def total_steps(self, n_rows: int) -> int:
        """Optimizer steps of this run over a training split of `n_rows`."""
        return self.max_steps or math.ceil((self.epochs or 0) * n_rows / self.global_batch_size)

    def engine_config(self) -> dict[str, Any]:
        """The DeepSpeed config that this comes to."""
        return deepspeed_config(
            self.optim, precision=self.precision, zero=self.zero, micro_batch_size=self.rows_per_pass,
            grad_accum_steps=self.grad_accum_steps, overrides=self.deepspeed,
        )  # fmt: skip
