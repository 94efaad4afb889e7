"""Memory of a worker by ZeRO stage, counted against theory and `fmray check`: `python -m benchmarks.zero_memory [--json FILE]` from the repository.

Every case is a process group of its own (gloo, without Ray) around fmray's DeepSpeed engine. Two steps are trained; in the second
every tensor that is alive is counted by its storage: before the optimizer's step, at the worst moment of that step, and after it.
Resident memory is what the kernel says of the process (anonymous pages), less what it said before the model was built.
"""

import argparse
import gc
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import alone
from fmray.core.config import load_config
from fmray.train.config import PretrainConfig
from fmray.train.plan import state_bytes_per_param, update_bytes_per_param

SEQ_LEN, ROWS, VOCAB = 32, 8, 8192
SHAPE = {"num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1408}
# DeepSpeed sets this many elements aside for reduction in any case; its default of 5e8 would hide a model as small as this one.
BUCKET = 1_000_000
# Where DeepSpeed's optimizers keep gradients besides those of the parameters themselves.
GRADIENTS = ("averaged_gradients", "grads_in_partition", "grad_partitions_flat_buffer", "fp32_groups_gradients_flat", "fp32_groups_gradients")
PARTS = ("weights", "gradients", "masters", "moments")


@dataclass(frozen=True)
class Case:
    """One configuration; `accumulate` micro-batches make a step."""

    stage: int
    workers: int
    precision: str = "bf16"
    accumulate: int = 1

    def config(self) -> PretrainConfig:
        """fmray's config of it."""
        sharding = {"reduce_bucket_size": BUCKET, "stage3_prefetch_bucket_size": BUCKET}
        return load_config(
            PretrainConfig,
            {
                "model": {"type": "decoder", **SHAPE}, "global_batch_size": ROWS, "max_steps": 2, "num_workers": self.workers, "precision": self.precision,
                "zero": {"stage": self.stage}, "micro_batch_size": ROWS // self.workers // self.accumulate, "deepspeed": {"zero_optimization": sharding},
            },
            "case",
        )  # fmt: skip


CASES = (
    *(Case(stage, workers) for workers in (1, 2, 4) for stage in range(4)),
    *(Case(stage, 2, accumulate=2) for stage in range(4)),
    *(Case(stage, 2, precision="fp32") for stage in range(4)),
)


def main() -> None:
    """Counts every case and prints the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--cases", type=int, nargs="*", help="numbers of the cases, from 0; all if left out")
    arguments.add_argument("--again", type=Path, help="print the table of a result file and measure nothing")
    known = arguments.parse_args()
    if known.again:
        print("\n".join(report(json.loads(known.again.read_text()))))
        return
    rows = []
    for number, case in enumerate(CASES):
        if known.cases is None or number in known.cases:
            # The worker that holds most: shards are padded, and what small weights stay whole differs by nothing.
            ranks = alone.run(measure, case.workers, case)
            rows.append(asdict(case) | max(ranks, key=lambda found: found["held"]))
            print(rows[-1], flush=True)
    print("\n".join(report(rows)))
    if known.json:
        known.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(rank: int, world_size: int, case: Case) -> dict[str, float]:
    """Bytes a parameter on this worker; resident memory in the same unit."""
    import torch
    from transformers import AutoModelForCausalLM

    from fmray.objectives.causal_lm import CausalLM
    from fmray.train.deepspeed_engine import DeepSpeedEngine
    from tests.model.peak import PeakMemory
    from tests.train.rows import packed_rows

    config = case.config()
    rows = packed_rows(ROWS // world_size // case.accumulate, SEQ_LEN)
    batches, found = [CausalLM().collate(rows)] * case.accumulate, {}
    gc.collect()
    before = anonymous_bytes()
    with PeakMemory(tensor for batch in batches for tensor in batch.values()) as watched:
        assert config.model is not None
        model = AutoModelForCausalLM.from_config(config.model.hf_config(VOCAB, SEQ_LEN))
        n_params = model.num_parameters()
        engine = DeepSpeedEngine(model, config.optim, lambda step: 1e-4, config=config.engine_config())
        del model
        update, calls = engine._engine.step, iter(range(1, 1 + 2 * case.accumulate))

        def watched_update() -> None:
            if next(calls) < 2 * case.accumulate:
                return update()
            # Where the last backward pass of the second step ends.
            found.update(census(engine), held=watched.now, resident=anonymous_bytes() - before)
            watched.peak = watched.now
            update()
            found["in_step"] = watched.peak

        engine._engine.step = watched_update
        for _ in range(2):
            engine.train_batch(batches, CausalLM())
        gc.collect()
        found |= {"between": watched.now, "resident_between": anonymous_bytes() - before}
    torch.distributed.barrier()
    return {name: value / n_params for name, value in found.items()}


def census(engine: Any) -> dict[str, int]:
    """Bytes of weights, gradients, float32 masters and moments, each storage counted once; `buffers` is whatever else is alive."""
    import torch

    zero, parameters = engine._optimizer, list(engine.module.parameters())
    held = engine._held()
    # At stage 0 the weights that compute are the float32 ones.
    kinds: dict[str, Iterable[Any]] = {
        "weights": [*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)],
        "masters": held.tensors,
        "moments": [value for state in held.states for value in state.values()],
        "gradients": [*(p.grad for p in parameters), *(p.grad for p in held.tensors), *(getattr(zero, name, None) for name in GRADIENTS)],
        "buffers": [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)],
    }
    seen: set[int] = set()
    found = dict.fromkeys(kinds, 0)
    for kind, things in kinds.items():
        for tensor in tensors(things):
            storage = tensor.untyped_storage()
            if not tensor.is_meta and storage._cdata not in seen:
                seen.add(storage._cdata)
                found[kind] += storage.nbytes()
    return found


def tensors(thing: Any) -> Iterator[Any]:
    """The tensors in lists and dicts of lists."""
    import torch

    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, (list, tuple, dict)):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors(part)


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def theory(case: dict[str, Any]) -> float:
    """Rajbhandari et al. 2020, section 3, in mixed precision; in float32 there, weights, gradients and moments are 16 bytes, sharded likewise."""
    n, whole = case["workers"], 2.0 if case["precision"] == "bf16" else 4.0
    shared = (2 * whole, 2 * whole, whole, 0.0)[case["stage"]]
    return 16.0 if case["stage"] == 0 else shared + (16 - shared) / n


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The table in Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    lines = [
        f"Python {platform.python_version()}, {versions}. Bytes a parameter.", "",
        "| precision, micro-batches | workers | stage | theory | `fmray check` | counted: weights + gradients + masters + moments | buffers | resident | worst of the step, counted (`fmray check`) | between steps, counted | resident |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in rows:
        config = Case(row["stage"], row["workers"], row["precision"], row["accumulate"]).config()
        parts = [row[part] for part in PARTS]
        held = state_bytes_per_param(row["stage"], row["workers"], row["precision"], accumulates=row["accumulate"] > 1)
        lines.append(
            f"| {row['precision']}, {row['accumulate']} | {row['workers']} | {row['stage']} | {theory(row):.2f} | {held:.2f} "
            f"| {' + '.join(f'{part:.2f}' for part in parts)} = **{sum(parts):.2f}** | {row['held'] - sum(parts):.2f} | {row['resident']:.2f} "
            f"| {row['in_step']:.2f} ({held + update_bytes_per_param(config):.2f}) | {row['between']:.2f} | {row['resident_between']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
