"""Negatives from all workers, with their gradients: two workers compute what one does."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from fmray.model.architectures.encoder import Encoder
from fmray.objectives import Batch, Setting
from fmray.objectives.contrastive import Contrastive
from fmray.train.deepspeed_engine import DeepSpeedEngine, Zero, deepspeed_config, prepare_process
from fmray.train.engine import TorchEngine
from fmray.train.optim import Optim
from tests.objectives.cases import SEQ_LEN, SIZE, SMALL, lone_rows

OBJECTIVE, OPTIM, STEPS, ROWS = Contrastive(), Optim(lr=3e-3), 6, 8


class TwoSided(torch.nn.Module):
    """An encoder whose second reading of every row lacks a third of the units: a dropout that any number of workers draws alike."""

    def __init__(self) -> None:
        from transformers import AutoModel

        super().__init__()
        torch.manual_seed(0)
        self.inner = AutoModel.from_config(Encoder(**SMALL).hf_config(SIZE, SEQ_LEN))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        first, second = self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.chunk(2)
        kept_D = (torch.arange(first.shape[-1]) % 3 != 0).to(first.dtype)
        return SimpleNamespace(last_hidden_state=torch.cat([first, second * kept_D]))


def batch(step: int, rank: int, world_size: int) -> Batch:
    """This rank's rows of a global batch, as the reader deals them out."""
    rows = {name: values[rank::world_size] for name, values in lone_rows(ROWS, seed=step).items()}
    return OBJECTIVE.collate(rows, Setting(one_a_row=True))


def _process(rank: int, world_size: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    prepare_process(local_world_size=world_size, use_gpu=False)
    curves: dict[str, list[tuple[float, float, int]]] = {}
    for stage in (0, 1, 2):
        config = deepspeed_config(OPTIM, precision="fp32", zero=Zero(stage=stage), micro_batch_size=ROWS // world_size, grad_accum_steps=1, overrides={})
        engine = DeepSpeedEngine(TwoSided(), OPTIM, lambda step: OPTIM.lr, config=config)
        told = [engine.train_batch([batch(step, rank, world_size)], OBJECTIVE) for step in range(STEPS)]
        curves[str(stage)] = [(stats.loss, stats.grad_norm, stats.count) for stats in told]
    if rank == 0:
        (Path(folder) / "curves.json").write_text(json.dumps(curves))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_workers_compute_what_one_does(tmp_path: Path) -> None:
    engine = TorchEngine(TwoSided(), OPTIM, lambda step: OPTIM.lr, precision="fp32")
    alone = [engine.train_batch([batch(step, 0, 1)], OBJECTIVE) for step in range(STEPS)]
    assert alone[-1].loss < 0.9 * alone[0].loss
    mp.spawn(_process, (2, str(tmp_path)), nprocs=2)
    for stage, curve in json.loads((tmp_path / "curves.json").read_text()).items():
        for step, ((loss, norm, count), one) in enumerate(zip(curve, alone, strict=True)):
            assert count == one.count == ROWS
            assert loss == pytest.approx(one.loss, abs=1e-4), (stage, step)
            assert norm == pytest.approx(one.grad_norm, abs=1e-3), (stage, step)
