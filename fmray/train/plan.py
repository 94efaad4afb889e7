"""What `fmray check` says of a pretraining before anything runs: batch, parameters, memory, the micro-batch that fits, time and price."""

import math
from collections.abc import Mapping

from fmray.core.config import Config
from fmray.model.architectures import Architecture, padded_vocab_size
from fmray.train.config import PretrainConfig
from fmray.train.engine import Precision

GIB = 2**30
# Of a device's memory, what is planned with: the rest is for its own context, buffers of communication and what the allocator cannot use.
USABLE = 0.9
# How much more autocast keeps than weights in bf16 do, for it holds what runs between matrices in float32: measured 1.1 to 1.2 times.
AUTOCAST = 1.2


def state_bytes_per_param(stage: int, num_workers: int, precision: Precision) -> float:
    """Bytes a parameter takes on one worker in weights, gradients and AdamW's state; activations come on top.

    Mixed precision holds 2 bytes of weight, 2 of gradient and 12 of float32 master and moments, of which ZeRO shards the masters and
    moments (stage 1), the gradients (2) and the weights (3): 16, 4 + 12/N, 2 + 14/N, 16/N (Rajbhandari et al. 2020, section 3).
    In float32 a weight and a gradient take 4 bytes each and the moments 8; from stage 1 on DeepSpeed keeps a master copy of the
    shard in float32 as well: 16, 8 + 12/N, 4 + 16/N, 20/N.
    """
    weights, rest = (4.0 if precision == "fp32" else 2.0), 12.0
    if stage == 0:
        return 16.0
    shared = {1: 2 * weights, 2: weights, 3: 0.0}[stage]
    return shared + (2 * weights - shared + rest) / num_workers


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
    flops_per_token = model.flops_per_token(vocab_size, seq_len) * config.objective.passes
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
    workers = config.num_workers.min
    sizes = [n_params * state_bytes_per_param(stage, workers, config.precision) / GIB for stage in range(4)]
    lines = {"memory a worker": ", ".join(f"stage {stage}: {size:.3g} GiB" for stage, size in enumerate(sizes)) + " (weights, gradients, optimizer; activations on top)"}
    row = model.activation_bytes(vocab_size, seq_len, precision=config.precision, attention=config.attention)
    if row is None:
        return lines | {"activations": f"not known: {model.type} does not count them"}  # type: ignore[attr-defined]
    row *= AUTOCAST if is_autocast(config) else 1
    lines["activations"] = f"{size(config.rows_per_pass * row)} a micro-batch of {config.rows_per_pass} rows ({size(row)} a row)"
    if config.device.memory_gb is None:
        return lines
    room = USABLE * config.device.memory_gb * GIB - n_params * worker_bytes_per_param(config)
    # Whatever number of workers there is, the micro-batch must divide its rows.
    rows = math.gcd(*(config.global_batch_size // n for n in config.num_workers.counts))
    largest = largest_micro_batch(rows, row, room)
    declared = f"{USABLE:.0%} of the declared {config.device.memory_gb:g} GiB"
    if largest:
        lines["largest micro-batch"] = f"{largest} of the {rows} rows of a worker, in {declared}"
    else:
        lines["largest micro-batch"] = f"none: a row takes {size(row)}, and weights, gradients and optimizer leave {size(max(0.0, room))} of {declared}"
    return lines


def size(n_bytes: float) -> str:
    """Bytes as people read them: MiB below one GiB."""
    return f"{n_bytes / GIB:.3g} GiB" if n_bytes >= GIB else f"{n_bytes / 2**20:.3g} MiB"


def is_autocast(config: PretrainConfig) -> bool:
    """Whether float32 weights are computed with in bf16, as plain torch does and DeepSpeed at stage 0."""
    return config.precision == "bf16" and (config.engine == "torch" or config.zero.stage == 0)


def worker_bytes_per_param(config: PretrainConfig) -> float:
    """Bytes a parameter takes on a worker's device with this engine, stage and offload; autocast keeps a copy in bf16 besides."""
    if config.engine == "torch" or config.zero.stage == 0:
        return state_bytes_per_param(0, 1, config.precision) + (2 if is_autocast(config) else 0)
    workers = config.num_workers.min
    found = state_bytes_per_param(config.zero.stage, workers, config.precision)
    # Masters and moments, 12 bytes shared among the workers, lie on the host.
    return found - 12 / workers if config.zero.offload_optimizer else found


def largest_micro_batch(rows: int, row_bytes: float, room_bytes: float) -> int:
    """The most rows of a forward pass that fit and divide a worker's `rows`; 0 when not even one does."""
    return max((n for n in range(1, rows + 1) if rows % n == 0 and n * row_bytes <= room_bytes), default=0)


def cost_lines(config: PretrainConfig, flops: float) -> dict[str, str]:
    """Time and price by what is declared of the device; nothing where nothing is."""
    hours, usd, device = config.device.hours(flops), config.device.usd(flops), config.device
    if hours is None:
        return {}
    workers = config.num_workers.max
    lines = {"time": f"{hours / workers:.3g} h on {workers} devices at {device.mfu:.0%} of {device.peak_tflops:g} TFLOP/s, start-up and checkpoints apart"}
    return lines if usd is None else lines | {"price": f"${usd:,.2f} at ${device.usd_per_hour:,.2f} a device hour"}
