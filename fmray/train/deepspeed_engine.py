"""The engine on DeepSpeed: data parallelism with ZeRO stages 0 to 3 (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054)."""

import importlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from fmray.core.config import Config
from fmray.core.errors import RunError
from fmray.objectives import Batch
from fmray.train.engine import Engine, Learnt, LrAt, Precision, StepStats, checked_count, never, set_lr, to_device
from fmray.train.layout import Held, Piece, held_whole, kept_buffers
from fmray.train.optim import Optim, adamw, param_groups

if TYPE_CHECKING:
    import torch

# What fmray derives from its own config, so that an override would contradict it.
OWN_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "scheduler")


class Zero(Config):
    """What is sharded over the workers: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights.

    Offloaded, a worker's shard of the optimizer state (stages 1 to 3) or of the weights (3) lies in its host's memory.
    """

    stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @model_validator(mode="after")
    def _offload_needs_shards(self) -> Self:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3")
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"offload_parameters needs stage 3, which shards the weights, not stage {self.stage}")
        return self


def deepspeed_config(
    optim: Optim, *, precision: Precision, zero: Zero, micro_batch_size: int, grad_accum_steps: int, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The DeepSpeed config. `overrides` are merged last, key by key.

    bf16 keeps float32 masters from stage 1 on. At stage 0 DeepSpeed's own bf16 optimizer drifts from float32 by several
    times what stages 1 to 3 do, so there torch's autocast over float32 weights stands in for it.

    Raises:
        ValueError: an override of what fmray derives itself.
    """
    taken = sorted(set(overrides) & set(OWN_KEYS))
    if taken:
        raise ValueError(f"deepspeed.{taken[0]} cannot be overridden: set global_batch_size, micro_batch_size or optim instead")
    _check_overrides(overrides)
    sharding: dict[str, Any] = {"stage": zero.stage}
    if zero.offload_optimizer:
        sharding["offload_optimizer"] = {"device": "cpu"}
    if zero.offload_parameters:
        sharding["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps,
        # Stage 0 does not report the norm that it clips by, so there the engine clips by itself.
        "gradient_clipping": optim.max_grad_norm if zero.stage else 0.0,
        "zero_optimization": sharding,
        # torch's AdamW serves everywhere; DeepSpeed's own CPU Adam would be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    if precision == "bf16" and zero.stage == 0:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif precision == "fp16":
        # A scale of 0 is one that DeepSpeed moves by itself; see `fp16`.
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    elif precision == "bf16":
        config["bf16"] = {"enabled": True}
        if grad_accum_steps > 1:
            # At stage 1 this brings another optimizer of DeepSpeed's, slow to start, so only where gradients add up.
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, overrides)


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuses what would contradict fmray's config, or what its states do not hold."""
    kinds = ("fp16", "bf16", "torch_autocast")
    for name in ("zero_optimization", *kinds):
        if not isinstance(overrides.get(name, {}), Mapping):
            raise ValueError(f"deepspeed.{name}: must be a mapping")
    sharding = overrides.get("zero_optimization", {})
    if "stage" in sharding:
        raise ValueError("deepspeed.zero_optimization.stage cannot be overridden: set zero.stage instead")
    for name in kinds:
        if "enabled" in overrides.get(name, {}):
            raise ValueError(f"deepspeed.{name}.enabled cannot be overridden: set precision instead")
    if any((sharding.get(part) or {}).get("device") == "nvme" for part in ("offload_optimizer", "offload_param")):
        raise ValueError("deepspeed.zero_optimization cannot offload to nvme: fmray's checkpoints hold what is in memory")
    if sharding.get("round_robin_gradients"):
        raise ValueError("deepspeed.zero_optimization.round_robin_gradients cannot be used: DeepSpeed then tells wrongly which float32 weights are whose")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def prepare_process(*, local_world_size: int, use_gpu: bool) -> None:
    """Sets up DeepSpeed in a worker whose torch process group exists. Nothing is compiled.

    Without `deepspeed_shm_comm` DeepSpeed would build a shared-memory all-reduce that only inference uses.
    """
    os.environ["LOCAL_SIZE"] = str(local_world_size)
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", verbose=False)


def _import_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon, as any ZeRO engine does only to recognise it, without the compiler that its decorators ask for.

    That import alone would cost every worker about 3 s of processor time and 80 MB.
    """
    import torch

    compile_ = torch.compile
    torch.compile = lambda *args, **options: args[0] if args else lambda function: function  # type: ignore[assignment]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        torch.compile = compile_


class DeepSpeedEngine(Engine):
    """One of the workers of a process group. Call `prepare_process` before; `config` is what `deepspeed_config` made."""

    def __init__(
        self, model: "torch.nn.Module", optim: Optim, lr_at: LrAt, *, config: Mapping[str, Any], compile: bool = False
    ) -> None:
        import deepspeed
        import torch

        self.step = self.skipped = 0
        self._optim, self._lr_at = optim, lr_at
        self._stage, self._accumulate = config["zero_optimization"]["stage"], config["gradient_accumulation_steps"]
        model = model.to(torch.float32)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        own = {"model_parameters": param_groups(model, optim.weight_decay)} if "optimizer" in config else {"optimizer": adamw(model, optim)}
        if "optimizer" not in config:
            _import_muon_uncompiled()
        self._engine, self._optimizer, _, _ = deepspeed.initialize(model=model, config=dict(config), **own)
        self.module = self._engine.module
        self.device = torch.device(self._engine.device)
        self._keep_buffers(buffers)
        self._loss_is_finite = True
        self._norm: float | None = None
        self._gate_updates()
        self._world_size = torch.distributed.get_world_size()
        if compile:
            self._engine.compile()

    def _keep_buffers(self, buffers: "Mapping[str, torch.Tensor]") -> None:
        # DeepSpeed casts buffers along with the weights. Rotary frequencies rounded to bf16 would train another model
        # than the one that is exported: a position's angle would be off by up to 2^-9 of itself.
        for name, value in buffers.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.module.get_submodule(owner), leaf, value.to(self.device))

    def _gate_updates(self) -> None:
        """Lets the optimizer that ZeRO calls last, behind its reduction and norm, change nothing when loss or norm is no finite number.

        DeepSpeed drops an update by itself when the norm is none, in most of its optimizers and unless an override tells it not to;
        it never looks at the loss, which may be infinite above gradients that are not. What it does after the update (weights copied
        from masters, gradients cleared, steps counted) happens in any case.
        """
        inner = getattr(self._optimizer, "optimizer", self._optimizer)
        update = inner.step

        def gated(*args: Any, **options: Any) -> Any:
            norm = getattr(self._optimizer, "_global_grad_norm", self._norm)
            sound = self._loss_is_finite and (norm is None or (math.isfinite(norm) and norm >= 0))
            return update(*args, **options) if sound else None

        inner.step = gated

    def train_batch(self, micro_batches: Sequence[Batch], objective: Learnt, stop_asked: Callable[[], bool] = never) -> StepStats:
        """See `Engine`. The number of micro-batches must be the one that the engine was made for."""
        import torch

        if len(micro_batches) != self._accumulate:
            raise RunError(f"{len(micro_batches)} micro-batches were given to an engine that accumulates {self._accumulate}")
        total = torch.tensor([sum(objective.count(batch) for batch in micro_batches)], dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(total)
        count = checked_count(int(total), self.step)
        # DeepSpeed averages over workers and accumulation steps; multiplied by both, their sum remains.
        scale = self._world_size * self._accumulate / count
        lr = set_lr(self._optimizer, self._lr_at(self.step - self.skipped))
        loss_sum = torch.zeros((), device=self.device, dtype=torch.float32)
        self.module.train()
        for index, batch in enumerate(micro_batches):
            part = objective.loss(self.forward, to_device(batch, self.device)).sum
            self._engine.backward(part * scale)
            loss_sum += part.detach()
            if index + 1 == self._accumulate:
                # Before the update, which must not happen on a loss that is no number; whether to stop travels along.
                reduced = torch.stack([loss_sum, torch.tensor(float(stop_asked()), device=self.device)])
                torch.distributed.all_reduce(reduced)
                loss, askers = reduced.tolist()
                self._loss_is_finite, self._norm = math.isfinite(loss), self._clip_own()
            self._engine.step()
        norm = self._engine.get_global_grad_norm() if self._norm is None else self._norm
        stats = StepStats(loss, count, float(norm), lr, stop=askers > 0)
        self.step += 1
        self.skipped += not stats.applied
        return stats

    def forward(self, **inputs: Any) -> Any:
        """See `Engine`; pixels and the like come in the precision of the weights, which DeepSpeed casts and inputs not."""
        import torch

        dtype = next(self.module.parameters()).dtype
        cast = {name: value.to(dtype) for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.is_floating_point()}
        return self._engine(**inputs | cast)

    def _clip_own(self) -> float | None:
        """Clips the reduced gradients at stage 0 and returns their norm; above, DeepSpeed clips in its step."""
        import torch

        if self._stage:
            return None
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._optim.max_grad_norm).item()

    def _held(self) -> Held:
        import torch

        rank = torch.distributed.get_rank()
        if not self._stage:
            return held_whole(self.module, self._optimizer, rank=rank, world_size=self._world_size)
        zero, base, named = self._optimizer, self._optimizer.optimizer, dict(self.module.named_parameters())
        tensors = zero.fp32_partitioned_groups_flat if self._stage == 3 else [group["params"][0] for group in base.param_groups]
        piece_of = _piece_of_stage_3 if self._stage == 3 else _piece_of_stage_1_and_2
        pieces = [piece for name, parameter in named.items() if parameter.requires_grad and (piece := piece_of(zero, name, parameter)) is not None]
        return Held(list(tensors), [base.state[tensor] for tensor in tensors], pieces, kept_buffers(self.module), rank, self._world_size, replicated=False)

    def _loaded(self) -> None:
        """Casts the float32 weights to those that compute, as DeepSpeed does at the end of a step."""
        zero = self._optimizer
        if self._stage == 3:
            for i in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(i)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.checkpoint_event_epilogue()
        elif self._stage:
            zero.update_lp_params()

    def _whole(self, parameter: "torch.nn.Parameter") -> "torch.Tensor":
        """See `Engine`. Stage 3 shards also what is not trained."""
        import deepspeed

        if self._stage < 3:
            return parameter.detach()
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()


def _piece_of_stage_1_and_2(zero: Any, name: str, parameter: Any) -> Piece | None:
    """The stretch of a parameter that this worker steps on; None when it is others' altogether."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(name, parameter.numel(), here.start, here.numel, mapping.param_group_index, there.start)


def _piece_of_stage_3(zero: Any, name: str, parameter: Any) -> Piece | None:
    """The same at stage 3, which cuts every parameter into as many equal stretches as there are workers; the last ones may be padding."""
    tensor, at, length = zero.grad_position[zero.get_param_id(parameter)]
    start = zero._get_param_partition_rank(parameter) * length
    n = min(length, parameter.ds_numel - start)
    return Piece(name, parameter.ds_numel, start, n, tensor, at) if n > 0 else None
