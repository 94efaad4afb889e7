"""The stage pretrain on real Ray Train workers: what it leaves, what it survives, what it refuses."""

import json
import os
import signal
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmray.core.errors import ArtifactError, ConfigError, ResourceError
from fmray.model.checkpoint import hf_digest
from fmray.model.language_model import LanguageModel
from fmray.train.pretrain import LEDGER
from tests.data import made
from tests.distributed.running import curve, kill_a_worker_after, pretrain
from tests.train.dataset import VOCAB_SIZE, token_dataset

pytestmark = pytest.mark.usefixtures("ray_session")


def test_it_learns_and_says_what_it_made(watched):
    artifact, watcher = watched
    payload, lines = artifact.payload, curve(artifact.path)
    assert [step for step, _, _ in lines] == list(range(1, 41))
    assert lines[-1][1] < 0.8 * lines[0][1]
    assert (payload.head, payload.architecture, payload.vocab_size) == ("causal_lm", "llama", 448)
    assert (payload.step, payload.tokens_seen) == (40, 40 * 8 * 32)
    # 320 positions of 100 rows: three epochs and twenty rows.
    assert (payload.cursor.epoch, payload.cursor.row) == (3, 20)
    assert payload.n_params == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(artifact.path).parameters())
    assert payload.digest == hf_digest(artifact.path)
    assert payload.cost.flops > 6 * payload.n_params * payload.tokens_seen
    assert payload.figures["perf/tokens_per_s"] > 0
    assert artifact.record.provenance.device_hours > 0
    assert [told[1] for told in watcher.told if told[1] is not None][-1] == 40
    assert sorted(p.name for p in (artifact.path / "work" / "train").glob("step-*")) == ["step-000000040"]


def test_the_artifact_opens_with_transformers_alone_and_with_the_same_logits(quiet):
    path = quiet.path
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(path)(ids).logits
        ours = LanguageModel.load(path, device="cpu").model(ids).logits
    assert torch.equal(theirs, ours)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.decode(tokenizer("the anchor and the mast")["input_ids"]) == f"{tokenizer.bos_token}the anchor and the mast"
    assert len(tokenizer) == VOCAB_SIZE
    config = AutoModelForCausalLM.from_pretrained(path).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)


def test_a_killed_worker_changes_nothing(quiet, dataset, tmp_path):
    root = tmp_path / "base"
    killed_at = kill_a_worker_after(root, 14)
    artifact = pretrain(root, dataset, ledger=True)
    assert 14 <= killed_at() < 40
    assert curve(root) == curve(quiet.path)
    assert artifact.payload.digest == quiet.payload.digest
    proof = json.loads((root / LEDGER).read_text())
    assert proof["proven"]
    assert (proof["n_read"], proof["world_sizes"]) == (320, [2, 2])
    assert proof["n_void"] > 0
    assert (artifact.payload.figures["data/rows_read"], artifact.payload.figures["data/rows_repeated"]) == (320, 0)


def test_sigterm_to_a_worker_loses_no_step_and_is_no_failure(quiet, dataset, tmp_path):
    root = tmp_path / "base"
    asked_at = kill_a_worker_after(root, 13, signal.SIGTERM)
    artifact = pretrain(root, dataset, ledger=True, max_failures=0)
    assert 13 <= asked_at() < 40
    assert curve(root) == curve(quiet.path)
    assert artifact.payload.digest == quiet.payload.digest
    proof = json.loads((root / LEDGER).read_text())
    assert proof["proven"]
    # Two attempts, and no step was computed twice.
    assert (proof["n_read"], proof["n_void"], proof["world_sizes"]) == (320, 0, [2, 2])


def test_a_round_goes_on_where_the_one_before_ended(quiet, dataset, tmp_path):
    second = pretrain(tmp_path / "base@2", dataset, previous=quiet, max_steps=20)
    assert (second.payload.step, second.payload.tokens_seen) == (60, 60 * 8 * 32)
    assert second.payload.parent == quiet.fingerprint
    lines = curve(second.path)
    assert [step for step, _, _ in lines] == list(range(41, 61))
    # Weights, optimizer and position in the data are those of the round before: the loss goes on, and does not start at chance.
    assert abs(lines[0][1] - curve(quiet.path)[-1][1]) < 0.6
    assert (second.payload.cursor.epoch, second.payload.cursor.row) == (4, 80)


def test_more_workers_than_the_cluster_has_is_refused_after_a_bounded_wait(dataset, tmp_path):
    begun = time.monotonic()
    with pytest.raises(ResourceError, match="CPU: 16 asked, 8 there") as error:
        pretrain(tmp_path / "base", dataset, num_workers=8, cpus_per_worker=2, wait_s=1.0)
    assert error.value.exit_code == 2
    assert time.monotonic() - begun < 30
    with pytest.raises(ResourceError, match="GPU: 2 asked, 0 there"):
        pretrain(tmp_path / "gpu", dataset, use_gpu=True, wait_s=0.0)


def test_a_fault_that_would_come_again_is_told_at_once(tmp_path):
    dataset = token_dataset(tmp_path / "corpus")
    shard = dataset.path / "train" / "part-00000.parquet"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(ArtifactError, match="cannot be read as a shard") as error:
        pretrain(tmp_path / "base", dataset)
    assert "\n" not in str(error.value)
    assert str(shard) in str(error.value)


def test_what_does_not_fit_is_refused_before_any_worker_starts(quiet, dataset, tmp_path):
    with pytest.raises(ConfigError, match="needs either `model` or `init`"):
        pretrain(tmp_path / "a", dataset, model=None)
    with pytest.raises(ConfigError, match="needs either `model` or `init`"):
        pretrain(tmp_path / "b", dataset, init=quiet)
    with pytest.raises(ConfigError, match="global_batch_size 128 is more than the 100 rows"):
        pretrain(tmp_path / "c", dataset, global_batch_size=128)
    pictures = made.dataset(tmp_path / "pictures", [64], 16, image_shape=(4, 4, 1))
    with pytest.raises(ConfigError, match=r"objective causal_lm trains on text, and corpus holds image"):
        pretrain(tmp_path / "p", pictures)
    longer = token_dataset(tmp_path / "longer", seq_len=64)
    with pytest.raises(ConfigError, match="rows of 64 positions are longer than the 32"):
        pretrain(tmp_path / "d", longer, model=None, init=quiet)
    other = token_dataset(tmp_path / "other", vocab_size=300)
    with pytest.raises(ConfigError, match="another vocabulary"):
        pretrain(tmp_path / "e", other, model=None, init=quiet)
    assert not [p for p in tmp_path.iterdir() if p.name in "abcde"]
