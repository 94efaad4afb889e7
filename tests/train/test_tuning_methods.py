"""What fine-tuning may be told: which weights, which labels weigh more, when to end; and heads that a model cannot have."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fmray.core.config import load_config
from fmray.core.errors import ArtifactError, ConfigError
from fmray.model.adapter import ADAPTER, adapter_digest, merge, read_adapter, require_fit
from fmray.model.checkpoint import hf_digest
from fmray.tasks import Split, TaskData
from fmray.tasks.classifier import Classifier, merged
from fmray.train.tuning import Epochs, Tuned, TuningConfig, label_weights, tune_classifier
from tests.models import minilm
from tests.tasks.made import instructions, several, words
from tests.train import tiny
from tests.train.tiny import config_of, tune


def body(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.base_model.state_dict())


@pytest.mark.parametrize("encoder", [False, True])
def test_frozen_tunes_the_head_alone(start: Path, path: Path, encoder: bool) -> None:
    source = minilm() if encoder else start
    tuned = tune(config_of(path, method="frozen", epochs=1, max_length=24), source)
    fresh = Classifier.start(source, tuned.classifier.labels, seed=0)
    assert all(torch.equal(value, body(tuned.classifier.model)[name]) for name, value in body(fresh.model).items())
    head = "classifier" if encoder else "score"
    assert not torch.equal(getattr(tuned.classifier.model, head).weight, getattr(fresh.model, head).weight)


@pytest.mark.parametrize("method", ["frozen", "lora"])
def test_what_the_checkpoint_lacks_below_the_head_is_tuned_with_it(path: Path, tmp_path: Path, method: str) -> None:
    tiny.save_encoder(tmp_path)  # a masked language model has no pooler, which a BERT's classifier reads
    tuned = tune(config_of(path, method=method, epochs=1, max_length=24), tmp_path)
    fresh = Classifier.start(tmp_path, tuned.classifier.labels, seed=0)
    assert fresh.missing == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    before, after = body(fresh.model), body(merged(tuned.classifier.model))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"pooler.dense.weight", "pooler.dense.bias"} <= changed
    assert method == "lora" or changed == {"pooler.dense.weight", "pooler.dense.bias"}
    assert "embeddings.word_embeddings.weight" not in changed
    assert Classifier.start(tmp_path, tuned.classifier.labels, seed=0, from_scratch=True).missing == frozenset()


@pytest.mark.parametrize("encoder", [False, True])
def test_lora_is_merged_into_a_plain_directory(start: Path, path: Path, tmp_path: Path, encoder: bool) -> None:
    source = minilm() if encoder else start
    tuned = tune(config_of(path, method="lora", lora={"rank": 4}, epochs=1 if encoder else 2, max_length=24), source)
    shapes = {name: value.shape for name, value in Classifier.start(source, tuned.classifier.labels, seed=0).model.state_dict().items()}
    trained = sum(p.numel() for p in tuned.classifier.model.parameters() if p.requires_grad)
    assert trained < 0.3 * sum(shape.numel() for shape in shapes.values())
    rows = tuned.classifier.encode([text for text, _ in tiny.labelled(5)], 24)
    before = tuned.classifier.logits(rows)
    tuned.save(tmp_path / "epoch")
    np.testing.assert_array_equal(tuned.classifier.logits(rows), before, err_msg="saving must leave the adapters as they are")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "epoch" / "model")
    assert {name: value.shape for name, value in plain.state_dict().items()} == shapes
    np.testing.assert_allclose(Classifier.load(tmp_path / "epoch" / "model").logits(rows), before, atol=2e-5)
    assert not list((tmp_path / "epoch" / "model").glob("adapter*"))
    fresh = body(Classifier.start(source, tuned.classifier.labels, seed=0).model)
    assert any(not torch.equal(value, body(plain)[name]) for name, value in fresh.items() if "proj" in name or "dense" in name)


def test_an_adapter_is_kept_unmerged_beside_the_model(ray_session: None, path: Path, tmp_path: Path) -> None:
    """In the artifact of a causal model: with its base it makes the very model that is judged."""
    base = tiny.base_model(tmp_path / "base")
    config = {"task": instructions(tmp_path), "epochs": 1, "method": "lora", "lora": {"rank": 2}, "max_length": 24, "optim": {"lr": 1e-2}}
    made = tiny.run("finetune", config, tmp_path / "tuned", checkpoint=base)
    adapter = read_adapter(made.path / ADAPTER)
    require_fit(adapter, base.path)
    assert (made.payload.parent, made.payload.adapter_digest) == (base.fingerprint, adapter_digest(made.path / ADAPTER))
    model: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype="float32")
    merge(adapter, model)
    kept = AutoModelForCausalLM.from_pretrained(made.path, dtype="float32").state_dict()
    assert all(torch.allclose(value, kept[name], atol=1e-6) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, kept[name]) for name, value in AutoModelForCausalLM.from_pretrained(base.path, dtype="float32").state_dict().items())
    assert made.payload.digest == hf_digest(made.path)
    tune(config_of(path, epochs=1), base.path).save(tmp_path / "whole")
    assert not (tmp_path / "whole" / ADAPTER).exists()


def test_lora_resumed_equals_uninterrupted(start: Path, path: Path, tmp_path: Path) -> None:
    config, epochs = config_of(path, method="lora", epochs=2), Epochs(tmp_path)

    def stop(tuned: Tuned) -> bool:
        epochs.add(tuned)
        return False

    tune_classifier(config, start, config.task.load(), on_epoch=stop)
    resumed, whole = tune(config, start, resume=epochs.latest()), tune(config, start)
    assert resumed.progress == whole.progress


def test_patience_ends_it_and_is_remembered(start: Path, path: Path) -> None:
    config = config_of(path, epochs=9, patience=2, optim={"lr": 1e-12})
    assert tune(config, start).progress.epoch == 3
    assert not config.ends_after([0.1, 0.2, 0.3, 0.3])
    assert config.ends_after([0.1, 0.3, 0.2, 0.3])
    assert config.ends_after([0.1] * 9)
    assert not config.ends_after([])
    assert not config_of(path, epochs=9).ends_after([0.3, 0.2, 0.1, 0.1])


def test_balanced_weights_are_those_of_scikit_learn(start: Path, path: Path, tmp_path: Path) -> None:
    config = config_of(path, class_weights="balanced")
    labels = [0] * 6 + [1] * 3 + [2]
    data = TaskData(("a", "b", "c"), {"train": Split(tuple(map(str, labels)), tuple(labels))}, "")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(label_weights(config, data), expected)
    assert label_weights(config_of(path), data) is None
    other = load_config(TuningConfig, {"task": several(tmp_path), "class_weights": "balanced"})
    data = TaskData(("a", "b"), {"train": Split(("x",) * 4, ([0], [0, 1], [0], []))}, "")
    np.testing.assert_allclose(label_weights(other, data), [1 / 3, 3])
    losses = [tune(config_of(path, class_weights=how, epochs=1, task=tiny.task(path, max_examples=60)), start).progress.losses for how in (None, "balanced")]
    assert losses[0] != losses[1]


def test_the_metric_is_one_of_the_tasks(path: Path, tmp_path: Path) -> None:
    assert config_of(path).metric == "macro_f1"
    tags = words(tmp_path)
    assert load_config(TuningConfig, {"task": tags}).metric == "span_f1"
    for fields, message in (
        ({"task": tags, "metric": "span_f"}, "the task entities has no metric 'span_f', did you mean 'span_f1'?; known: span_f1"),
        ({"task": tags, "metric": "macro_f1"}, "has no metric 'macro_f1'"),
        ({"task": tiny.task(path), "metric": "ece"}, "has no metric 'ece'"),
        ({"task": tiny.task(path), "method": "adapter"}, "method"),
        ({"task": {"type": "question_answering", "source": {"type": "squad", "path": "x"}}, "class_weights": "balanced"}, "has no labels to weigh"),
        ({"task": {"type": "fill_mask", "source": {"type": "text", "path": "x"}}, "class_weights": "balanced"}, "has no labels to weigh"),
        ({"task": {"type": "fill_mask", "source": {"type": "text", "path": "x"}}, "method": "frozen"}, "method: frozen tunes a new head alone, and the task masks adds none"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(TuningConfig, fields)
        assert message in str(caught.value)
        assert caught.value.exit_code == 2


def test_a_head_that_an_architecture_has_not_and_a_tokenizer_that_does_not_fit(start: Path, tmp_path: Path) -> None:
    import json

    shutil.copytree(start, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"], "vocab_size": config["vocab_size"]}))
    for head, word in (("token_classification", "token classification"), ("question_answering", "question answering")):
        with pytest.raises(ArtifactError, match=f"the architecture 'vit' has no {word} head"):
            Classifier.start(tmp_path / "other", "ab", seed=0, head=head)
    shutil.copytree(start, tmp_path / "small")
    (tmp_path / "small" / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(ArtifactError, match="its tokenizer has 400 tokens and the model embeddings for 300: they do not fit"):
        Classifier.start(tmp_path / "small", "ab", seed=0)
    with pytest.raises(ArtifactError, match="has no token classification head"):
        Classifier.load(start, head="token_classification")
