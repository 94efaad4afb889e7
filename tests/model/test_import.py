"""The import stage: a directory from outside becomes a checkpoint, or one clear line."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fmray.core.errors import ArtifactError, ConfigError
from fmray.core.stage import STAGES, Job, produce
from fmray.model.architectures.bart import Bart
from fmray.model.architectures.encoder import Encoder
from fmray.model.architectures.t5 import T5
from fmray.model.architectures.vit_mae import VitMae
from fmray.model.checkpoint import hf_digest
from fmray.model.export import image_processor
from fmray.model.import_ import ImportConfig, check_directory
from fmray.model.language_model import LanguageModel
from fmray.objectives.contrastive import Contrastive
from fmray.objectives.denoising import Denoising
from fmray.objectives.masked_image import MaskedImage
from fmray.objectives.masked_lm import MaskedLM
from fmray.objectives.span_corruption import SpanCorruption
from fmray.train.config import PretrainConfig
from fmray.train.worker import PretrainJob, build_model
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
    with pytest.raises(ConfigError, match=r"does not say what it was pretrained with, so its encoder head cannot be measured; .* tune this one on a task first"):
        produce(job, redo=False, watcher=None)


def save(architecture, objective, tokenizer, folder, image_shape=None):
    """A random model with its tokenizer or image processor, as its authors would save it."""
    config = architecture.fit(image_shape).hf_config(0 if image_shape else 448, 64)
    if not image_shape:
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    objective.configure(config)
    torch.manual_seed(0)
    model = getattr(transformers, objective.auto_class).from_config(config)
    model.save_pretrained(folder)
    if image_shape:
        (folder / "preprocessor_config.json").write_text(json.dumps(image_processor(config)))
    else:
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_are_imported_and_training_begins_with_their_weights(kind, saved, tmp_path):
    architecture, objective = {
        "t5": (T5(num_layers=2, d_model=48, num_heads=2, d_kv=24, d_ff=96), SpanCorruption()), "bart": (Bart(num_layers=2, d_model=48, num_heads=2, ffn_dim=96), Denoising())
    }[kind]  # fmt: skip
    theirs = save(architecture, objective, saved, tmp_path / "outside")
    artifact, _ = run(tmp_path / "outside", tmp_path / "base")
    assert (artifact.payload.head, artifact.payload.architecture, artifact.payload.vocab_size) == ("seq2seq_lm", kind, 448)
    assert artifact.payload.n_params == architecture.count_params(448, 64) == sum(p.numel() for p in theirs.parameters())
    begins_with(theirs, artifact, objective, tmp_path)


def test_image_autoencoders_are_imported_and_training_begins_with_their_weights(saved, tmp_path):
    theirs = save(VitMae(num_hidden_layers=2, patch_size=4), MaskedImage(), saved, tmp_path / "outside", (16, 16, 3))
    artifact, _ = run(tmp_path / "outside", tmp_path / "base")
    assert (artifact.payload.head, artifact.payload.architecture, artifact.payload.vocab_size) == ("masked_image", "vit_mae", 0)
    begins_with(theirs, artifact, MaskedImage(mask_ratio=0.5), tmp_path)
    processor = tmp_path / "outside" / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"image_mean": [0.485, 0.456, 0.406]}))
    with pytest.raises(ArtifactError, match=r"reads pixels with image_mean \[0.485, 0.456, 0.406\] .*, and fmray gives them from -1 to 1"):
        run(tmp_path / "outside", tmp_path / "again")
    processor.unlink()
    with pytest.raises(ArtifactError, match=r"has no preprocessor_config\.json beside its weights; save the image processor"):
        run(tmp_path / "outside", tmp_path / "again")


def test_a_masked_language_model_becomes_the_beginning_of_a_contrastive_one(saved, tmp_path):
    theirs = save(Encoder(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=96), MaskedLM(), saved, tmp_path / "outside")
    artifact, _ = run(tmp_path / "outside", tmp_path / "base")
    ours = begins_with(theirs.bert, artifact, Contrastive(dropout=0.2), tmp_path)
    assert {module.p for module in ours.modules() if isinstance(module, torch.nn.Dropout)} == {0.2}


def begins_with(theirs, artifact, objective, tmp_path):
    """The model that a pretraining step with `init` builds; it has the weights of `theirs`."""
    config = PretrainConfig(objective=objective, global_batch_size=2, max_steps=1)
    job = PretrainJob(
        config=config, model=None, dataset=tmp_path, vocab_size=400, seq_len=32, positions=32, special_ids={}, out=tmp_path, states=tmp_path,
        first_step=0, last_step=1, previous=None, init=artifact.path,
    )  # fmt: skip
    ours = build_model(job)
    weights = ours.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(weights[name], value), name
    return ours


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["BartModel"]}, "holds BartModel, and of encoder-decoders only those of text with their language model are known: t5"),
        ({"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}, "holds WhisperForConditionalGeneration"),
        ({"architectures": ["T5WithLMHeadModel"], "model_type": "t5"}, None),
    ],
)
def test_of_encoder_decoders_those_of_text_with_their_head_are_taken(saved, tmp_path, changes, said):
    save(Bart(num_layers=1, d_model=48, num_heads=2, ffn_dim=96), Denoising(), saved, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    if said is None:
        assert check_directory(tmp_path)["model_type"] == "t5"
        return
    with pytest.raises(ArtifactError, match=said):
        check_directory(tmp_path)


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
