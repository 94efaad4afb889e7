"""What a worker sends in a step: counted from torch's collectives, and as a model by ZeRO stage that says where many GPUs would stand.

A ring of N workers sends, each, (N - 1)/N of the bytes for a reduce-scatter or an all-gather, and twice that for an all-reduce, which is
the two behind each other (Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002). Which collectives a stage needs is
said by Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054, section 7); what DeepSpeed does under fmray's config is counted.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fmray.model.architectures.decoder import Decoder
from fmray.train.plan import state_bytes_per_param

# Of the operator's arguments, the one whose bytes stand for the whole: what is gathered to, what is scattered from.
WHOLE = {"allreduce_": 0, "allreduce_coalesced_": 0, "broadcast_": 0, "reduce_": 0, "_allgather_base_": 0, "allgather_": 0, "allgather_into_tensor_coalesced_": 0, "_reduce_scatter_base_": 1, "reduce_scatter_": 1, "reduce_scatter_tensor_coalesced_": 1}
# Bytes that a worker sends over the whole bytes, times (N - 1)/N.
TIMES = {"allreduce": 2.0, "allgather": 1.0, "reduce_scatter": 1.0, "broadcast": 1.0, "reduce": 1.0}
# A stage's collectives in bf16, as bytes a parameter of what is reduced or gathered. At stage 0 fmray trains float32 weights under
# autocast. At stages 1 and 2 DeepSpeed averages gradients with an all-reduce of each bucket where a reduce-scatter would do.
STAGES: dict[int, tuple[tuple[str, float], ...]] = {
    0: (("allreduce", 4.0),),
    1: (("allreduce", 2.0), ("allgather", 2.0)),
    2: (("allreduce", 2.0), ("allgather", 2.0)),
    3: (("allgather", 2.0), ("allgather", 2.0), ("reduce_scatter", 2.0)),
}
MODELS = ("125m", "1b", "7b")
VOCAB, SEQ_LEN, TOKENS = 32_768, 2048, 16_384
# One H100 SXM: the maker's bf16 peak without sparsity, and the share of it that is the goal on one GPU.
PEAK_FLOPS, MFU = 989e12, 0.5
# Bytes/s that a ring gets through a worker. Within a machine of eight: NVLink 4, 450 GB/s a direction. Between machines a ring is as fast
# as what leaves a machine: eight network cards of 400 Gbit/s, or a single one of 100 Gbit/s.
WITHIN = 450e9
BETWEEN = {"8 x 400 Gbit/s a machine": 400e9, "100 Gbit/s a machine": 12.5e9}
MACHINE = 8


class Collectives(TorchDispatchMode):
    """Counts the collectives called inside, by (name, type, bytes of the whole)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str, int]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if function.namespace == "c10d" and (name := function._schema.name.split("::")[1]) in WHOLE:
            whole = [leaf for leaf in tree_leaves(args[WHOLE[name]]) if hasattr(leaf, "nbytes")]
            short = next(kind for kind in sorted(TIMES, key=len, reverse=True) if kind in name)
            self.found[short, str(whole[0].dtype).removeprefix("torch."), sum(tensor.nbytes for tensor in whole)] += 1
        return function(*args, **(kwargs or {}))


def ring_bytes(name: str, whole: float, world_size: int) -> float:
    """What each of a ring's workers sends for a collective over so many bytes."""
    return TIMES[name] * whole * (world_size - 1) / world_size


def sent_per_param(stage: int, world_size: int) -> float:
    """Bytes that a worker sends in a step, for a parameter."""
    return sum(ring_bytes(name, whole, world_size) for name, whole in STAGES[stage])


def table() -> list[str]:
    """Where 8, 64 and 512 GPUs would stand, in Markdown."""
    lines = [
        f"{TOKENS:,} tokens a GPU and step, rows of {SEQ_LEN:,}, vocabulary {VOCAB:,}; {PEAK_FLOPS / 1e12:,.0f} TFLOP/s, of which {MFU:.0%} are reached alone.", "",
        "| model | GPUs | stage | state a GPU, GiB | sent a GPU and step, GB | computing, ms | " + " | ".join(f"sending, ms; efficiency: {link}" for link in BETWEEN) + " |",
        "|---|--:|--:|--:|--:|--:|" + "--:|" * len(BETWEEN),
    ]  # fmt: skip
    for size in MODELS:
        model = Decoder(size=size)  # type: ignore[arg-type]
        n_params, step_s = model.count_params(VOCAB), TOKENS * model.flops_per_token(VOCAB, SEQ_LEN) / (PEAK_FLOPS * MFU)
        for gpus in (8, 64, 512):
            # Stage 2 sends what stage 1 does.
            for stage in (0, 1, 3):
                sent = n_params * sent_per_param(stage, gpus)
                links = {link: WITHIN if gpus <= MACHINE else rate for link, rate in BETWEEN.items()}
                cells = " | ".join(f"{1000 * sent / rate:,.1f}; {efficiency(step_s, sent / rate)}" for rate in links.values())
                state = n_params * state_bytes_per_param(stage, gpus, "bf16") / 2**30
                lines.append(f"| {size} ({n_params / 1e9:.2f} B) | {gpus} | {stage} | {state:.1f} | {sent / 1e9:.2f} | {1000 * step_s:,.0f} | {cells} |")
    return lines


def efficiency(computing_s: float, sending_s: float) -> str:
    """The share of a GPU's time that computes: when sending hides behind nothing, and when it hides behind all the computing."""
    return f"{computing_s / (computing_s + sending_s):.0%} to {computing_s / max(computing_s, sending_s):.0%}"
