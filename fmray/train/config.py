"""The config of the stage pretrain."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fmray.core.config import Config, runtime
from fmray.core.errors import ConfigError
from fmray.evaluate.config import named
from fmray.evaluate.lm_tasks.config import LmTask
from fmray.model.architectures import Architecture
from fmray.model.attention import Attention, Implementation, attention_fault, implementation
from fmray.objectives import Objective
from fmray.objectives.causal_lm import CausalLM
from fmray.train.deepspeed_engine import Zero, deepspeed_config
from fmray.train.device import Device
from fmray.train.engine import Precision
from fmray.train.nonfinite import Nonfinite
from fmray.train.optim import Optim
from fmray.train.profiling import Profile
from fmray.train.remote import checked_uri
from fmray.train.retention import EVAL_LOSS, Keep
from fmray.train.trackers import Tracker, check_trackers
from fmray.train.trackers.tensorboard import Tensorboard


class Workers(Config):
    """How many workers train: as many as the cluster has room for, from `min` to `max`.

    With room for fewer than `min` it waits. `resize_every_s`: how often to look for room for more; when there is, all begin again from
    the last state.
    """

    min: int = Field(ge=1)
    max: int = Field(ge=1)
    resize_every_s: float = Field(60.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _number(cls, data: Any) -> Any:
        # A bool is an int in Python, and no number of workers.
        if isinstance(data, bool) or not isinstance(data, (int, Mapping, Workers)):
            raise ValueError(f"must be a number or {{min: , max: }}, got {data!r}")
        return {"min": data, "max": data} if isinstance(data, int) else data

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    @property
    def fixed(self) -> bool:
        """Whether it is one number."""
        return self.min == self.max

    @property
    def counts(self) -> range:
        """Every number of workers that it may come to."""
        return range(self.min, self.max + 1)

    def __str__(self) -> str:
        return str(self.min) if self.fixed else f"{self.min} to {self.max}"


class PretrainConfig(Config):
    """What is trained, how, and where it runs.

    Attributes:
        model: the architecture; left out when the step has an `init` checkpoint to continue from.
        global_batch_size: rows of one optimizer step, over all workers.
        num_workers: a number, or `{min: , max: }` for as many as the cluster has room for; each of these numbers must divide the batch.
        max_steps: optimizer steps of this run; `epochs` may stand instead. A round that a gate sent back trains as many more.
        attention: transformers' attention implementation; `auto` is the fastest that is right for the masks in use (see `model.attention`).
        deepspeed: merged last into the DeepSpeed config.
        fused_loss: whether the loss is taken inside of the output head, a few positions at a time, where the model allows it.
        activation_checkpointing: whether layers keep their inputs alone and compute the rest again on the way back.
        micro_batch_size: rows of one forward pass on one worker; all of a worker's rows when left out.
        checkpoint_async: whether training goes on while a state is written; each worker then holds its part twice, once in the host's memory.
        keep_checkpoints: states to resume from that are kept while it runs; a number of last ones, or see `Keep`.
        states: a URI such as s3://bucket/prefix where they are kept too, and read from when the storage holds none; below the storage
            itself the last ones are kept then.
        max_failures: how often the workers are started again after one died.
        max_faults_per_node: after so many faults of its workers (lost, hung, a loss that is no number on them alone) a node is not used again
            in this run, as long as others have room for all workers that are to be started (of a range: that the whole cluster has room for).
        wait_s: how long to wait for the cluster to have the workers' resources.
        hang_after_s: a step that takes longer than this, and than ten median ones, is taken for a hang: stacks are kept and all starts again.
            With `compile`, leave room for a late compilation where shapes change.
        nonfinite: whether a loss that is no number stops the run, or how many such updates may be skipped.
        device: what is declared of a worker's device, for plan, MFU, energy and cost.
        ledger: whether every worker puts down which rows it read, and the record then proves that each was read once an epoch.
        eval_every_steps: how often the held-out loss is measured while it trains, and at the end; never when left out.
        eval_rows: of how many validation rows at most, evenly spread.
        eval_tasks: likelihood tasks (see the stage evaluate) that are measured whenever the held-out loss is, on at most `limit` documents each.
        trackers: where the figures are shown besides; a name stands for that tracker with its defaults.
        profile: the steps of which torch.profiler keeps a trace.
    """

    model: Architecture | None = None
    objective: Objective = CausalLM()
    optim: Optim = Optim()
    global_batch_size: int = Field(ge=1)
    max_steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Precision = "bf16"
    attention: Attention = "auto"
    compile: bool = False
    deepspeed: dict[str, Any] = {}
    engine: Literal["deepspeed", "torch"] = runtime("deepspeed")
    num_workers: Workers = runtime(Workers(min=2, max=2))
    use_gpu: bool = runtime(False)
    cpus_per_worker: int = runtime(1, ge=1)
    fused_loss: bool = runtime(True)
    activation_checkpointing: bool = runtime(False)
    zero: Zero = runtime(Zero())
    micro_batch_size: int | None = runtime(None, ge=1)
    checkpoint_every_steps: int = runtime(200, ge=1)
    checkpoint_async: bool = runtime(True)
    keep_checkpoints: Keep = runtime(Keep())
    states: str | None = runtime(None)
    max_failures: int = runtime(3, ge=0)
    max_faults_per_node: int = runtime(3, ge=1)
    wait_s: float = runtime(60.0, ge=0)
    hang_after_s: float = runtime(60.0, gt=0)
    nonfinite: Nonfinite = runtime(Nonfinite())
    device: Device = runtime(Device())
    ledger: bool = runtime(False)
    eval_every_steps: int | None = runtime(None, ge=1)
    eval_rows: int = runtime(1024, ge=1)
    eval_tasks: dict[str, LmTask] = runtime({})
    trackers: tuple[Tracker, ...] = runtime((Tensorboard(),))
    profile: Profile | None = runtime(None)

    @field_validator("trackers", mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        return tuple({"type": item} if isinstance(item, str) else item for item in data) if isinstance(data, (list, tuple)) else data

    @field_validator("eval_tasks")
    @classmethod
    def _can_be_put(cls, tasks: dict[str, LmTask]) -> dict[str, LmTask]:
        try:
            found = named(tasks)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"eval_{error.where}", todo=error.todo) from None
        for name, task in found.items():
            if task.limit is None:
                raise ValueError(f"{name} needs a limit: all of its documents would be asked about again and again")
            if task.output == "generate_until":
                raise ValueError(f"{name} has the model write, which takes too long while it trains: leave that to the stage evaluate")
        return found

    @field_validator("states")
    @classmethod
    def _states_uri(cls, uri: str | None) -> str | None:
        return None if uri is None else checked_uri(uri)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give either max_steps or epochs")
        self._check_batch()
        if self.engine == "torch" and self.num_workers.max > 1:
            raise ValueError(f"engine torch runs on one worker, not on num_workers {self.num_workers}")
        if self.precision == "fp16":
            self._check_fp16()
        kind, family = self.objective.type, self.objective.family  # type: ignore[attr-defined]
        if family is None:
            raise ValueError(f"objective {kind} does not pretrain: it is for finetune and search")
        if self.model is not None and self.model.family != family:
            raise ValueError(f"objective {kind} trains an architecture of the family {family}, and model {self.model.type} is of {self.model.family}")  # type: ignore[attr-defined]
        if why := attention_fault(self.attention, family=family, precision=self.precision, use_gpu=self.use_gpu, autocast=self.is_autocast):
            raise ValueError(why)
        if not self.objective.adds_up and (self.grad_accum_steps > 1 or self.global_batch_size < 2):
            raise ValueError(f"objective {kind} tells the rows of one batch apart: leave micro_batch_size out (gradients cannot be accumulated) and set global_batch_size to at least 2")
        if self.keep_checkpoints.metric == EVAL_LOSS and self.eval_every_steps is None:
            raise ValueError(f"keep_checkpoints.metric {EVAL_LOSS} is measured with eval_every_steps alone: set it")
        if self.eval_tasks and self.eval_every_steps is None:
            raise ValueError("eval_tasks are measured with eval_every_steps alone: set it")
        self._check_watching()
        if "optimizer" in self.deepspeed and self.optim.implementation != "auto":
            raise ValueError(f"optim.implementation {self.optim.implementation} is one of torch's AdamW, and deepspeed.optimizer takes its place: leave one of them out")
        self.engine_config()
        return self

    def _check_watching(self) -> None:
        kinds = [tracker.type for tracker in self.trackers]  # type: ignore[attr-defined]
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"trackers names {min(twice)} twice")
        check_trackers(self.trackers)
        if self.profile is None:
            return
        if absent := [rank for rank in self.profile.ranks if not 0 <= rank < self.num_workers.max]:
            raise ValueError(f"profile.ranks names rank {absent[0]}, and num_workers {self.num_workers} has ranks 0 to {self.num_workers.max - 1}")

    def _check_fp16(self) -> None:
        if not self.use_gpu:
            raise ValueError("precision fp16 needs GPUs: set use_gpu: true, or precision: bf16, which every device computes in")
        if self.engine == "torch" or self.zero.stage == 0:
            raise ValueError("precision fp16 needs engine deepspeed and zero.stage 1, 2 or 3, which keep float32 masters")

    def _check_batch(self) -> None:
        batch, passed, workers = self.global_batch_size, self.micro_batch_size, self.num_workers
        fit = [n for n in workers.counts if batch % (n * (passed or 1)) == 0]
        if len(fit) == len(workers.counts):
            return
        if not workers.fixed:
            odd = next(n for n in workers.counts if n not in fit)
            into = f"into micro_batch_size {passed} " if passed else ""
            which = f"of these {', '.join(map(str, fit))} would" if fit else "none of these would"
            raise ValueError(f"num_workers {workers} may come to {odd} workers, among which global_batch_size {batch} does not divide {into}({which})")
        rows, left = divmod(batch, workers.min)
        if left:
            raise ValueError(f"global_batch_size {batch} does not divide among num_workers {workers}")
        raise ValueError(f"the {rows} rows of each worker (global_batch_size / num_workers) do not divide into micro_batch_size {passed}")

    def with_workers(self, count: int) -> Self:
        """The same on `count` workers, one of the numbers that `num_workers` may come to."""
        return self.model_copy(update={"num_workers": Workers(min=count, max=count)})

    def attention_for(self, model_type: str) -> Implementation:
        """The attention that `auto` comes to for models of this type here, or what is asked for."""
        assert self.objective.family is not None
        return implementation(self.attention, family=self.objective.family, model_type=model_type, precision=self.precision, use_gpu=self.use_gpu)

    @property
    def is_autocast(self) -> bool:
        """Whether float32 weights are computed with in bf16, as plain torch does and DeepSpeed at stage 0."""
        return self.precision == "bf16" and (self.engine == "torch" or self.zero.stage == 0)

    @property
    def rows_per_pass(self) -> int:
        """Rows of one forward pass on one worker, when all workers are there."""
        return self.micro_batch_size or self.global_batch_size // self.num_workers.max

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes of one worker for one optimizer step, when all workers are there."""
        return self.global_batch_size // self.num_workers.max // self.rows_per_pass

    def total_steps(self, n_rows: int) -> int:
        """Optimizer steps of this run over a training split of `n_rows`."""
        return self.max_steps or math.ceil((self.epochs or 0) * n_rows / self.global_batch_size)

    def engine_config(self) -> dict[str, Any]:
        """The DeepSpeed config that this comes to."""
        return deepspeed_config(
            self.optim, precision=self.precision, zero=self.zero, micro_batch_size=self.rows_per_pass,
            grad_accum_steps=self.grad_accum_steps, overrides=self.deepspeed,
        )  # fmt: skip
