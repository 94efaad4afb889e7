"""Every kind of pretraining through Ray Train: it learns, opens with its Auto class, is measured, and refuses what does not fit."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from fmray.core.errors import ConfigError
from fmray.model.fresh import fresh_model
from tests.data import made
from tests.distributed.running import curve, pretrain
from tests.train.dataset import token_dataset
from tests.train.tiny import run

pytestmark = pytest.mark.usefixtures("ray_session")

ENCODER = {"type": "encoder", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
AUTOENCODER = {"type": "vit_mae", "patch_size": 4, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return token_dataset(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """One document a row."""
    return token_dataset(tmp_path_factory.mktemp("data") / "lone", unpacked=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Bars at one of eight places, which the visible patches of a column tell."""
    artifact = made.dataset(tmp_path_factory.mktemp("data") / "images", [120], 16, image_shape=(16, 16, 1))
    for shard in artifact.payload.shards:
        pixels = np.zeros((shard.rows, 16, 16), np.uint8)
        for i, column in enumerate(2 * np.random.default_rng(shard.rows).integers(0, 8, shard.rows)):
            pixels[i, :, column : column + 2] = 255
        table = pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 256), "labels": pa.array(np.zeros(shard.rows, np.int64))})
        pq.write_table(table, artifact.path / shard.name, row_group_size=16)
    return artifact


@pytest.fixture(scope="module")
def words(text, tmp_path_factory):
    """An encoder that has read words."""
    objective = {"type": "masked_lm", "share": 0.2}
    return pretrain(tmp_path_factory.mktemp("words") / "base", text, model=ENCODER, objective=objective, max_steps=60, optim={"lr": 5e-3, "warmup_steps": 5})


@pytest.mark.slow
def test_a_masked_language_model_learns_is_measured_and_becomes_a_classifier(words, text, tmp_path):
    artifact, lines = words, curve(words.path)
    assert np.mean([loss for _, loss, _ in lines[-5:]]) < 0.85 * lines[0][1]
    assert (artifact.payload.head, artifact.payload.architecture, artifact.payload.objective["share"]) == ("masked_lm", "bert", 0.2)
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(artifact.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert artifact.payload.n_params == sum(p.numel() for p in model.parameters())
    assert transformers.AutoTokenizer.from_pretrained(artifact.path).mask_token == "<|mask|>"
    report = run("evaluate", {"control_rows": 4, "num_cpus": 1}, tmp_path / "eval", checkpoint=artifact, dataset=text)
    found = {metric.name: metric for metric in report.payload.metrics}
    assert found["eval/loss"].value < found["eval/loss"].control
    assert found["eval/loss"].lower < found["eval/loss"].value < found["eval/loss"].upper
    assert 0 < found["eval/accuracy"].value <= 1
    assert found["eval/unigram_loss"].value < np.log(400)
    assert len((report.path / "examples.jsonl").read_text().splitlines()) == 8
    assert transformers.AutoModelForSequenceClassification.from_pretrained(artifact.path, num_labels=3)(torch.tensor([[1, 5, 2]])).logits.shape == (1, 3)


@pytest.mark.slow
def test_a_model_of_dna_learns_from_a_fasta_file(tmp_path):
    """Pieces of A and T, and pieces of G and C: the letters around a hidden one halve what it may be, and how often each is found does not."""
    draw = np.random.default_rng(0)
    pieces = ["".join(draw.choice(list(("AT", "GC")[i % 2]), size=draw.integers(36, 56))) for i in range(320)]
    (tmp_path / "pieces.fa").write_text("".join(f">piece{i}\n{piece}\n" for i, piece in enumerate(pieces)))
    source = {"type": "fasta", "path": str(tmp_path / "pieces.fa"), "alphabet": "dna"}
    rows = {"tokenizer": {"type": "character"}, "vocab_size": 32, "seq_len": 64, "packing": {"type": "unpacked"}, "validation_fraction": 0.1}
    dataset = run("prepare", {"source": source, **rows}, tmp_path / "corpus")
    model = {**ENCODER, "variant": "esm"}
    artifact = pretrain(tmp_path / "base", dataset, model=model, objective={"type": "masked_lm"}, max_steps=80, optim={"lr": 5e-3, "warmup_steps": 5})
    assert (artifact.payload.head, artifact.payload.architecture) == ("masked_lm", "esm")
    report = run("evaluate", {"control_rows": 4, "num_cpus": 1}, tmp_path / "eval", checkpoint=artifact, dataset=dataset)
    found = {metric.name: metric for metric in report.payload.metrics}
    assert np.log(2) < found["eval/loss"].upper < 0.75 * found["eval/unigram_loss"].value < 0.75 * np.log(5)


@pytest.mark.slow
def test_an_image_autoencoder_learns_and_beats_the_mean_image(images, tmp_path):
    artifact = pretrain(
        tmp_path / "base", images, model=AUTOENCODER, objective={"type": "masked_image", "normalised": False}, max_steps=60,
        optim={"lr": 3e-3, "warmup_steps": 5}, zero={"stage": 3},
    )  # fmt: skip
    assert (artifact.payload.head, artifact.payload.architecture, artifact.payload.vocab_size) == ("masked_image", "vit_mae", 0)
    assert artifact.payload.tokens_seen == 60 * 8 * 16
    assert artifact.payload.cost.flops > 0
    model, info = transformers.AutoModelForPreTraining.from_pretrained(artifact.path, output_loading_info=True)
    assert not info["missing_keys"]
    # What is not trained is exported from shards too: the sines of the positions, in the precision that training had them in.
    fixed = {name: value for name, value in fresh_model(transformers.AutoModelForPreTraining, model.config).named_parameters() if not value.requires_grad}
    assert fixed
    assert all(torch.allclose(model.state_dict()[name], value, atol=0.005) for name, value in fixed.items())
    assert (model.config.mask_ratio, model.config.norm_pix_loss) == (0.75, False)
    processor = json.loads((artifact.path / "preprocessor_config.json").read_text())
    assert (processor["image_mean"], processor["size"]) == ([0.5], {"height": 16, "width": 16})
    report = run("evaluate", {"control_rows": 4, "num_cpus": 1}, tmp_path / "eval", checkpoint=artifact, dataset=images)
    found = {metric.name: metric for metric in report.payload.metrics}
    assert found["eval/loss"].value < found["eval/mean_image_loss"].value < found["eval/loss"].control
    assert "eval/accuracy" not in found


@pytest.mark.slow
def test_document_denoising_learns_and_writes_what_was_hidden(lone, tmp_path):
    model = {"type": "bart", "num_layers": 2, "d_model": 64, "num_heads": 2, "ffn_dim": 128}
    artifact = pretrain(tmp_path / "base", lone, model=model, objective={"type": "denoising"}, max_steps=60, num_workers=1, optim={"lr": 5e-3, "warmup_steps": 5})
    assert (artifact.payload.head, artifact.payload.architecture) == ("seq2seq_lm", "bart")
    opened, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(artifact.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert artifact.payload.n_params == sum(p.numel() for p in opened.parameters())
    assert (opened.config.decoder_start_token_id, opened.config.forced_eos_token_id) == (2, None)
    assert opened.generate(torch.tensor([[1, 5, 3, 2]]), max_new_tokens=4).shape[0] == 1
    report = run("evaluate", {"control_rows": 4, "num_cpus": 1}, tmp_path / "eval", checkpoint=artifact, dataset=lone)
    found = {metric.name: metric for metric in report.payload.metrics}
    assert found["eval/loss"].upper < found["eval/unigram_loss"].value < found["eval/loss"].control


@pytest.mark.slow
def test_an_encoder_that_read_words_learns_to_tell_texts_apart(words, lone, tmp_path):
    artifact = pretrain(tmp_path / "base", lone, init=words, model=None, objective={"type": "contrastive"}, max_steps=40, optim={"lr": 1e-3, "warmup_steps": 5})
    assert (artifact.payload.head, artifact.payload.architecture, artifact.payload.parent) == ("encoder", "bert", words.fingerprint)
    assert (words.payload.cost.flops / 60) < (artifact.payload.cost.flops / 40) < 2 * (words.payload.cost.flops / 60)
    opened, info = transformers.AutoModel.from_pretrained(artifact.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert artifact.payload.n_params == sum(p.numel() for p in opened.parameters())
    assert opened.config.hidden_dropout_prob == 0.1
    lines = curve(artifact.path)
    assert np.mean([loss for _, loss, _ in lines[-5:]]) < 0.7 * lines[0][1]
    report = run("evaluate", {"num_cpus": 1}, tmp_path / "eval", checkpoint=artifact, dataset=lone)
    found = {metric.name: metric for metric in report.payload.metrics}
    assert found["eval/loss"].value < found["eval/loss"].control
    assert found["eval/uniformity"].value < found["eval/uniformity"].control
    assert len((report.path / "examples.jsonl").read_text().splitlines()) == 8


def test_what_does_not_fit_together_is_refused_before_any_worker_starts(text, lone, images, tmp_path):
    with pytest.raises(ConfigError, match="objective masked_image trains on image, and corpus holds text"):
        pretrain(tmp_path / "a", text, model=AUTOENCODER, objective={"type": "masked_image"})
    with pytest.raises(ConfigError, match="objective causal_lm trains on text, and corpus holds image"):
        pretrain(tmp_path / "b", images)
    with pytest.raises(ConfigError, match="objective masked_lm trains an architecture of the family encoder, and model decoder is of decoder"):
        pretrain(tmp_path / "c", text, objective={"type": "masked_lm"})
    with pytest.raises(ConfigError, match="this encoder reads one document a row"):
        pretrain(tmp_path / "d", text, model=ENCODER | {"variant": "esm"}, objective={"type": "masked_lm"})
    with pytest.raises(ConfigError, match="keeps documents that share a row apart with attention sdpa only"):
        pretrain(tmp_path / "e", text, model=ENCODER, objective={"type": "masked_lm"}, attention="eager")
    with pytest.raises(ConfigError, match="rows of one document each"):
        pretrain(tmp_path / "f", text, model={"type": "t5"}, objective={"type": "span_corruption"})
    with pytest.raises(ConfigError, match="contrastive tells documents apart and trains on rows of one document each"):
        pretrain(tmp_path / "h", text, model=ENCODER, objective={"type": "contrastive"})
    with pytest.raises(ConfigError, match="leave micro_batch_size out"):
        pretrain(tmp_path / "i", lone, model=ENCODER, objective={"type": "contrastive"}, micro_batch_size=1)
    with pytest.raises(ConfigError, match="not a multiple of patch_size 5"):
        pretrain(tmp_path / "g", images, model=AUTOENCODER | {"patch_size": 5}, objective={"type": "masked_image"})
    with pytest.raises(ConfigError, match="models of the type gpt2 have no flex_attention"):
        pretrain(tmp_path / "j", text, model={"type": "gpt2"}, attention="flex_attention", use_gpu=True)
    assert not [p for p in tmp_path.iterdir() if p.name in "abcdefghij"]
