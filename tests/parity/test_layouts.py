"""A state that any layout of workers wrote goes on on any other: the same weights and moments to the bit, the same losses within rounding."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fmray.train.engine import TorchEngine
from tests.parity.workers import OPTIM, Case, model, run

AT, END = 5, 10


class Crossing(NamedTuple):
    """What wrote a state, on so many workers, and what goes on from it on the other number; names say precision and ZeRO stage."""

    workers: int
    wrote: Case
    goes_on: Case


BF16_2, BF16_3, FP32_0 = Case("bf16-2", stage=2, precision="bf16"), Case("bf16-3", stage=3, precision="bf16"), Case("fp32-0", stage=0)
BF16_1, TORCH = Case("one bf16-1", precision="bf16", micro_batch_size=8), Case("one torch", engine="torch", micro_batch_size=8)
GPT2 = Case("gpt2 fp32-2", stage=2, gpt2=True)
QUICK = [
    Crossing(2, BF16_2, Case("bf16-2 to bf16-1", precision="bf16", micro_batch_size=8)),
    Crossing(2, BF16_3, Case("bf16-3 to accumulated bf16-2", stage=2, precision="bf16", micro_batch_size=4)),
    Crossing(2, FP32_0, Case("fp32-0 to fp32-0", stage=0, micro_batch_size=8)),
    Crossing(1, BF16_1, Case("bf16-1 to bf16-3 on two", stage=3, precision="bf16")),
]
SLOW = [
    Crossing(2, BF16_2, Case("bf16-2 to bf16-3", stage=3, precision="bf16", micro_batch_size=8)),
    Crossing(2, BF16_2, Case("bf16-2 to accumulated bf16-1", precision="bf16", micro_batch_size=2)),
    Crossing(2, Case("accumulated bf16-1", precision="bf16", micro_batch_size=2), Case("accumulated bf16-1 to bf16-1", precision="bf16", micro_batch_size=8)),
    Crossing(2, FP32_0, Case("fp32-0 to fp32-3", stage=3, micro_batch_size=8)),
    Crossing(2, Case("bf16-0", stage=0, precision="bf16"), Case("bf16-0 to bf16-0", stage=0, precision="bf16", micro_batch_size=8)),
    Crossing(2, GPT2, Case("gpt2 fp32-2 to fp32-1", micro_batch_size=8, gpt2=True)),
    Crossing(2, GPT2, Case("gpt2 fp32-2 to torch", engine="torch", micro_batch_size=8, gpt2=True)),
    Crossing(1, BF16_1, Case("bf16-1 to accumulated bf16-2 on two", stage=2, precision="bf16", micro_batch_size=2)),
    Crossing(1, TORCH, Case("torch to offloaded fp32-2 on two", stage=2, offload=True)),
    Crossing(1, TORCH, Case("torch to fp32-0 on two", stage=0)),
]
EVERY = [*(pytest.param(c, id=c.goes_on.name) for c in QUICK), *(pytest.param(c, id=c.goes_on.name, marks=pytest.mark.slow) for c in SLOW)]


def launched(crossings: list[Crossing], root: Path) -> dict[str, list[float]]:
    """Losses of all cases by name: writers run to the end, and again up to where they leave their state, which others go on from."""

    def writers(workers: int) -> list[Case]:
        named = {c.wrote.name: c.wrote for c in crossings if c.workers == workers}.values()
        return [case for writer in named for case in (replace(writer, steps=END), replace(writer, name=f"{writer.name} cut", steps=AT, save=True))]

    def going_on(workers: int, folder: Path) -> list[Case]:
        return [replace(c.goes_on, steps=END, load=str(folder / f"{c.wrote.name} cut-state")) for c in crossings if c.workers == workers]

    parts = [run(2, root / "two", writers(2)), run(1, root / "one", going_on(2, root / "two") + writers(1)), run(2, root / "then", going_on(1, root / "one"))]
    return {name: result["losses"] for part in parts for name, result in part.items()}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    root = tmp_path_factory.mktemp("quick")
    return launched(QUICK, root), root


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    root = tmp_path_factory.mktemp("slow")
    return launched(SLOW, root), root


def everything(folder: Path, *, gpt2: bool) -> dict[str, torch.Tensor]:
    """Weights and moments of a state by parameter, read as one process reads them."""
    engine = TorchEngine(model(gpt2=gpt2), OPTIM, lambda step: 0.0, precision="fp32")
    engine.load(folder)
    assert engine.step == AT
    named = dict(engine.module.named_parameters())
    found = {f"{name}.{key}": value.clone() for name, p in named.items() for key, value in engine._optimizer.state[p].items()}
    return found | {name: p.detach() for name, p in named.items()}


@pytest.mark.parametrize("crossing", EVERY)
def test_it_goes_on_as_if_it_had_not_changed_places(request, crossing):
    losses, root = request.getfixturevalue("quick" if crossing in QUICK else "slow")
    _, wrote, goes_on = crossing
    # What was read is what was written, to the bit.
    before = everything(next(root.glob(f"*/{wrote.name} cut-state")), gpt2=wrote.gpt2)
    after = everything(next(root.glob(f"*/{goes_on.name}-again")), gpt2=wrote.gpt2)
    assert before.keys() == after.keys()
    assert {key.rpartition(".")[2] for key in before} >= {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.abs().max() > 0 for key, value in before.items() if key.endswith("exp_avg_sq"))
    # The tolerances of one layout against another without a resume between them (test_engines.py).
    tolerance = 0.01 if wrote.precision == "bf16" else 1e-3 if goes_on.stage == 3 else 1e-4
    assert len(losses[goes_on.name]) == END - AT
    assert max(abs(a - b) for a, b in zip(losses[wrote.name][AT:], losses[goes_on.name], strict=True)) < tolerance
