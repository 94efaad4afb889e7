"""What `fmray check` says of a pretraining before anything runs."""

from collections.abc import Mapping

from fmray.core.config import Config
from fmray.model.architectures import padded_vocab_size
from fmray.train.config import PretrainConfig
from fmray.train.engine import Precision

GIB = 2**30


def state_bytes_per_param(stage: int, num_workers: int, precision: Precision) -> float:
    """Bytes a parameter takes on one worker in weights, gradients and AdamW's state; activations come on top.

    Mixed precision holds 2 bytes of weight, 2 of gradient and 12 of float32 master and moments, of which ZeRO shards the masters and
    moments (stage 1), the gradients (2) and the weights (3): 16, 4 + 12/N, 2 + 14/N, 16/N (Rajbhandari et al. 2020, section 3).
    In float32 a weight and a gradient take 4 bytes each and the moments 8; from stage 1 on DeepSpeed keeps a master copy of the
    shard in float32 as well: 16, 8 + 12/N, 4 + 16/N, 20/N.
    """
    weights, rest = (2.0, 12.0) if precision == "bf16" else (4.0, 12.0)
    if stage == 0:
        return 16.0
    shared = {1: 2 * weights, 2: weights, 3: 0.0}[stage]
    return shared + (2 * weights - shared + rest) / num_workers


def _share(config: PretrainConfig) -> str:
    return f"{config.num_workers} workers x {config.grad_accum_steps} micro-batches x {config.rows_per_pass} rows"


def plan(config: PretrainConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """Parameters, tokens, FLOPs, memory a worker by ZeRO stage and the batch arithmetic, as far as they are known now."""
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
    flops_per_token = model.flops_per_token(vocab_size, seq_len)
    sizes = [n_params * state_bytes_per_param(stage, config.num_workers.min, config.precision) / GIB for stage in range(4)]
    lines["parameters"] = f"{n_params:,}" + (f" (vocabulary padded to {vocab_size:,})" if vocab_size else "")
    lines["memory a worker"] = ", ".join(f"stage {stage}: {size:.3g} GiB" for stage, size in enumerate(sizes)) + " (weights, gradients, optimizer; activations on top)"
    if config.max_steps is None:
        return lines | {"tokens": f"{steps} of a dataset whose rows are not yet counted", "FLOPs": f"{flops_per_token:.3g} a token"}
    tokens = config.max_steps * config.global_batch_size * seq_len
    return lines | {"tokens": f"{tokens:,} ({steps} x {config.global_batch_size} rows x {seq_len})", "FLOPs": f"{flops_per_token * tokens:.3g} (forward and backward)"}
