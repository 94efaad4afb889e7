"""A step whose loss or gradient is no number changes nothing, on any engine and ZeRO stage: what follows is as if its batch were not there."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fmray.core.cursor import Cursor
from fmray.train.deepspeed_engine import prepare_process
from fmray.train.loop import train
from tests.parity.workers import OBJECTIVE, Case, batches, engine, exported

# What is wrong with a batch: the loss and so the gradients; the loss alone; the gradients alone.
FAULTS = ("nan", "infinite_loss", "nan_gradient")
# The first of all batches is among the bad ones, for optimizers make their state with the first update.
ORDER = ["infinite_loss", 0, 1, "nan", 2, "nan_gradient", 3, "infinite_loss", 4]
CASES = [
    *(Case(f"bf16-{s}", stage=s, precision="bf16", micro_batch_size=2) for s in (0, 1, 2, 3)),
    *(Case(f"fp32-{s}", stage=s, micro_batch_size=2) for s in (0, 3)),
    Case("bf16-1-whole", precision="bf16"),
    Case("bf16-1-unchecked", precision="bf16", overrides={"bf16": {"check_grad_overflow": False}}),
    Case("fp32-2-offloaded", stage=2, offload=True),
]


class Poisoned:
    """The objective, which goes wrong on micro-batches that hold a `poison`."""

    def count(self, batch):
        return OBJECTIVE.count(batch)

    def loss(self, model, batch):
        parts, poison = OBJECTIVE.loss(model, batch), batch.get("poison")
        if poison is None:
            return parts
        wrong = {"nan": parts.sum * float("nan"), "infinite_loss": parts.sum + float("inf"), "nan_gradient": parts.sum + (parts.sum * 0).sqrt()}
        return type(parts)(wrong[FAULTS[int(poison)]], parts.count)


def given(case, rank, world_size, order):
    """This rank's batches in that order; a bad one is the sixth batch, bad on the last rank and in one micro-batch alone."""
    source = batches(case, rank, world_size, 0)
    good = [next(source)[0] for _ in range(6)]
    for item in order:
        parts = [dict(batch) for batch in good[item if isinstance(item, int) else 5]]
        if not isinstance(item, int) and rank == world_size - 1:
            parts[0]["poison"] = torch.tensor(FAULTS.index(item))
        yield parts, Cursor()


def curve(case, rank, world_size, order, last, folder=None):
    """Steps that were applied (loss, norm, lr), the faults of the others, and the weights exported by way of the folder `last`."""
    running, told, faults = engine(case, world_size), [], []
    on_step = lambda step, stats, cursor: told.append((stats.loss, stats.grad_norm, stats.lr)) if stats.applied else None  # noqa: E731
    train(running, Poisoned(), given(case, rank, world_size, order), max_steps=len(order), seed=0, on_step=on_step, on_nonfinite=lambda stats, *_: faults.append(stats.fault))
    assert running.step == len(order)
    assert running.skipped == len(faults)
    if folder is not None:
        folder.mkdir(exist_ok=True)
        running.save(folder)
        again = engine(case, world_size)
        again.load(folder)
        assert (again.step, again.skipped) == (running.step, running.skipped)
    weights = exported(running, last, rank, world_size)
    return told, faults, sum(value.double().abs().sum().item() for value in weights.values())


def _process(rank: int, world_size: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    prepare_process(local_world_size=world_size, use_gpu=False)
    clean = [item for item in ORDER if isinstance(item, int)]
    found = {case.name: [curve(case, rank, world_size, order, Path(folder, f"{case.name}-{len(order)}")) for order in (ORDER, clean)] for case in CASES}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nonfinite")
    mp.spawn(_process, (2, str(folder)), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_what_follows_is_as_if_the_bad_batches_were_not_there(found, name):
    for rank in (0, 1):
        (told, faults, weights), (clean, none, clean_weights) = found[rank][name]
        assert told == clean
        assert len({lr for _, _, lr in told}) == 5
        assert weights == clean_weights
        assert none == []
        assert [fault.rsplit(" ", 1)[0] for fault in faults] == ["the loss is", "the loss is", "the gradient norm is", "the loss is"]
    assert found[0][name][0][1] == found[1][name][0][1]


def test_the_same_holds_for_plain_torch(tmp_path):
    case = Case("torch", engine="torch", precision="bf16", micro_batch_size=4)
    told, faults, weights = curve(case, 0, 1, ORDER, tmp_path / "last", tmp_path / "state")
    assert (told, [], weights) == curve(case, 0, 1, [item for item in ORDER if isinstance(item, int)], tmp_path / "clean")
    assert [fault for fault in faults if "loss" in fault] == ["the loss is inf", "the loss is nan", "the loss is inf"]
