"""The config of pretrain: batch arithmetic, overrides, what enters the fingerprint, the plan."""

from types import SimpleNamespace

import pytest

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.train.config import PretrainConfig
from fmray.train.plan import GIB, plan, state_bytes_per_param

GOOD = {"model": {"type": "decoder"}, "global_batch_size": 8, "max_steps": 10}

CONTRASTIVE = {"model": {"type": "encoder"}, "objective": {"type": "contrastive"}}


def config(**changes):
    return load_config(PretrainConfig, GOOD | changes, "base")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_batch_size": 9}, "global_batch_size 9 does not divide among num_workers 2"),
        ({"micro_batch_size": 3}, "the 4 rows of each worker .* do not divide into micro_batch_size 3"),
        ({"num_workers": {"min": 1, "max": 4}}, r"num_workers 1 to 4 may come to 3 workers, among which global_batch_size 8 does not divide \(of these 1, 2, 4 would\)"),
        ({"num_workers": {"min": 1, "max": 2}, "micro_batch_size": 8}, r"may come to 2 workers, .* into micro_batch_size 8 \(of these 1 would\)"),
        ({"num_workers": {"min": 3, "max": 3}}, "does not divide among num_workers 3"),
        ({"num_workers": {"min": 2, "max": 1}}, "base.num_workers: min 2 is above max 1"),
        ({"num_workers": {"min": 0, "max": 1}}, "base.num_workers.min"),
        ({"num_workers": {"min": 1, "most": 2}}, "base.num_workers"),
        ({"num_workers": 0}, "base.num_workers"),
        ({"num_workers": "two"}, "base.num_workers: must be a number or {min: , max: }, got 'two'"),
        ({"engine": "torch", "num_workers": {"min": 1, "max": 2}}, "engine torch runs on one worker, not on num_workers 1 to 2"),
        ({"deepspeed": {"fp16": {"enabled": True}}}, "set precision instead"),
        ({"deepspeed": {"bf16": {"enabled": False}}}, "deepspeed.bf16.enabled cannot be overridden: set precision instead"),
        ({"deepspeed": {"torch_autocast": {"enabled": True}}}, "set precision instead"),
        ({"deepspeed": {"bf16": False}}, "deepspeed.bf16: must be a mapping"),
        ({"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}}, "cannot offload to nvme"),
        ({"deepspeed": {"zero_optimization": {"round_robin_gradients": True}}}, "round_robin_gradients cannot be used"),
        ({"epochs": 2.0}, "give either max_steps or epochs"),
        ({"max_steps": None}, "give either max_steps or epochs"),
        ({"engine": "torch"}, "engine torch runs on one worker"),
        ({"zero": {"stage": 4}}, "base.zero.stage"),
        ({"zero": {"stage": 0, "offload_optimizer": True}}, "offload_optimizer needs stage 1, 2 or 3"),
        ({"deepspeed": {"train_batch_size": 4}}, "deepspeed.train_batch_size cannot be overridden"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "set zero.stage instead"),
        ({"objective": {"type": "supervised"}}, "objective supervised does not pretrain"),
        ({"objective": {"type": "causal"}}, "unknown objective 'causal', did you mean 'causal_lm'"),
        (CONTRASTIVE | {"micro_batch_size": 2}, "objective contrastive tells the rows of one batch apart: leave micro_batch_size out"),
        (CONTRASTIVE | {"global_batch_size": 1, "num_workers": 1}, "set global_batch_size to at least 2"),
        ({"precision": "fp8"}, "base.precision"),
        ({"precision": "fp16"}, "precision fp16 needs GPUs: set use_gpu: true, or precision: bf16"),
        ({"precision": "fp16", "use_gpu": True, "zero": {"stage": 0}}, "precision fp16 needs engine deepspeed and zero.stage 1, 2 or 3"),
        ({"precision": "fp16", "use_gpu": True, "engine": "torch", "num_workers": 1}, "precision fp16 needs engine deepspeed"),
        ({"attention": "flash_attention_2"}, "attention flash_attention_2 runs on GPUs only: set use_gpu: true, or leave it out"),
        ({"attention": "flash_attention_2", "use_gpu": True, "precision": "fp32"}, "flash_attention_2 computes in bf16 or fp16, and precision is fp32"),
        ({"attention": "flex_attention"}, "attention flex_attention has no backward pass on CPUs: set use_gpu: true"),
        ({"attention": "flex_attention", "use_gpu": True, "zero": {"stage": 0}}, "flex_attention wants queries, keys and values of one precision, which autocast does not give"),
        ({"attention": "flex_attention", "use_gpu": True, "model": {"type": "encoder"}, "objective": {"type": "masked_lm"}}, "flex_attention is for decoders, .* not for the family encoder"),
        ({"attention": "flash"}, "base.attention"),
        ({"max_faults_per_node": 0}, "base.max_faults_per_node"),
        ({"optim": {"lr": "fast"}}, "base.optim.lr"),
        ({"optim": {"implementation": "foreach"}, "deepspeed": {"optimizer": {"type": "Lamb"}}}, "optim.implementation foreach is one of torch's AdamW, and deepspeed.optimizer takes its place"),
        ({"num_worker": 2}, "unknown key 'num_worker', did you mean 'num_workers'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        config(**changes)
    assert str(error.value).startswith("base")
    assert "\n" not in str(error.value)


def test_where_it_runs_stays_out_of_the_identity_and_what_it_computes_is_in():
    same = config(num_workers=4, zero={"stage": 3}, micro_batch_size=1, checkpoint_every_steps=7, keep_checkpoints=5, max_failures=0, use_gpu=True)
    assert same.identity() == config().identity()
    for change in ({"precision": "fp32"}, {"seed": 1}, {"attention": "eager"}, {"deepspeed": {"prescale_gradients": True}}, {"optim": {"lr": 0.1}}, {"compile": True}):
        assert config(**change).identity() != config().identity()


def test_accumulation_is_derived():
    assert config(global_batch_size=24, num_workers=2, micro_batch_size=3).grad_accum_steps == 4
    assert config().grad_accum_steps == 1
    assert config(max_steps=None, epochs=1.5).total_steps(100) == 19


def test_a_range_of_workers_is_arithmetic_for_each_number_in_it():
    elastic = config(global_batch_size=12, num_workers={"min": 1, "max": 3}, micro_batch_size=2)
    assert [elastic.with_workers(n).grad_accum_steps for n in (1, 2, 3)] == [6, 3, 2]
    assert "data_types" in elastic.with_workers(1).engine_config()
    whole = config(num_workers={"min": 1, "max": 2})
    assert [whole.with_workers(n).rows_per_pass for n in (1, 2)] == [8, 4]
    assert whole.identity() == config().identity()
    lines = plan(elastic, {"dataset": SimpleNamespace(vocab_size=1000, seq_len=128)})
    assert lines["batch"] == "12 rows = 1 workers x 6 micro-batches x 2 rows or 3 workers x 2 micro-batches x 2 rows"


def test_overrides_are_merged_last():
    made = config(deepspeed={"bf16": {"immediate_grad_update": True}, "zero_optimization": {"reduce_bucket_size": 1000}}).engine_config()
    assert made["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert made["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert config(zero={"stage": 0}).engine_config()["torch_autocast"]["enabled"] is True


def test_float16_scales_its_loss_by_itself():
    made = config(precision="fp16", use_gpu=True, micro_batch_size=1, zero={"stage": 2}).engine_config()
    assert made["fp16"] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    assert not {"bf16", "torch_autocast", "data_types"} & made.keys()
    assert config(precision="fp16", use_gpu=True, deepspeed={"fp16": {"loss_scale_window": 500}}).engine_config()["fp16"]["loss_scale_window"] == 500
    assert config(precision="fp16", use_gpu=True).identity() != config().identity()


def test_memory_follows_the_formulas_that_were_counted():
    for workers in (1, 2, 8):
        for precision in ("bf16", "fp16"):
            got = [state_bytes_per_param(stage, workers, precision) for stage in range(4)]
            assert got == pytest.approx([16, 2 + 14 / workers, 2 + 14 / workers, 16 / workers])
        got = [state_bytes_per_param(stage, workers, "fp32") for stage in range(4)]
        assert got == pytest.approx([16, 4 + 16 / workers, 4 + 16 / workers, 20 / workers])


def test_the_plan_names_parameters_tokens_flops_memory_and_accumulation():
    lines = plan(config(micro_batch_size=2), {"dataset": SimpleNamespace(vocab_size=1000, seq_len=128)})
    assert lines["parameters"] == "1,967,808 (vocabulary padded to 1,024)"
    assert lines["tokens"] == "10,240 (10 steps x 8 rows x 128)"
    assert lines["batch"] == "8 rows = 2 workers x 2 micro-batches x 2 rows"
    assert lines["FLOPs"].startswith("1.33e+11")
    assert f"stage 1: {1967808 * (8 + 12 / 2) / GIB:.3g} GiB" in lines["memory a worker"]
    assert "once the dataset is" in plan(config(), {})["parameters"]
    assert "checkpoint" in plan(config(model=None), {})["parameters"]
