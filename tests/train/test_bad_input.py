"""What cannot work is refused in one line with exit code 2, before Ray is even looked for."""

import json
import os

import pytest
import ray

from fmray.core.artifact import load, write_json
from fmray.core.errors import ArtifactError, ConfigError, FmrayError
from fmray.model.checkpoint import Checkpoint, hf_digest
from tests.distributed.running import pretrain
from tests.train.dataset import token_dataset
from tests.train.tiny import base_model, commit, save_decoder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return token_dataset(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture
def init(dataset, tmp_path):
    """A checkpoint of the dataset's vocabulary."""
    artifact = base_model(tmp_path / "base")
    (artifact.path / "tokenizer.json").write_bytes((dataset.path / "tokenizer" / "tokenizer.json").read_bytes())
    return rewritten(artifact, digest=hf_digest(artifact.path))


def rewritten(artifact, **payload):
    """The artifact with other words in its record."""
    record = artifact.record.model_dump(mode="json")
    record["payload"].update(payload)
    write_json(artifact.path / "record.json", record)
    return load(artifact.path)


def refused(said, where, dataset, **changes):
    """The error of a pretraining in `where`, which leaves nothing and starts nothing."""
    there = ray.is_initialized()
    with pytest.raises(FmrayError, match=said) as error:
        pretrain(where / "run", dataset, **changes)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert ray.is_initialized() == there
    assert not (where / "run" / "work").exists()
    return error.value


def test_a_batch_that_no_arithmetic_makes(dataset, tmp_path):
    refused("global_batch_size 9 does not divide among num_workers 2", tmp_path, dataset, global_batch_size=9)
    refused("do not divide into micro_batch_size 3", tmp_path, dataset, micro_batch_size=3)
    refused("global_batch_size 128 is more than the 100 rows of the training split", tmp_path, dataset, global_batch_size=128)


def test_workers_the_wrong_way_round(dataset, tmp_path):
    refused("num_workers: min 3 is above max 2", tmp_path, dataset, num_workers={"min": 3, "max": 2})


def test_float16_where_no_gpu_is(dataset, tmp_path):
    refused("precision fp16 needs GPUs: set use_gpu: true, or precision: bf16", tmp_path, dataset, precision="fp16")


def test_a_schedule_that_there_is_not(dataset, tmp_path):
    refused("unknown schedule 'cosin', did you mean 'cosine'", tmp_path, dataset, optim={"lr": 1e-3, "schedule": {"type": "cosin"}})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"zero_optimization": {"overlap_com": True}}, r"run\.deepspeed\.overlap_com: DeepSpeed refuses the override: Extra inputs are not permitted"),
        ({"zero_optimization": {"reduce_bucket_size": -4}}, r"run\.deepspeed\.reduce_bucket_size: DeepSpeed refuses the override: Input should be greater than 0"),
        ({"communication_data_type": "int3"}, r"run\.deepspeed: DeepSpeed refuses the override: Invalid communication_data_type"),
        ({"bf16": 3}, r"deepspeed\.bf16: must be a mapping"),
        ({"zero_optimization": 4}, r"deepspeed\.zero_optimization: must be a mapping"),
        ({"fp16": 4}, r"deepspeed\.fp16: must be a mapping"),
    ],
)
def test_an_override_that_deepspeed_refuses(dataset, tmp_path, override, said):
    refused(said, tmp_path, dataset, deepspeed=override)


def test_a_checkpoint_whose_files_are_not_those_of_its_record(dataset, init, tmp_path):
    weights = init.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    error = refused("its files are not those that its record was written for", tmp_path, dataset, model=None, init=init)
    assert isinstance(error, ArtifactError)
    weights.write_bytes(whole[: len(whole) // 2])
    refused("its files are not those that its record was written for", tmp_path, dataset, model=None, init=init)
    os.unlink(weights)
    refused("its files are not those|safetensors", tmp_path, dataset, model=None, init=init)


def test_a_checkpoint_of_another_vocabulary(init, tmp_path):
    other = token_dataset(tmp_path / "other", vocab_size=300)
    refused("corpus was tokenized with another vocabulary than that of base", tmp_path, other, model=None, init=init)


def test_a_checkpoint_of_another_architecture(dataset, init, tmp_path):
    masked = rewritten(init, head="masked_lm")
    refused("base holds a masked_lm head and cannot be pretrained further with an objective for causal_lm", tmp_path, dataset, model=None, init=masked)
    # A file of weights under the config of another shape.
    encoder = tmp_path / "encoder"
    save_decoder(encoder)
    (encoder / "config.json").write_text('{"model_type": "bert"}')
    commit(encoder, Checkpoint(head="masked_lm", architecture="bert", digest=hf_digest(encoder), n_params=1, vocab_size=400), "encoder")
    refused("encoder holds a masked_lm head", tmp_path, dataset, model=None, init=load(encoder))


def test_rows_longer_than_the_positions_of_a_checkpoint(init, tmp_path):
    longer = token_dataset(tmp_path / "longer", seq_len=128)
    refused("rows of 128 positions are longer than the 64 of base", tmp_path, longer, model=None, init=init)


def test_an_architecture_of_another_family(dataset, tmp_path):
    error = refused("objective causal_lm trains an architecture of the family decoder, and model encoder is of encoder", tmp_path, dataset, model={"type": "encoder"})
    assert isinstance(error, ConfigError)


def test_packed_rows_for_a_checkpoint_that_may_not_keep_documents_apart(dataset, init, tmp_path):
    config = json.loads((init.path / "config.json").read_text()) | {"model_type": "opt"}
    (init.path / "config.json").write_text(json.dumps(config))
    odd = rewritten(init, digest=hf_digest(init.path))
    refused("it is not known whether models of the type opt keep documents apart", tmp_path, dataset, model=None, init=odd)


def test_a_gpt2_has_as_many_positions_as_it_says(init, tmp_path):
    config = json.loads((init.path / "config.json").read_text())
    del config["max_position_embeddings"]
    (init.path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2", "n_positions": 64}))
    longer = token_dataset(tmp_path / "longer", seq_len=128)
    refused("rows of 128 positions are longer than the 64 of base", tmp_path, longer, model=None, init=rewritten(init, digest=hf_digest(init.path)))


def test_a_round_whose_states_are_gone(dataset, init, tmp_path):
    before = rewritten(init, step=20)
    refused("holds no state to go on from", tmp_path, dataset, previous=before)
