"""What one worker does, in this process with plain torch: the lines that it writes while it trains."""

import shutil

import pytest

from fmray.core.config import load_config
from fmray.train import stopping
from fmray.train.config import PretrainConfig
from fmray.train.metrics import METRICS, read_metrics
from fmray.train.remote import RemoteStates
from fmray.train.worker import Place, PretrainJob, run_pretraining
from tests.s3 import Bucket, at
from tests.train.dataset import token_dataset

SHAPE = {"type": "decoder", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
CONFIG = {
    "model": SHAPE, "global_batch_size": 8, "max_steps": 6, "checkpoint_every_steps": 3, "engine": "torch", "precision": "fp32", "num_workers": 1,
    "device": {"peak_tflops": 0.1},
}  # fmt: skip


def job_of(root, **changes):
    dataset = token_dataset(root / "corpus")
    config, payload, out = load_config(PretrainConfig, CONFIG | changes, "base"), dataset.payload, root / "base"
    (out / "work").mkdir(parents=True)
    return PretrainJob(
        config=config, model=config.model, dataset=dataset.path, vocab_size=payload.vocab_size, seq_len=32, positions=32, special_ids=payload.special_ids, out=out,
        states=out / "work" / "run", first_step=0, last_step=config.max_steps, previous=None, init=None, remote=config.states,
    )  # fmt: skip


def test_a_step_tells_speed_mfu_waiting_stall_memory_and_what_remains(tmp_path):
    job = job_of(tmp_path)
    config, out = job.config, job.out
    run_pretraining(job, Place(0, 1, 1))
    lines = read_metrics(out / METRICS)
    assert [line["step"] for line in lines] == list(range(1, 7))
    flops = config.model.flops_per_token(448, 32)
    for line in lines:
        # The record's FLOPs follow from the Hugging Face config, which counts the norms' few weights in.
        assert line["mfu"] == pytest.approx(line["tokens_per_s"] * flops / 1e11, rel=0.01, abs=1e-4)
        assert 0 <= line["data_wait_s"] < 8 * 32 / line["tokens_per_s"] + 0.01
        assert line["peak_gb"] > 0.1
        assert line["lr"] > 0
        assert line["grad_norm"] > 0
    # A state was written after the third step, and its time stands in the fourth's line.
    assert [line["checkpoint_s"] > 0 for line in lines] == [False, False, False, True, False, False]
    assert lines[0]["eta_s"] is None
    assert lines[-1]["eta_s"] == 0


def test_a_worker_with_an_empty_folder_goes_on_from_object_storage(s3_server, monkeypatch, tmp_path):
    at(s3_server, monkeypatch)
    bucket = Bucket(s3_server, "runs")
    whole, job = job_of(tmp_path / "whole"), job_of(tmp_path / "half", states="s3://runs/base")
    run_pretraining(whole, Place(0, 1, 1))
    stopping._asked.set()
    with pytest.raises(stopping.Stopped):
        run_pretraining(job, Place(0, 1, 1))
    stopping._asked.clear()
    assert "base/step-000000001/state.json" in bucket.keys()  # noqa: SIM118  it is no mapping
    shutil.rmtree(job.states)
    RemoteStates(str(job.remote)).fetch(job.states)
    run_pretraining(job, Place(0, 1, 1))
    assert [line["loss"] for line in read_metrics(job.out / METRICS)] == [line["loss"] for line in read_metrics(whole.out / METRICS)]
    bucket.remove()
