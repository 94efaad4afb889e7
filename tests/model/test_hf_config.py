"""Shapes from a Hugging Face config file: what is built, counted and kept apart, and files that describe nothing that is trained here."""

import json
import pickle

import pytest
import torch
import transformers

from fmray.core.config import Config, load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures import Architecture
from fmray.model.architectures.hf_config import AUTO_CLASSES, FAMILIES, HFConfig
from fmray.model.flops import flops_per_token
from fmray.objectives.causal_lm import CausalLM
from tests.train.rows import VOCAB, packed_rows

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40, "head_dim": 16}
OWN = {
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48},
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}  # fmt: skip
KINDS = [(family, kind) for family, kinds in FAMILIES.items() for kind in kinds]


class Holder(Config):
    model: Architecture


@pytest.fixture
def file(tmp_path):
    def write(kind, **changes):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": 9, "pad_token_id": 0, "eos_token_id": 7} | OWN.get(kind, SMALL) | changes))
        return tmp_path

    return write


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_it_counts_what_is_built_for_the_datasets_vocabulary(file, family, kind):
    shape = load_config(Holder, {"model": {"type": "hf_config", "path": str(file(kind))}}).model
    assert shape.family == family
    model = getattr(transformers, AUTO_CLASSES[family]).from_config(shape.hf_config(VOCAB, 32))
    assert model.get_input_embeddings().num_embeddings == VOCAB
    assert shape.count_params(VOCAB, 32) == sum(p.numel() for p in model.parameters())
    assert shape.flops_per_token(VOCAB, 32) > 6 * 2 * 32 * 48


@pytest.mark.parametrize("kind", FAMILIES["decoder"])
def test_documents_of_a_row_do_not_see_each_other(file, kind):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(HFConfig(path=str(file(kind))).hf_config(VOCAB, 32)).eval()
    rows = packed_rows(2, 32)
    changed = {name: values.copy() for name, values in rows.items()}
    first = rows["segment_ids_BT"] == 1
    changed["input_ids_BT"][first] = (rows["input_ids_BT"][first] + 9) % VOCAB
    seen = []

    def watched(**inputs):
        seen.append(model(**inputs))
        return seen[-1]

    for each in (rows, changed):
        CausalLM().loss(watched, CausalLM().collate(each))
    assert torch.equal(seen[0].logits[torch.as_tensor(~first)], seen[1].logits[torch.as_tensor(~first)])


def test_its_content_and_not_its_place_is_what_it_is(file, tmp_path):
    here = HFConfig(path=str(file("llama"))).identity()
    (tmp_path / "other.json").write_text((tmp_path / "config.json").read_text())
    assert HFConfig(path=str(tmp_path / "other.json")).identity() == here
    assert HFConfig(path=str(file("llama", hidden_size=64))).identity() != here


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "nowhere"}, "cannot be read"),
        ({"kind": "wav2vec2"}, "which no objective here trains"),
        ({"text": "[]"}, "holds no JSON object"),
        ({"text": "{"}, "cannot be read"),
    ],
)
def test_a_file_that_describes_nothing_to_train_is_refused(file, change, said):
    folder = file(change.get("kind", "llama"))
    if "text" in change:
        (folder / "config.json").write_text(change["text"])
    with pytest.raises(ConfigError, match=said) as told:
        load_config(Holder, {"model": {"type": "hf_config", "path": change.get("path", str(folder))}})
    assert "\n" not in str(told.value)


def test_a_row_longer_than_its_positions_is_refused(file):
    with pytest.raises(ConfigError, match="has 40 positions and a row 64"):
        HFConfig(path=str(file("gpt2"))).check(64)
    HFConfig(path=str(file("gpt2"))).check(40)


def test_a_file_that_changes_later_changes_nothing(file):
    shape = HFConfig(path=str(file("llama")))
    (file("llama") / "config.json").unlink()
    assert pickle.loads(pickle.dumps(shape)).hf_config(VOCAB, 32).hidden_size == 32


def test_gpt2s_own_words_tell_its_flops_as_well(file):
    shape = HFConfig(path=str(file("gpt2", n_layer=2, n_embd=32, n_head=2)))
    config = shape.hf_config(VOCAB, 32).to_dict()
    assert flops_per_token(config, shape.count_params(VOCAB, 32), 32) == shape.flops_per_token(VOCAB, 32)
