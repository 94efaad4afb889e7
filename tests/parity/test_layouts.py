"""A state that any layout of workers wrote goes on on any other: the same weights and moments to the bit, the same losses within rounding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fmray.train.engine import TorchEngine
from tests.parity.workers import OPTIM, Case, model, run

AT, END = 7, 14
# Case that wrote with so many workers, and cases that go on with the other number: micro-batches of 8, 4, 2 and 1 rows accumulate or not.
FROM_TWO = [
    (Case("bf16-2", stage=2, precision="bf16"), [
        Case("bf16-2 to bf16-1", stage=1, precision="bf16", micro_batch_size=8),
        Case("bf16-2 to bf16-3", stage=3, precision="bf16", micro_batch_size=8),
        Case("bf16-2 to bf16-1 accumulated", stage=1, precision="bf16", micro_batch_size=2),
    ]),
    (Case("bf16-3", stage=3, precision="bf16"), [Case("bf16-3 to bf16-2", stage=2, precision="bf16", micro_batch_size=4)]),
    (Case("bf16-1 accumulated", precision="bf16", micro_batch_size=2), [Case("bf16-1 accumulated to bf16-1", precision="bf16", micro_batch_size=8)]),
    (Case("fp32-0", stage=0), [Case("fp32-0 to fp32-0", stage=0, micro_batch_size=8), Case("fp32-0 to fp32-3", stage=3, micro_batch_size=8)]),
    (Case("bf16-0", stage=0, precision="bf16"), [Case("bf16-0 to bf16-0", stage=0, precision="bf16", micro_batch_size=8)]),
    (Case("fp32-2 gpt2", stage=2, gpt2=True), [
        Case("fp32-2 gpt2 to fp32-1", micro_batch_size=8, gpt2=True),
        Case("fp32-2 gpt2 to torch", engine="torch", micro_batch_size=8, gpt2=True),
    ]),
]
FROM_ONE = [
    (Case("one bf16-1", precision="bf16", micro_batch_size=8), [
        Case("bf16-1 to bf16-3 on two", stage=3, precision="bf16"),
        Case("bf16-1 to bf16-2 accumulated on two", stage=2, precision="bf16", micro_batch_size=2),
    ]),
    (Case("one torch-fp32", engine="torch", micro_batch_size=8), [
        Case("torch to fp32-2 offloaded on two", stage=2, offload=True),
        Case("torch to fp32-0 on two", stage=0),
    ]),
]
CROSSINGS = [(wrote, goes_on) for cases in (FROM_TWO, FROM_ONE) for wrote, others in cases for goes_on in others]


def written(cases: list[tuple[Case, list[Case]]]) -> list[Case]:
    """Each writer uninterrupted to the end, and once up to where it leaves its state."""
    return [case for writer, _ in cases for case in (replace(writer, steps=END), replace(writer, name=f"{writer.name} cut", steps=AT, save=True))]


def going_on(cases: list[tuple[Case, list[Case]]], folder: Path) -> list[Case]:
    """The cases that go on from the states that lie in `folder`."""
    return [replace(case, steps=END, load=str(folder / f"{writer.name} cut-state")) for writer, others in cases for case in others]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Losses of all cases by name, and where each state lies."""
    root = tmp_path_factory.mktemp("layouts")
    first = run(2, root / "two", written(FROM_TWO))
    one = run(1, root / "one", going_on(FROM_TWO, root / "two") + written(FROM_ONE))
    two = run(2, root / "then", going_on(FROM_ONE, root / "one"))
    return {"losses": {name: result["losses"] for part in (first, one, two) for name, result in part.items()}, "root": root}


def folder_of(root: Path, name: str) -> Path:
    return next(root.glob(f"*/{name}"))


def everything(folder: Path, *, gpt2: bool) -> dict[str, torch.Tensor]:
    """Weights and moments of a state by parameter, read as one process reads them."""
    engine = TorchEngine(model(gpt2=gpt2), OPTIM, lambda step: 0.0, precision="fp32")
    engine.load(folder)
    assert engine.step == AT
    named = dict(engine.module.named_parameters())
    found = {f"{name}.{key}": value.clone() for name, p in named.items() for key, value in engine._optimizer.state[p].items()}
    return found | {name: p.detach() for name, p in named.items()}


@pytest.mark.parametrize(("wrote", "goes_on"), CROSSINGS, ids=[goes_on.name for _, goes_on in CROSSINGS])
def test_losses_are_those_of_the_uninterrupted_run(results, wrote, goes_on):
    whole, rest = results["losses"][wrote.name], results["losses"][goes_on.name]
    assert len(rest) == END - AT
    # The tolerances of one layout against another without a resume between them (test_engines.py).
    tolerance = 0.01 if wrote.precision == "bf16" else 1e-3 if 3 in (wrote.stage, goes_on.stage) else 1e-4
    assert max(abs(a - b) for a, b in zip(whole[AT:], rest, strict=True)) < tolerance


@pytest.mark.parametrize(("wrote", "goes_on"), CROSSINGS, ids=[goes_on.name for _, goes_on in CROSSINGS])
def test_what_was_read_is_what_was_written_to_the_bit(results, wrote, goes_on):
    before = everything(folder_of(results["root"], f"{wrote.name} cut-state"), gpt2=wrote.gpt2)
    after = everything(folder_of(results["root"], f"{goes_on.name}-again"), gpt2=wrote.gpt2)
    assert before.keys() == after.keys()
    assert {key.rpartition(".")[2] for key in before} >= {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.abs().max() > 0 for key, value in before.items() if key.endswith("exp_avg_sq"))
