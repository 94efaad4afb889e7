"""Exports open again with the same logits: as Hugging Face directories, and as GGUF by transformers and by llama.cpp itself."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from fmray.core.errors import ArtifactError, ConfigError, RunError
from fmray.model.conversion import export_checkpoint, stored_entries
from fmray.model.tensor_file import INDEX
from tests.train.tiny import save_decoder

TEXT = "the captain saw the harbour, and then 42 onions were very much in the oven.\n\n  Again it's near."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A decoder with fewer keys than queries, a vocabulary padded beyond the tokenizer's, and weights that tell layers and heads apart."""
    folder = tmp_path_factory.mktemp("base")
    save_decoder(folder, max_positions=128)
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim = 448, 4, 2, 12
    config.rope_parameters = {"rope_type": "default", "rope_theta": 5000.0}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        # Some, as training does it, so that a norm left out or a head out of place shows.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def ids(folder):
    return torch.tensor([AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]])


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(tokens).logits


def test_a_directory_in_another_precision_and_in_shards(base, tmp_path):
    export_checkpoint(base, tmp_path / "out", dtype="bfloat16", shard_size="50KB")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert all((tmp_path / "out" / file).stat().st_size < 52_000 for file in files)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert opened.dtype == torch.bfloat16
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert torch.equal(logits(opened, ids(base)), logits(theirs, ids(base)))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)["input_ids"] == ids(base)[0].tolist()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["dtype"] == "bfloat16"
    # As it was: the same bytes a tensor; and the shards go together again.
    export_checkpoint(tmp_path / "out", tmp_path / "again", dtype="float32")
    assert len(stored_entries(tmp_path / "again")) == len(stored_entries(base))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("dtype", "apart"), [(None, 1e-4), ("float16", 0.02), ("bfloat16", 0.2)])
def test_gguf_opens_with_transformers_and_the_same_logits(base, tmp_path, dtype, apart):
    pytest.importorskip("gguf")
    export_checkpoint(base, tmp_path / "model.gguf", form="gguf", dtype=dtype)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(base)
    assert (logits(opened, ids(base)) - logits(ours, ids(base))).abs().max() < apart
    assert logits(ours, ids(base)).abs().max() > 1
    assert opened.config.rope_parameters["rope_theta"] == 5000.0
    if dtype is None:
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        assert tokenizer(TEXT)["input_ids"] == ids(base)[0].tolist()


def test_llama_cpp_reads_the_same_tokens_and_gives_the_same_logits(base, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    export_checkpoint(base, tmp_path / "model.gguf", form="gguf")
    model = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    tokens = model.tokenize(TEXT.encode(), special=False)
    assert tokens == ids(base)[0].tolist()
    model.eval(tokens)
    found = np.array(model.scores[: len(tokens)])
    expected = logits(AutoModelForCausalLM.from_pretrained(base), ids(base))[0].numpy()
    # Its cache of keys and values holds float16.
    assert np.abs(found - expected).max() < 0.02


def test_an_encoder_is_exported_but_not_as_gguf(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)).save_pretrained(tmp_path / "bert")
    export_checkpoint(tmp_path / "bert", tmp_path / "half", dtype="float16")
    assert AutoModel.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.float16
    with pytest.raises(ArtifactError, match="is a model of the type bert, and only llama is written; export it as safetensors"):
        export_checkpoint(tmp_path / "bert", tmp_path / "x.gguf", form="gguf")


def altered(base, folder, name, **changes):
    """The checkpoint with one of its JSON files changed."""
    folder.mkdir()
    for path in base.iterdir():
        os.link(path, folder / path.name)
    found = json.loads((folder / name).read_text()) | changes
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}}, "with rotary positions of the type llama3"),
        ("config.json", {"attention_bias": True}, "with biases"),
        ("config.json", {"architectures": ["LlamaModel"]}, "without its language model's head"),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "changes texts first"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "splits texts in a way"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "has a Unigram tokenizer"),
    ],
)
def test_what_has_no_form_in_gguf_is_refused(base, tmp_path, name, changes, message):
    with pytest.raises(ArtifactError, match=message):
        export_checkpoint(altered(base, tmp_path / "model", name, **changes), tmp_path / "x.gguf", form="gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "onnx"}, "--format: 'onnx' is none of safetensors, gguf"),
        ({"dtype": "int4"}, "--dtype: 'int4' is none of float32, bfloat16, float16"),
        ({"shard_size": "5"}, "--shard-size: '5' is no size such as 5GB"),
        ({"shard_size": "0GB"}, "--shard-size: '0GB' is no size"),
    ],
)
def test_wrong_options_are_one_line(base, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        export_checkpoint(base, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_or_written_is_one_line(base, tmp_path):
    with pytest.raises(ConfigError, match="is there already"):
        export_checkpoint(base, tmp_path)
    with pytest.raises(ArtifactError, match="is not a directory"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    unfinished = altered(base, tmp_path / "unfinished", "config.json")
    (unfinished / "started.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is unfinished"):
        export_checkpoint(unfinished, tmp_path / "out")
    cut = altered(base, tmp_path / "cut", "config.json")
    (cut / "model.safetensors").unlink()
    (cut / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="is not a whole safetensors file"):
        export_checkpoint(cut, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        export_checkpoint(base, tmp_path / "file" / "out")
    assert not list(tmp_path.glob(".*"))


def test_the_command_prints_where_it_wrote_and_ends_with_its_exit_code(base, tmp_path):
    command = [sys.executable, "-m", "fmray", "export", str(base)]
    done = subprocess.run([*command, str(tmp_path / "out"), "--dtype", "float16"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "out")
    again = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
