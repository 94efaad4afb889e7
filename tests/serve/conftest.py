"""Tiny real models with a tokenizer trained here, hand-made artifacts around them, and one Ray Serve a session."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmray.core.artifact import Artifact, Payload, Provenance, Record, fingerprint, load
from fmray.core.report import Decision, Reason
from fmray.model.checkpoint import Checkpoint, hf_digest

TEXT = (
    "Return the value of the option. Raise an error when the file is missing. "
    "The quick brown fox jumps over the lazy dog; naïve façades cost 5 €. "
)
LABELS = ("email", "json", "os")
MAX_LEN = 96


def save_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<|bos|>", "<|eos|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet))
    raw.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: Path, head: str, seed: int) -> None:
    """A random Llama with a head, large enough in its weights that its answers vary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = save_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_LEN, initializer_range=0.6, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: i for i, label in enumerate(LABELS)}
    (LlamaForCausalLM if head == "causal_lm" else LlamaForSequenceClassification)(config).save_pretrained(folder)


def save_record(folder: Path, name: str, payload: Payload) -> Artifact[Any]:
    """Makes a directory a complete artifact, as the core would."""
    identity = {"stage": "test", "name": name, "payload": payload.model_dump(mode="json")}
    record = Record(
        kind=payload.kind, name=name, stage="test", version=1, round=1, fingerprint=fingerprint(identity), identity=identity,
        config={}, inputs={}, payload=payload.model_dump(mode="json"), wall_s=0.0,
        provenance=Provenance(
            git_commit=None, git_dirty=None, argv=("secret-argument",), host="h", python="3.11", versions={}, devices=(),
            device_hours=0.0, started_at="2026-01-01T00:00:00+00:00",
        ),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record.model_dump(mode="json")))
    return load(folder)


def make_checkpoint(folder: Path, head: str, seed: int) -> Artifact[Checkpoint]:
    save_model(folder, head, seed)
    payload = Checkpoint(
        head=head, architecture="llama", digest=hf_digest(folder), n_params=1, vocab_size=320,
        labels=LABELS if head == "sequence_classification" else (),
    )  # fmt: skip
    return save_record(folder, folder.name, payload)


def make_decision(folder: Path, checkpoint: Artifact[Checkpoint], *, admitted: bool = True) -> Artifact[Decision]:
    reason = Reason(rule="eval/perplexity < 40", observed=3.0 if admitted else 99.0, limit=40.0, passed=admitted)
    payload = Decision(subject=checkpoint.fingerprint, subject_digest=checkpoint.payload.digest, admitted=admitted, reasons=(reason,))
    return save_record(folder, folder.name, payload)


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment's directory: `base` (causal) and `tuned` (classifier), each with an admitting gate."""
    root = tmp_path_factory.mktemp("experiment")
    for name, head, seed in (("base", "causal_lm", 0), ("tuned", "sequence_classification", 1)):
        make_decision(root / f"{name}_gate", make_checkpoint(root / name, head, seed))
    return root


@pytest.fixture(scope="session")
def serve_port(ray_session: None) -> Iterator[int]:
    """The port of the session's one Ray Serve."""
    from ray import serve

    from fmray.serve.application import free_port

    port = free_port("127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


@pytest.fixture
def copy_of(experiment: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies steps of the experiment into a directory of the test's own."""

    def copy(*names: str) -> Path:
        for name in names:
            shutil.copytree(experiment / name, tmp_path / name)
        return tmp_path

    return copy
