"""One computation, whatever engine, ZeRO stage, number of workers or micro-batches carries it out."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fmray.model.export import save_model
from fmray.model.tensor_file import held_entry
from tests.parity.workers import OBJECTIVE, SEQ_LEN, Case, model, run
from tests.train.rows import packed_rows
from tests.train.tiny import save_decoder

STAGES = (0, 1, 2, 3)
TWO = [
    *(Case(f"fp32-{s}", stage=s) for s in STAGES),
    *(Case(f"bf16-{s}", stage=s, precision="bf16") for s in STAGES),
    *(Case(f"fp32-{s}-accumulated", stage=s, micro_batch_size=1, steps=10) for s in STAGES),
    *(Case(f"bf16-{s}-accumulated", stage=s, precision="bf16", micro_batch_size=2, steps=10) for s in (1, 2)),
    *(Case(f"{p}-{s}-resumed", stage=s, precision=p, resume_at=7, steps=14) for p in ("fp32", "bf16") for s in STAGES),
    Case("fp32-2-offloaded", stage=2, offload=True, steps=10),
    Case("fp32-3-offloaded", stage=3, offload=True, offload_parameters=True, steps=10),
    *(Case(f"fp32-{s}-table", stage=s, fused=False, steps=10) for s in (1, 3)),
    *(Case(f"fp32-{s}-recomputed", stage=s, checkpointed=True, steps=10) for s in (1, 3)),
    Case("dropping", gpt2=True, dropout=0.2, micro_batch_size=1, steps=6),
    Case("dropping-resumed", gpt2=True, dropout=0.2, micro_batch_size=1, steps=6, resume_at=3),
    Case("fp32-1-overridden", steps=10, overrides={"zero_optimization": {"reduce_bucket_size": 5000}}),
]
ONE = [
    *(Case(f"torch-{p}", engine="torch", precision=p, micro_batch_size=8) for p in ("fp32", "bf16")),
    Case("torch-fp32-accumulated", engine="torch", micro_batch_size=2, steps=10),
    Case("torch-fp32-resumed", engine="torch", micro_batch_size=8, resume_at=7, steps=14),
    Case("dropping", engine="torch", gpt2=True, dropout=0.2, micro_batch_size=1, steps=6),
    Case("dropping-by-eight", engine="torch", gpt2=True, dropout=0.2, micro_batch_size=8, steps=6),
    *(Case(f"{p}-{s}", stage=s, precision=p, micro_batch_size=8) for p in ("fp32", "bf16") for s in (0, 1)),
]

FOUR = [Case(f"{p}-{s}", stage=s, precision=p, micro_batch_size=2, steps=10) for p in ("fp32", "bf16") for s in STAGES]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("four"), FOUR)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("two"), TWO)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(1, tmp_path_factory.mktemp("one"), ONE)


def apart(a, b, what="losses"):
    """The largest difference of two curves over the steps that both have."""
    return max(abs(x - y) for x, y in zip(a[what], b[what], strict=False))


def test_it_learns(two):
    losses = two["fp32-0"]["losses"]
    assert losses[0] > 4.1
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(("stage", "tolerance"), [(1, 1e-4), (2, 1e-4), (3, 1e-3)])
def test_zero_stages_agree_in_fp32(two, stage, tolerance):
    assert apart(two["fp32-0"], two[f"fp32-{stage}"]) < tolerance
    assert apart(two["fp32-0"], two[f"fp32-{stage}"], "norms") < 10 * tolerance


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_stages_agree_in_bf16(two, stage):
    assert apart(two["bf16-1"], two[f"bf16-{stage}"]) < 0.01


def test_bf16_follows_fp32_at_every_stage(two):
    for stage in STAGES:
        assert 0 < apart(two["fp32-0"], two[f"bf16-{stage}"]) < 0.02


@pytest.mark.parametrize("stage", STAGES)
def test_four_micro_batches_equal_one_batch(two, stage):
    assert apart(two[f"fp32-{stage}"], two[f"fp32-{stage}-accumulated"]) < 1e-4


@pytest.mark.parametrize("stage", [1, 2])
def test_accumulation_in_bf16_sums_in_fp32(two, stage):
    assert apart(two[f"bf16-{stage}"], two[f"bf16-{stage}-accumulated"]) < 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_equals_uninterrupted_to_the_bit(two, stage, precision):
    whole, resumed = two[f"{precision}-{stage}"], two[f"{precision}-{stage}-resumed"]
    assert len(resumed["losses"]) == 14
    assert whole["losses"][:14] == resumed["losses"]
    assert whole["norms"][:14] == resumed["norms"]


def test_one_worker_equals_two(one, two):
    for stage in (0, 1):
        assert apart(one[f"fp32-{stage}"], two[f"fp32-{stage}"]) < 1e-4
        assert apart(one[f"bf16-{stage}"], two[f"bf16-{stage}"]) < 0.01


@pytest.mark.parametrize(("stage", "tolerance"), [(0, 1e-4), (1, 1e-4), (2, 1e-4), (3, 1e-3)])
def test_two_workers_equal_four(two, four, stage, tolerance):
    assert len(four[f"fp32-{stage}"]["losses"]) == 10
    assert apart(two[f"fp32-{stage}"], four[f"fp32-{stage}"]) < tolerance
    assert apart(two[f"fp32-{stage}"], four[f"fp32-{stage}"], "norms") < 10 * tolerance
    assert apart(two[f"bf16-{stage}"], four[f"bf16-{stage}"]) < 0.01


def test_deepspeed_on_one_worker_equals_plain_torch(one):
    for stage in (0, 1):
        assert apart(one["torch-fp32"], one[f"fp32-{stage}"]) < 1e-4
        assert apart(one["torch-fp32"], one[f"fp32-{stage}"], "norms") < 1e-3
        assert apart(one["torch-bf16"], one[f"bf16-{stage}"]) < 0.01


def test_plain_torch_accumulates_and_resumes_exactly(one):
    assert apart(one["torch-fp32"], one["torch-fp32-accumulated"]) < 1e-4
    assert one["torch-fp32"]["losses"][:14] == one["torch-fp32-resumed"]["losses"]


def test_a_row_drops_the_same_units_on_any_number_of_workers(one, two):
    assert apart(one["dropping"], two["dropping"]) < 1e-4
    assert apart(one["dropping"], two["dropping"], "norms") < 1e-3
    # Other units are dropped where rows are drawn for together: the agreement above is none of chance.
    assert apart(one["dropping"], one["dropping-by-eight"]) > 1e-3


def test_a_resumed_run_drops_what_an_uninterrupted_one_does(two):
    assert two["dropping"]["losses"] == two["dropping-resumed"]["losses"]
    assert two["dropping"]["norms"] == two["dropping-resumed"]["norms"]


def test_offload_and_overrides_change_nothing(two):
    assert apart(two["fp32-2"], two["fp32-2-offloaded"]) < 1e-4
    assert apart(two["fp32-3"], two["fp32-3-offloaded"]) < 1e-4
    assert apart(two["fp32-1"], two["fp32-1-overridden"]) < 1e-4


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("how", ["table", "recomputed"])
def test_how_loss_and_activations_are_computed_changes_nothing(two, stage, how):
    assert apart(two[f"fp32-{stage}"], two[f"fp32-{stage}-{how}"]) < 1e-5
    assert apart(two[f"fp32-{stage}"], two[f"fp32-{stage}-{how}"], "norms") < 1e-4


@pytest.mark.parametrize("name", [f"{p}-{s}" for p in ("fp32", "bf16") for s in STAGES])
def test_every_stage_exports_precise_weights_that_open_with_the_same_loss(two, name, tmp_path):
    result = two[name]
    shell = model()
    assert result["weights"].keys() == dict(shell.named_parameters()).keys()
    assert all(value.dtype == torch.float32 for value in result["weights"].values())
    save_decoder(tmp_path / "tokenizer", max_positions=SEQ_LEN)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", shell, [held_entry(*item) for item in result["weights"].items()], tmp_path / "tokenizer")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in result["weights"].items())
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert opened.dtype == torch.float32
    # The batch that an uninterrupted run would have met next has about the loss that training had come to.
    parts = OBJECTIVE.loss(opened, OBJECTIVE.collate(packed_rows(8, SEQ_LEN, seed=50)))
    assert parts.sum.item() / int(parts.count) == pytest.approx(result["losses"][-1], abs=0.25)
    if name != "fp32-0":
        reference = two["fp32-0"]["weights"]
        assert max((reference[k] - v).abs().max().item() for k, v in result["weights"].items()) < (0.02 if "bf16" in name else 1e-3)


def test_masters_are_exported_and_not_their_bf16_copies(two):
    for stage in (1, 2, 3):
        weights = two[f"bf16-{stage}"]["weights"]
        assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())


@pytest.mark.slow
def test_compiled_engines_compute_the_same(one, tmp_path):
    cases = [
        Case("torch-compiled", engine="torch", micro_batch_size=8, steps=5, compile=True),
        Case("deepspeed-compiled", stage=1, micro_batch_size=8, steps=5, compile=True),
    ]
    compiled = run(1, tmp_path, cases)
    assert apart(one["torch-fp32"], compiled["torch-compiled"]) < 1e-4
    assert apart(one["fp32-1"], compiled["deepspeed-compiled"]) < 1e-4
    assert compiled["torch-compiled"]["weights"].keys() == one["torch-fp32"]["weights"].keys() == compiled["deepspeed-compiled"]["weights"].keys()
