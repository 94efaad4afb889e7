"""Every objective on every architecture trains with its weights sharded (ZeRO stage 3) as with whole ones: none has to be refused there."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fmray.train.deepspeed_engine import DeepSpeedEngine, Zero, deepspeed_config, prepare_process
from fmray.train.optim import Optim
from tests.objectives.cases import CASES

ROWS, STEPS = 8, 4
OPTIM = Optim(lr=1e-3)


def _process(rank: int, world_size: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    prepare_process(local_world_size=world_size, use_gpu=False)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for number, case in enumerate(CASES):
        # Names alone are not unique.
        name = f"{number}: {case.name}"
        found[name] = {}
        for stage in (0, 3):
            model = case.model()
            setting = case.setting(model)
            config = deepspeed_config(OPTIM, precision="fp32", zero=Zero(stage=stage), micro_batch_size=ROWS // world_size, grad_accum_steps=1, overrides={})
            engine = DeepSpeedEngine(model, OPTIM, lambda step: OPTIM.lr, config=config)
            told = []
            for step in range(STEPS):
                rows = {name: values[rank::world_size] for name, values in case.rows(ROWS, seed=step).items()}
                torch.manual_seed(step)
                stats = engine.train_batch([case.objective.collate(rows, setting)], case.objective)
                told.append((stats.loss, stats.grad_norm))
            found[name][str(stage)] = told
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights_give_the_losses_of_whole_ones(tmp_path):
    mp.spawn(_process, (2, str(tmp_path)), nprocs=2)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(CASES)
    for name, curves in found.items():
        assert len({loss for loss, _ in curves["0"]}) == STEPS, name
        for (loss, norm), (sharded_loss, sharded_norm) in zip(curves["0"], curves["3"], strict=True):
            assert sharded_loss == pytest.approx(loss, abs=1e-3), name
            assert sharded_norm == pytest.approx(norm, rel=1e-2), name
