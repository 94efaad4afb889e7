"""What looks on changes nothing: evaluation, profile and clocks of a whole run in this process, and what each leaves behind."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.data.dataset import TokenDataset
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.held_out import measure
from fmray.objectives import setting_for
from fmray.train.config import PretrainConfig
from fmray.train.evaluation import HeldOut, check_evaluation
from fmray.train.metrics import METRICS, read_metrics
from fmray.train.profiling import PROFILE
from fmray.train.ranks import RANKS
from fmray.train.seen import check_profile, seen
from fmray.train.worker import Place, PretrainJob, build_engine, run_pretraining
from tests.train.dataset import token_dataset

SHAPE = {"type": "encoder", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
CONFIG = {
    "model": SHAPE, "objective": {"type": "masked_lm"}, "global_batch_size": 8, "max_steps": 7, "checkpoint_every_steps": 3, "engine": "torch",
    "precision": "fp32", "num_workers": 1, "trackers": [],
}  # fmt: skip
WATCHED = {"eval_every_steps": 2, "profile": {"from_step": 4, "steps": 2}, "device": {"power_w": 36.0, "usd_per_hour": 3.6, "pue": 2.0}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return token_dataset(tmp_path_factory.mktemp("data") / "corpus")


def job(dataset, out, last_step=7, **changes):
    config, payload = load_config(PretrainConfig, CONFIG | changes, "base"), dataset.payload
    (out / "work").mkdir(parents=True, exist_ok=True)
    return PretrainJob(
        config=config, model=config.model, dataset=dataset.path, vocab_size=payload.vocab_size, seq_len=32, positions=32, special_ids=payload.special_ids, out=out,
        states=out / "work" / "run", first_step=0, last_step=last_step, previous=None, init=None,
    )  # fmt: skip


def run(the_job):
    run_pretraining(the_job, Place(0, 1, 1))
    return read_metrics(the_job.out / METRICS)


def learnt(lines):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, run(job(dataset, out, **WATCHED))


def test_a_watched_run_learns_what_an_unwatched_one_does_to_the_bit(dataset, whole, tmp_path):
    out, lines = whole
    plain = run(job(dataset, tmp_path))
    assert learnt(lines) == learnt(plain)
    assert (tmp_path / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 6, 7]
    assert not any("eval_loss" in line or "note" in line for line in plain)


def test_a_resumed_run_is_the_uninterrupted_one_with_its_evaluations(dataset, whole, tmp_path):
    the_job = job(dataset, tmp_path, keep_checkpoints=3, **WATCHED)
    before = run(the_job)
    for step in (6, 7):
        (the_job.states / f"step-{step:09d}" / "state.json").unlink()
    lines = run(the_job)
    assert learnt(lines) == learnt(before) == learnt(whole[1])
    assert [line.get("eval_loss") for line in lines] == [line.get("eval_loss") for line in whole[1]]
    # Devices were held for the steps that were lost as well.
    assert lines[3]["worker_hours"] > before[-1]["worker_hours"]


def test_the_last_evaluation_is_what_the_stage_evaluate_measures(dataset, whole):
    out, lines = whole
    objective = load_config(PretrainConfig, CONFIG, "base").objective
    held = measure(EvaluateConfig(num_cpus=1), {"type": "masked_lm"} | objective.model_dump(), out, dataset.path)
    assert lines[-1]["eval_loss"] == pytest.approx(held.loss_B.sum() / held.targets_B.sum(), rel=1e-5)


def test_an_evaluation_is_without_dropout_repeats_itself_and_leaves_the_random_state_alone(dataset, tmp_path):
    import torch

    the_job = job(dataset, tmp_path, objective={"type": "masked_lm"}, eval_every_steps=1)
    engine = build_engine(the_job, Place(0, 1, 1))
    dropouts = [m for m in engine.module.modules() if isinstance(m, torch.nn.Dropout)]
    for module in dropouts:
        module.p = 0.5
    setting = setting_for(dataset.path, dataset.payload, engine.module.config.to_dict(), 3)
    held_out = HeldOut(the_job.config, dataset.path, setting, rank=0, world_size=1)
    engine.module.train()
    before = torch.get_rng_state()
    losses = {held_out.loss(engine) for _ in range(3)}
    assert len(losses) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert engine.module.training
    assert all(parameter.grad is None for parameter in engine.module.parameters())
    # Another seed of the run hides the same of the held-out rows.
    assert HeldOut(the_job.config, dataset.path, replace(setting, seed=9), rank=0, world_size=1).loss(engine) in losses


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("passed", [1, 3])
def test_every_row_counts_once_whatever_the_number_of_workers(dataset, tmp_path, world_size, passed):
    the_job = job(dataset, tmp_path, global_batch_size=12, micro_batch_size=passed, num_workers=1, engine="deepspeed", eval_rows=7)
    setting = setting_for(dataset.path, dataset.payload, {}, 0)
    passes = [HeldOut(the_job.config, dataset.path, setting, rank=rank, world_size=world_size)._passes for rank in range(world_size)]
    assert len({len(mine) for mine in passes}) == 1
    counted = np.concatenate([batch["row_ids_B"].numpy() for mine in passes for batch, counts in mine if counts])
    assert sorted(counted) == [0, 1, 2, 3, 4, 5, 6]


def test_contrastive_batches_are_the_same_rows_on_any_number_of_workers(tmp_path):
    unpacked = token_dataset(tmp_path / "lone", unpacked=True)
    the_job = job(unpacked, tmp_path / "out", objective={"type": "contrastive"}, global_batch_size=4, engine="deepspeed", eval_rows=7)
    setting = setting_for(unpacked.path, unpacked.payload, {}, 0)
    for world_size in (1, 2, 4):
        config = the_job.config.with_workers(world_size)
        passes = [HeldOut(config, unpacked.path, setting, rank=rank, world_size=world_size)._passes for rank in range(world_size)]
        batches = [sorted(int(i) for mine in passes for i in mine[k][0]["row_ids_B"]) for k in range(len(passes[0]))]
        assert batches == [[0, 1, 2, 3]]


def test_the_profile_is_of_its_window_and_names_operators(whole):
    out, lines = whole
    trace = json.loads(gzip.decompress((out / "work" / PROFILE / "rank-0.trace.json.gz").read_bytes()))
    steps = [event for event in trace["traceEvents"] if event.get("name") == "Optimizer.step#AdamW.step"]
    assert len(steps) == 2
    operators = seen(lines, out / "work", ()).operators
    assert "aten::addmm" in [operator.name for operator in operators]
    assert [o.self_ms for o in operators] == sorted((o.self_ms for o in operators), reverse=True)
    assert 0.5 < sum(operator.share for operator in operators) <= 1.001


def test_clocks_add_up_and_figures_are_those_of_the_lines(whole):
    out, lines = whole
    (mine,) = seen(lines, out / "work", ()).ranks
    assert (mine.rank, mine.n_steps) == (0, 6)
    assert mine.step_s.median >= mine.data_wait_s.median
    assert mine.others_s is not None
    assert mine.others_s.median <= mine.step_s.median
    found = seen(lines, out / "work", ("a tracker failed",))
    assert dict(found.curves["eval_loss"]) == pytest.approx({line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}, rel=1e-5)
    assert set(found.curves) == {"eval_loss", "lr", "grad_norm", "tokens_per_s"}
    assert found.notes == ("a tracker failed",)
    assert (out / "work" / RANKS / "rank-0000.json").exists()


def test_energy_and_cost_are_hours_times_what_is_declared(dataset, whole, tmp_path):
    _, lines = whole
    hours = [line["worker_hours"] for line in lines]
    assert hours == sorted(hours)
    # 36 W at a PUE of 2, and 3.6 dollars an hour.
    assert lines[-1]["energy_kwh"] == pytest.approx(hours[-1] * 0.072, rel=1e-3, abs=1e-7)
    assert lines[-1]["cost_usd"] == pytest.approx(hours[-1] * 3.6, rel=1e-3, abs=1e-5)
    plain = run(job(dataset, tmp_path, last_step=1))
    assert (plain[0]["energy_kwh"], plain[0]["cost_usd"]) == (None, None)


def test_what_cannot_be_watched_is_refused(dataset):
    def config(**changes):
        return load_config(PretrainConfig, CONFIG | changes, "base")

    with pytest.raises(ConfigError, match=r"base: profile.ranks names rank 1, and num_workers 1 has ranks 0 to 0"):
        config(profile={"ranks": [0, 1]})
    with pytest.raises(ConfigError, match=r"base.profile.from_step: begins at step 10 of a run of 7"):
        check_profile(config(profile={}), 7, "base")
    bare = dataset.payload.model_copy(update={"splits": {"train": 100}})
    with pytest.raises(ConfigError, match=r"base.eval_every_steps: the dataset has no validation rows"):
        check_evaluation(config(eval_every_steps=2), bare, "base")
    check_evaluation(config(), bare, "base")
    contrastive = config(objective={"type": "contrastive"}, global_batch_size=16, eval_every_steps=2)
    with pytest.raises(ConfigError, match="8 held-out rows are no whole global batch of 16"):
        check_evaluation(contrastive, TokenDataset.model_validate(dataset.payload), "base")
