"""The largest micro-batch, found by taking steps within a declared bound of memory."""

import re
import subprocess
import sys

import pytest
import yaml

from fmray.core.config import load_config
from fmray.core.errors import ConfigError, RunError
from fmray.core.experiment import load_experiment
from fmray.train.config import PretrainConfig
from fmray.train.trying import sizes
from tests.train.dataset import token_dataset

# A row of 512 positions takes some 150 MiB of activations in float32.
WIDE = {"type": "decoder", "num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
STEP = {"stage": "pretrain", "model": WIDE, "global_batch_size": 16, "max_steps": 2, "num_workers": 1, "engine": "torch"}


def config(**changes):
    return load_config(PretrainConfig, {"model": {"type": "decoder"}, "global_batch_size": 24, "max_steps": 1} | changes, "base")


def test_sizes_divide_the_rows_of_every_worker_that_there_may_be():
    assert sizes(config(num_workers=2)) == [1, 2, 3, 4, 6, 12]
    assert sizes(config(num_workers={"min": 1, "max": 3})) == [1, 2, 4]
    lone = config(num_workers=2, model={"type": "encoder"}, objective={"type": "contrastive"})
    assert sizes(lone) == [12]


@pytest.fixture
def experiment(tmp_path):
    """An experiment file beside a dataset of long rows."""
    dataset = token_dataset(tmp_path / "corpus", n_rows=64, seq_len=512)

    def write(**changes):
        path = tmp_path / "try.yaml"
        path.write_text(yaml.safe_dump({"name": "try", "steps": {"base": STEP | {"dataset": {"artifact": str(dataset.path)}} | changes}}))
        return path

    return write


@pytest.mark.slow
def test_it_grows_until_a_step_does_not_fit(experiment):
    path = experiment(precision="fp32", device={"memory_gb": 1.3})
    done = subprocess.run([sys.executable, "-m", "fmray", "check", str(path), "--try-micro-batch"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = re.sub(r"\s+", " ", done.stdout)
    best = int(re.search(r"micro-batch tried: (\d+) of 16 rows in 1.3 GiB a worker", told)[1])
    assert 1 <= best < 16
    tried = re.findall(r"(\d+): (?:([\d.]+) [GM]iB, [\d.]+ s a pass|does not fit)", told)
    assert [int(rows) for rows, _ in tried] == [2**n for n in range(len(tried))]
    assert int(tried[-2][0]) == best
    assert f"{2 * best}: does not fit" in told


@pytest.mark.slow
def test_deepspeed_is_tried_as_it_runs(experiment):
    path = experiment(engine="deepspeed", num_workers=2, global_batch_size=4, zero={"stage": 2}, device={"memory_gb": 8.0})
    experiment_ = load_experiment(path)
    ((step, lines),) = experiment_.trials(["base"])
    assert step.name == "base"
    assert lines["micro-batch tried"].startswith("2 of 2 rows in 8 GiB a worker\n  1: ")


def test_what_is_not_there_yet_cannot_be_tried(tmp_path):
    path = tmp_path / "try.yaml"
    steps = {"corpus": {"stage": "prepare", "source": {"type": "python_docs"}, "vocab_size": 300, "seq_len": 32}, "base": STEP | {"dataset": "corpus"}}
    path.write_text(yaml.safe_dump({"name": "try", "steps": steps}, sort_keys=False))
    with pytest.raises(ConfigError, match="base: is tried on what corpus makes, which is not there yet"):
        list(load_experiment(path, storage=str(tmp_path / "runs")).trials(["corpus", "base"]))


@pytest.mark.slow
def test_a_step_that_fails_otherwise_is_told(experiment):
    path = experiment(deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}, "optimizer": {"type": "NoSuch"}}, engine="deepspeed", global_batch_size=2, num_workers=2)
    with pytest.raises((RunError, ConfigError), match="NoSuch"):
        list(load_experiment(path).trials(["base"]))
