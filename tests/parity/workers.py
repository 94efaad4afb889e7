"""Engines in real gloo processes without Ray: several configurations run through one launch, for starting costs more than training."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from fmray.core.cursor import Cursor
from fmray.model.architectures.decoder import Decoder
from fmray.model.architectures.gpt2 import Gpt2
from fmray.objectives.causal_lm import CausalLM
from fmray.train.deepspeed_engine import DeepSpeedEngine, Zero, deepspeed_config, prepare_process
from fmray.train.engine import Engine, StepStats, TorchEngine
from fmray.train.equip import equip
from fmray.train.layout import Saved
from fmray.train.loop import Step, train
from fmray.train.optim import Optim
from tests.train.rows import VOCAB, packed_rows

SEQ_LEN, GLOBAL_BATCH, HORIZON = 32, 8, 50
SHAPE = Decoder(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128)
OPTIM = Optim(lr=3e-3, warmup_steps=5)
OBJECTIVE = CausalLM()


@dataclass(frozen=True)
class Case:
    """One training of `steps` steps, its schedule made for HORIZON. `resume_at` stops it there, saves, builds everything anew, loads and goes on.

    `load` names a folder to go on from, which is saved again at once below the launch's own folder; `save` says to leave the state at the end there.
    """

    name: str
    stage: int = 1
    precision: str = "fp32"
    micro_batch_size: int = 4
    engine: str = "deepspeed"
    steps: int = HORIZON
    resume_at: int | None = None
    load: str | None = None
    save: bool = False
    gpt2: bool = False
    dropout: float = 0.0
    offload: bool = False
    offload_parameters: bool = False
    fused: bool = True
    checkpointed: bool = False
    compile: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


def model(*, gpt2: bool = False, dropout: float = 0.0, fused: bool = True, checkpointed: bool = False) -> Any:
    """The same random model in every process, with tied embeddings; or a GPT-2, most of whose parameters are vectors that do not decay."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    shape = Gpt2(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=192, dropout=dropout) if gpt2 else SHAPE
    return equip(AutoModelForCausalLM.from_config(shape.hf_config(VOCAB, SEQ_LEN)), fused_loss=fused, activation_checkpointing=checkpointed)


def engine(case: Case, world_size: int) -> Engine:
    """A fresh engine for a case."""

    def lr_at(step: int) -> float:
        return OPTIM.lr_at(step, HORIZON)

    network = model(gpt2=case.gpt2, dropout=case.dropout, fused=case.fused, checkpointed=case.checkpointed)
    if case.engine == "torch":
        return TorchEngine(network, OPTIM, lr_at, precision=case.precision, compile=case.compile)
    config = deepspeed_config(
        OPTIM, precision=case.precision, zero=Zero(stage=case.stage, offload_optimizer=case.offload, offload_parameters=case.offload_parameters), micro_batch_size=case.micro_batch_size,
        grad_accum_steps=GLOBAL_BATCH // world_size // case.micro_batch_size, overrides=case.overrides,
    )  # fmt: skip
    return DeepSpeedEngine(network, OPTIM, lr_at, config=config, compile=case.compile)


def batches(case: Case, rank: int, world_size: int, start: int) -> Iterator[Step]:
    """This rank's part of global batches that depend on the step alone, as the reader deals them out. Rows hold different numbers of targets."""
    share, step = GLOBAL_BATCH // world_size, start
    while True:
        rows = packed_rows(GLOBAL_BATCH, SEQ_LEN, seed=step)
        mine = {k: v[rank::world_size] for k, v in rows.items()}
        size = case.micro_batch_size
        step += 1
        yield [OBJECTIVE.collate({k: v[i : i + size] for k, v in mine.items()}) for i in range(0, share, size)], Cursor(epoch=0, row=step * GLOBAL_BATCH)


def _run_case(case: Case, rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    losses: list[float] = []
    norms: list[float] = []

    def on_step(step: int, stats: StepStats, cursor: Cursor) -> None:
        losses.append(stats.loss)
        norms.append(stats.grad_norm)

    running = engine(case, world_size)
    if case.resume_at is not None:
        train(running, OBJECTIVE, batches(case, rank, world_size, 0), max_steps=case.resume_at, seed=0, on_step=on_step, rank=rank, world_size=world_size)
        saved = _save(running, folder / f"{case.name}-state", world_size)
        running = engine(case, world_size)
        running.load(saved)
        assert running.step == case.resume_at
    if case.load is not None:
        running.load(Path(case.load))
        _save(running, folder / f"{case.name}-again", world_size)
    train(running, OBJECTIVE, batches(case, rank, world_size, running.step), max_steps=case.steps, seed=0, on_step=on_step, rank=rank, world_size=world_size)
    if case.save:
        _save(running, folder / f"{case.name}-state", world_size)
    weights = exported(running, folder / f"{case.name}-last", rank, world_size)
    if rank == 0:
        torch.save(weights, folder / f"{case.name}.pt")
    return {"losses": losses, "norms": norms}


def exported(running: Engine, folder: Path, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """What a run exports, read from the state that it leaves in `folder`: the whole model on rank 0, nothing elsewhere."""
    fixed = running.fixed_state_dict()
    _save(running, folder, world_size)
    if rank:
        return {}
    with Saved(folder) as saved:
        return {entry.name: entry.read().view(entry.shape) for entry in saved.entries(running.trained_shapes())} | fixed


def _save(running: Engine, folder: Path, world_size: int) -> Path:
    folder.mkdir(exist_ok=True)
    running.save(folder)
    _barrier(world_size)
    return folder


def _barrier(world_size: int) -> None:
    if world_size > 1:
        torch.distributed.barrier()


def _process(rank: int, world_size: int, folder: str, cases: list[Case]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    prepare_process(local_world_size=world_size, use_gpu=False)
    results = {case.name: _run_case(case, rank, world_size, Path(folder)) for case in cases}
    torch.distributed.barrier()
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps({"results": results, "cases": [asdict(case) for case in cases]}))
    torch.distributed.destroy_process_group()


def run(world_size: int, folder: Path, cases: list[Case]) -> dict[str, dict[str, Any]]:
    """Runs the cases in `world_size` processes; losses and gradient norms by case, and each one's exported weights."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_process, (world_size, str(folder), cases), nprocs=world_size)
    results: dict[str, dict[str, Any]] = json.loads((folder / "results.json").read_text())["results"]
    for name, result in results.items():
        result["weights"] = torch.load(folder / f"{name}.pt", weights_only=True)
    return results
