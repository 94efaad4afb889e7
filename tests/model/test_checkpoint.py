"""What lies in a checkpoint directory: digest, parameter count, damage."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from fmray.core.errors import ArtifactError
from fmray.model.checkpoint import count_weights, hf_digest, hf_files, read_hf_config
from tests.train.tiny import save_decoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_decoder(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_digest_follows_the_model_and_nothing_beside_it(saved, copy):
    assert hf_digest(copy) == hf_digest(saved)
    (copy / "record.json").write_text("{}")
    (copy / "metrics.jsonl").write_text("{}")
    (copy / "work").mkdir()
    assert hf_digest(copy) == hf_digest(saved)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert hf_digest(copy) != hf_digest(saved)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hf_files(saved))


def test_weights_are_counted_from_their_header(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert count_weights(saved) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_weight_file_is_refused(copy, length):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="is not a whole safetensors file"):
        count_weights(copy)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "is not a directory"),
        (lambda root: (root / "config.json").unlink(), "has no config.json"),
        (lambda root: (root / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda root: (root / "config.json").write_text("{}"), "names no model_type"),
        (lambda root: (root / "model.safetensors").unlink(), "no \\*.safetensors weights"),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_refused(copy, spoil, said):
    spoil(copy)
    with pytest.raises(ArtifactError, match=said) as error:
        read_hf_config(copy)
    assert "\n" not in str(error.value)
