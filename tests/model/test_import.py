"""The import stage: a directory from outside becomes a checkpoint, or one clear line."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fmray.core.errors import ArtifactError
from fmray.core.stage import STAGES, Job, produce
from fmray.model.checkpoint import hf_digest
from fmray.model.import_ import ImportConfig
from fmray.model.language_model import LanguageModel
from tests.models import minilm
from tests.train.tiny import save_decoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    save_decoder(folder)
    (folder / "notes.txt").write_text("no part of the model")
    return folder


def run(path, root):
    job = Job(name="base", round=1, spec=STAGES["import"], config=ImportConfig(path=str(path)), arguments={}, inputs={}, plugins={}, root=root)
    return produce(job, redo=False, watcher=None)


def test_imports_and_is_cached_by_content(saved, tmp_path):
    artifact, state = run(saved, tmp_path / "base")
    assert state == "done"
    assert artifact.payload.head == "causal_lm"
    assert artifact.payload.architecture == "llama"
    assert artifact.payload.digest == hf_digest(saved) == hf_digest(artifact.path)
    assert not (artifact.path / "notes.txt").exists()
    ids = np.arange(12).reshape(1, 12) + 5
    ours = LanguageModel.load(artifact.path).model(torch.as_tensor(ids)).logits
    assert torch.equal(ours, AutoModelForCausalLM.from_pretrained(saved)(torch.as_tensor(ids)).logits)
    elsewhere = shutil.copytree(saved, tmp_path / "elsewhere")
    assert run(elsewhere, tmp_path / "base")[1] == "cached"
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    with pytest.raises(ArtifactError, match=r"files.config.json: .* -> "):
        run(elsewhere, tmp_path / "base")


def test_a_classifier_keeps_its_labels(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "classifier")
    model = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=2, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    model.save_pretrained(folder)
    payload = run(folder, tmp_path / "base")[0].payload
    assert payload.head == "sequence_classification"
    assert payload.labels == ("no", "yes")


def test_an_encoder_without_a_head_is_one(tmp_path):
    artifact, _ = run(minilm(), tmp_path / "base")
    assert artifact.payload.head == "encoder"
    assert artifact.payload.labels == ()
    job = Job("report", 1, STAGES["evaluate"], STAGES["evaluate"].config(), {"checkpoint": artifact}, {"checkpoint": ""}, {}, tmp_path / "report")
    with pytest.raises(ArtifactError, match="the head encoder, which says nothing to measure; tune it on a task first"):
        produce(job, redo=False, watcher=None)


def _unnamed(root):
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "architectures": ["BertForPreTraining"]}))


def _lost_shard(root):
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors", "b": "model.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "is not a directory"),
        (lambda root: [(root / name).unlink() for name in ("config.json", "model.safetensors")], "is not a model checkpoint"),
        (lambda root: (root / "tokenizer.json").unlink(), "no tokenizer"),
        (_unnamed, "holds BertForPreTraining"),
        (_lost_shard, "lacks 1 of its 2 weight files"),
    ],
)
def test_what_is_no_checkpoint_is_one_line_and_leaves_nothing(saved, tmp_path, spoil, said):
    folder = shutil.copytree(saved, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(ArtifactError, match=said) as error:
        run(folder, tmp_path / "base")
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert not (tmp_path / "base").exists()
