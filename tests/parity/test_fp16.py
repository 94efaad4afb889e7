"""float16 with a loss scale that DeepSpeed moves: it learns as float32 does, resumes to the bit, and only real faults stop it.

A processor computes in float16 too, slowly; DeepSpeed refuses to there, and that refusal alone is lifted here.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fmray.core.cursor import Cursor
from fmray.core.errors import RunError
from fmray.train.deepspeed_engine import Zero, deepspeed_config, prepare_process
from fmray.train.fp16 import Fp16Engine
from fmray.train.layout import Saved
from fmray.train.loop import train
from fmray.train.nonfinite import Nonfinite, NonfiniteGuard
from tests.parity.test_nonfinite import Poisoned
from tests.parity.workers import GLOBAL_BATCH, HORIZON, OPTIM, Case, batches, engine, model

pytestmark = pytest.mark.slow

STEPS, RESUME_AT = 24, 14
# So far up that the first updates overflow.
SCALE_POWER = 24


def fp16(stage):
    overrides = {"fp16": {"initial_scale_power": SCALE_POWER, "hysteresis": 1}}
    config = deepspeed_config(OPTIM, precision="fp16", zero=Zero(stage=stage), micro_batch_size=4, grad_accum_steps=GLOBAL_BATCH // 4, overrides=overrides)
    return Fp16Engine(model(), OPTIM, lambda step: OPTIM.lr_at(step, HORIZON), config=config)


def curve(running, folder, *, to=STEPS, source=None):
    """Losses of the steps that were applied."""
    told = []
    guard = NonfiniteGuard(Nonfinite(), running, folder / "nonfinite", 0)
    on_step = lambda step, stats, cursor: told.append((step, stats.loss, stats.grad_norm, stats.lr)) if stats.applied else None  # noqa: E731
    train(running, Poisoned(), source or batches(Case("fp16"), 0, 1, running.step), max_steps=to, seed=0, on_step=on_step, on_nonfinite=guard)
    return told


def poisoned():
    parts, _ = next(batches(Case("fp16"), 0, 1, 0))
    parts[0]["poison"] = torch.tensor(0)
    yield parts, Cursor()


def _process(_: int, where: str) -> None:
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    folder = Path(where)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    CPU_Accelerator.is_fp16_supported = lambda self: True
    prepare_process(local_world_size=1, use_gpu=False)
    found = {"fp32": curve(engine(Case("fp32"), 1), folder)}
    for stage in (1, 3):
        whole = fp16(stage)
        dtype = str(next(whole.module.parameters()).dtype)
        first, state = fp16(stage), folder / f"state-{stage}"
        before = curve(first, folder, to=RESUME_AT)
        state.mkdir()
        first.save(state)
        with Saved(state) as saved:
            counts = saved.counts
        second = fp16(stage)
        second.load(state)
        after = curve(second, folder)
        found[str(stage)] = {
            "dtype": dtype, "whole": curve(whole, folder), "resumed": before + after, "rescales": whole.rescales, "skipped": whole.skipped,
            "second": second.rescales, "state": counts,
        }  # fmt: skip
        try:
            curve(second, folder, to=STEPS + 1, source=poisoned())
        except RunError as error:
            found[str(stage)]["stopped"] = str(error)
    (folder / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16")
    mp.spawn(_process, (str(folder),), nprocs=1)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("stage", ["1", "3"])
def test_it_learns_as_float32_does_once_the_scale_fits(found, stage):
    told = found[stage]
    assert told["dtype"] == "torch.float16"
    assert 0 < told["state"]["rescales"] <= told["rescales"] == told["skipped"] < STEPS / 2
    assert told["state"]["cur_scale"] == 2.0 ** (SCALE_POWER - told["state"]["rescales"])
    # The first updates are dropped, and the schedule waits for the others.
    assert told["whole"][0][0] > 1
    assert len(told["whole"]) == STEPS - told["rescales"]
    assert [lr for *_, lr in told["whole"]] == [lr for *_, lr in found["fp32"]][: len(told["whole"])]
    assert told["whole"][-1][1] < told["whole"][0][1] - 0.2
    assert abs(told["whole"][0][1] - found["fp32"][0][1]) < 0.3


@pytest.mark.parametrize("stage", ["1", "3"])
def test_a_resumed_run_has_the_scale_of_the_uninterrupted_one(found, stage):
    assert found[stage]["resumed"] == found[stage]["whole"]
    assert found[stage]["second"] == found[stage]["rescales"]


@pytest.mark.parametrize("stage", ["1", "3"])
def test_a_loss_that_is_no_number_is_no_matter_of_scale(found, stage):
    assert found[stage]["stopped"].startswith(f"the loss is nan at step {STEPS + 1}; its batch is saved in ")
