"""What `fmray check` says of a pretraining before anything runs: batch, parameters, memory, the micro-batch that fits, time and price."""

import math
from collections.abc import Callable, Mapping

from fmray.core.config import Config
from fmray.model.architectures import Architecture, padded_vocab_size
from fmray.model.target_loss import fused_bytes
from fmray.train.config import PretrainConfig
from fmray.train.engine import Precision

GIB = 2**30
# Of a device's memory, what is planned with: the rest is for its own context, buffers of communication and what the allocator cannot use.
USABLE = 0.9
# How much more autocast keeps than weights in bf16 do, for it holds what runs between matrices in float32: measured 1.1 to 1.2 times.
AUTOCAST = 1.2
# DeepSpeed's default of zero_optimization.reduce_bucket_size.
BUCKET_ELEMENTS = 500_000_000


def state_bytes_per_param(stage: int, num_workers: int, precision: Precision, *, accumulates: bool = False) -> float:
    """Bytes a parameter takes on one worker in weights, gradients and AdamW's state, behind the last backward pass; activations come on top.

    In mixed precision a weight and a gradient take 2 bytes, float32 master and moments 12, of which ZeRO shards masters and moments
    (stage 1), gradients (2) and weights (3): 16, 4 + 12/N, 2 + 14/N, 16/N (Rajbhandari et al. 2020, section 3). DeepSpeed 0.19 differs, as
    counted by benchmarks/zero_memory.py: at stage 1 a gradient goes to its owner as soon as it is reduced, as at stage 2. Over several
    micro-batches (`accumulates`) gradients add up in float32: their shards at stages 2 and 3, and at stage 1 all of them, beside those in bf16
    (in float32 as they are, until the last micro-batch).
    In float32 a weight and a gradient take 4 bytes, and from stage 1 on there is a master copy of the shard as well.
    """
    if stage == 0:
        return 16.0
    if stage == 1 and accumulates:
        return 8 + 12 / num_workers
    weight = 4.0 if precision == "fp32" else 2.0
    gradient = 4.0 if accumulates else weight
    return (weight + gradient + 12) / num_workers if stage == 3 else weight + (gradient + 12) / num_workers


def _share(config: PretrainConfig) -> str:
    return f"{config.num_workers} workers x {config.grad_accum_steps} micro-batches x {config.rows_per_pass} rows"


def plan(config: PretrainConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """Parameters, tokens, FLOPs, memory, the largest micro-batch, time and price, as far as they are known now."""
    dataset = upstream.get("dataset")
    vocab_size, seq_len = getattr(dataset, "vocab_size", None), getattr(dataset, "seq_len", None)
    model, image = config.model, getattr(dataset, "image", None)
    steps = f"{config.max_steps:,} steps" if config.max_steps else f"{config.epochs:g} epochs"
    lines = {
        "batch": f"{config.global_batch_size} rows = " + " or ".join(_share(config.with_workers(n)) for n in sorted({config.num_workers.min, config.num_workers.max})),
        "engine": f"{config.engine}, ZeRO stage {config.zero.stage}, {config.precision}" if config.engine == "deepspeed" else f"torch, {config.precision}",
    }
    if model is None:
        return lines | {"parameters": "those of the checkpoint that it starts from", "length": steps}
    if image is not None:
        model = model.fit((image.height, image.width, image.channels))
        vocab_size, seq_len = 0, model.positions(0)
    if not isinstance(vocab_size, int) or not isinstance(seq_len, int):
        return lines | {"parameters": "known once the dataset is: it is no step of this file", "length": steps}
    vocab_size = padded_vocab_size(vocab_size)
    n_params = model.count_params(vocab_size, seq_len)
    flops_per_token = model.flops_per_token(vocab_size, seq_len, config.objective.reads) * config.objective.passes
    lines["parameters"] = f"{n_params:,}" + (f" (vocabulary padded to {vocab_size:,})" if vocab_size else "")
    lines |= memory_lines(config, model, n_params, vocab_size, seq_len)
    if config.max_steps is None:
        return lines | {"tokens": f"{steps} of a dataset whose rows are not yet counted", "FLOPs": f"{flops_per_token:.3g} a token"}
    tokens = config.max_steps * config.global_batch_size * seq_len
    lines["tokens"] = f"{tokens:,} ({steps} x {config.global_batch_size} rows x {seq_len})"
    lines["FLOPs"] = f"{flops_per_token * tokens:.3g} (forward and backward)"
    return lines | cost_lines(config, flops_per_token * tokens)


def memory_lines(config: PretrainConfig, model: Architecture, n_params: int, vocab_size: int, seq_len: int) -> dict[str, str]:
    """Memory of a worker (when the fewest are there) by ZeRO stage, of a micro-batch's activations, and where the device's is declared the largest micro-batch."""
    workers, accumulates = config.num_workers.min, _accumulates(config)
    sizes = [n_params * state_bytes_per_param(stage, workers, config.precision, accumulates=accumulates) / GIB for stage in range(4)]
    lines = {"memory a worker": ", ".join(f"stage {stage}: {size:.3g} GiB" for stage, size in enumerate(sizes)) + " (weights, gradients, optimizer; activations on top)"}
    if bucket := bucket_bytes(config):
        lines["memory a worker"] += f"; DeepSpeed sets {size(bucket)} aside for reducing gradients"
    held = held_by(config, model, vocab_size, seq_len)
    if held is None:
        return lines | {"activations": f"not known: {model.type} does not count them"}  # type: ignore[attr-defined]
    passed = config.rows_per_pass
    lines["activations"] = f"{size(held(passed))} a micro-batch of {passed} rows ({size(held(1))} a row alone)"
    if config.device.memory_gb is None:
        return lines
    room = USABLE * config.device.memory_gb * GIB - n_params * worker_bytes_per_param(config) - bucket
    # Whatever number of workers there is, the micro-batch must divide its rows.
    rows = math.gcd(*(config.global_batch_size // n for n in config.num_workers.counts))
    # Activations are gone when the optimizer steps, which must fit as well.
    largest = largest_micro_batch(rows, held, room) if n_params * update_bytes_per_param(config) <= room + bucket else 0
    declared = f"{USABLE:.0%} of the declared {config.device.memory_gb:g} GiB"
    if largest:
        lines["largest micro-batch"] = f"{largest} of the {rows} rows of a worker, in {declared}"
    else:
        update = size(n_params * update_bytes_per_param(config))
        lines["largest micro-batch"] = f"none: a row takes {size(held(1))}, the optimizer's step {update}, and weights, gradients and optimizer leave {size(max(0.0, room))} of {declared}"
    return lines


def held_by(config: PretrainConfig, model: Architecture, vocab_size: int, seq_len: int) -> Callable[[int], float] | None:
    """Bytes that forward and backward of so many rows hold at once besides weights and gradients; None where the architecture does not count them.

    A fused loss holds the logits of some positions at a time, and gradients of the head's weight besides, however few the rows are. An
    objective that trains no head has no logits.
    """
    has_head = config.objective.head != "encoder"
    width = model.fused_width if config.fused_loss and has_head else 0
    row = model.activation_bytes(
        vocab_size if has_head and not width else 0, seq_len, precision=config.precision, attention=config.attention_for(model.type), reads=config.objective.reads  # type: ignore[attr-defined]
    )  # fmt: skip
    if row is None:
        return None
    each, device = row * (AUTOCAST if config.is_autocast else 1), "cuda" if config.use_gpu else "cpu"
    if not width:
        return lambda rows: rows * each
    return lambda rows: rows * each + fused_bytes(rows * seq_len, vocab_size, width, precision=config.precision, device=device)


def size(n_bytes: float) -> str:
    """Bytes as people read them: MiB below one GiB, of three digits or as many as it takes."""
    value, unit = (n_bytes / GIB, "GiB") if n_bytes >= GIB else (n_bytes / 2**20, "MiB")
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def worker_bytes_per_param(config: PretrainConfig) -> float:
    """Bytes a parameter takes on a worker's device with this engine, stage and offload; autocast keeps a copy in bf16 besides."""
    if config.engine == "torch" or config.zero.stage == 0:
        return state_bytes_per_param(0, 1, config.precision) + (2 if config.is_autocast else 0)
    workers = config.num_workers.min
    found = state_bytes_per_param(config.zero.stage, workers, config.precision, accumulates=_accumulates(config))
    # Masters and moments, 12 bytes shared among the workers, lie on the host.
    return found - 12 / workers if config.zero.offload_optimizer else found


def update_bytes_per_param(config: PretrainConfig) -> float:
    """Bytes a parameter that the optimizer's step holds on top: the shard's gradients in one piece, and of bf16 ones a copy in float32.

    AdamW over all tensors at once (`foreach`) holds the roots of their second moments besides.
    """
    stage, workers = config.zero.stage, config.num_workers.min
    if config.zero.offload_optimizer:
        return 0.0
    sharded = config.engine == "deepspeed" and stage > 0
    roots = 4 / (workers if sharded else 1) if config.optim.implementation == "foreach" else 0.0
    if not sharded:
        return roots
    if config.precision == "fp32" or _accumulates(config):
        return roots + (0.0 if stage == 1 and config.precision == "bf16" else 4 / workers)
    return roots + 6 / workers


def bucket_bytes(config: PretrainConfig) -> float:
    """What DeepSpeed sets aside on a GPU to reduce gradients in, however small the model is. On a CPU only what is written to is taken."""
    stage = config.zero.stage
    if config.engine == "torch" or stage == 0 or not config.use_gpu or (stage == 1 and config.precision == "bf16" and _accumulates(config)):
        return 0.0
    told = config.deepspeed.get("zero_optimization", {})
    # Where sending overlaps with the backward pass, stages 1 and 2 keep two.
    buckets = 2 if stage < 3 and told.get("overlap_comm") else 1
    return float(buckets * told.get("reduce_bucket_size", BUCKET_ELEMENTS) * (2 if config.precision == "bf16" else 4))


def _accumulates(config: PretrainConfig) -> bool:
    return config.with_workers(config.num_workers.min).grad_accum_steps > 1


def largest_micro_batch(rows: int, held: Callable[[int], float], room_bytes: float) -> int:
    """The most rows of a forward pass that fit and divide a worker's `rows`, by what so many hold; 0 when not even one does."""
    return max((n for n in range(1, rows + 1) if rows % n == 0 and held(n) <= room_bytes), default=0)


def cost_lines(config: PretrainConfig, flops: float) -> dict[str, str]:
    """Time and price by what is declared of the device; nothing where nothing is."""
    hours, usd, device = config.device.hours(flops), config.device.usd(flops), config.device
    if hours is None:
        return {}
    workers = config.num_workers.max
    lines = {"time": f"{hours / workers:.3g} h on {workers} devices at {device.mfu:.0%} of {device.peak_tflops:g} TFLOP/s, start-up and checkpoints apart"}
    return lines if usd is None else lines | {"price": f"${usd:,.2f} at ${device.usd_per_hour:,.2f} a device hour"}
