"""What lies in a model's directory is read and never run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmray.core.errors import ArtifactError
from fmray.model.language_model import LanguageModel
from fmray.serve.engines.opening import opened

CODE = "open({marker!r}, 'w').close()\nfrom transformers import LlamaConfig, LlamaForCausalLM\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\nclass Own(LlamaForCausalLM):\n    pass\n"
OPENERS = {
    "a head": lambda path: opened("AutoModelForCausalLM", path, "cpu", 1),
    "a language model": lambda path: LanguageModel.load(path, "cpu"),
}


@pytest.fixture
def model(copy_of: Callable[..., Path]) -> Path:
    return copy_of("base") / "base"


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_code_beside_the_weights_is_not_run(model: Path, opener: str, model_type: str) -> None:
    """A type that transformers has is opened as its own; one that only the code knows is refused."""
    marker = model.parent / "ran"
    (model / "own.py").write_text(CODE.format(marker=str(marker)))
    told = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (model / "config.json").write_text(json.dumps({**told, "model_type": model_type, "auto_map": auto_map}))
    if model_type == "llama":
        OPENERS[opener](model)
    else:
        with pytest.raises(ArtifactError, match="cannot be opened") as refused:
            OPENERS[opener](model)
        assert refused.value.exit_code == 2
        assert "\n" not in str(refused.value)
    assert not marker.exists()


@pytest.mark.parametrize("opener", OPENERS)
def test_a_pickle_is_not_read(model: Path, opener: str) -> None:
    torch.save({"weight": torch.zeros(1)}, model / "pytorch_model.bin")
    OPENERS[opener](model)
    for file in model.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ArtifactError, match=r"it has no \*\.safetensors weights") as refused:
        OPENERS[opener](model)
    assert refused.value.exit_code == 2
