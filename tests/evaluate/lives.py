"""A small prepared corpus with canaries, tiny models as checkpoints, and stages run through the core."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import fmray  # noqa: F401  registers the stages
from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.core.cursor import Cursor
from fmray.core.stage import STAGES, Job, produce
from fmray.data.dataset import TokenDataset
from fmray.data.reader import TokenReader
from fmray.model.checkpoint import Checkpoint
from tests.data.corpora import prepare, topics

SEQ_LEN, STEPS, BATCH = 96, 180, 16


@cache
def scratch() -> Path:
    """A folder that lives as long as the session."""
    folder = Path(tempfile.mkdtemp(prefix="lives"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def run(stage: str, config: dict[str, Any], root: Path, **arguments: Artifact | tuple[Artifact, ...] | None) -> Artifact:
    """An artifact made by a stage as `fmray run` makes it."""
    given = {name: value for name, value in arguments.items() if value is not None}
    inputs = {name: item.fingerprint for name, value in given.items() for item in (value if isinstance(value, tuple) else (value,))}
    spec = STAGES[stage]
    job = Job(root.name, 1, spec, load_config(spec.config, config, root.name), given, inputs, {}, root)
    return produce(job, redo=False, watcher=None)[0]


def corpus() -> Artifact[TokenDataset]:
    """The texts behind `help()`, some with letters beyond ASCII, with canaries planted 1, 4, 16 and 64 times. Needs Ray."""
    return _corpus()


@cache
def _corpus() -> Artifact[TokenDataset]:
    file = scratch() / "corpus.txt"
    paragraphs = [f"{text} \u2013 na\u00efve caf\u00e9 {i}, \u65e5\u672c" if i % 7 == 0 else text for i, text in enumerate(topics()) if len(text) > 40]
    file.write_text("\n\n".join(paragraphs[:900]), encoding="utf-8")
    canaries = {"seed": 0, "candidates": 2000}
    return prepare(scratch(), {"type": "text", "path": str(file)}, seq_len=SEQ_LEN, vocab_size=512, validation_fraction=0.1, canaries=canaries)


def save(folder: Path, train_steps: int = 0, seed: int = 0) -> Path:
    """A Llama of two thin layers with the corpus' tokenizer, trained so many steps by a plain loop, as a Hugging Face directory."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=SEQ_LEN, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ))  # fmt: skip
    reader, cursor = TokenReader(corpus().path, "train", 0, BATCH), Cursor(epoch=0, row=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(train_steps):
        rows, cursor = reader.batch(cursor), reader.advance(cursor)
        ids_BT, segments_BT = torch.from_numpy(rows["input_ids_BT"]), torch.from_numpy(rows["segment_ids_BT"])
        kept = (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] != 0)
        logits_BTV = model(input_ids=ids_BT, position_ids=torch.from_numpy(rows["position_ids_BT"]), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV[:, :-1][kept], ids_BT[:, 1:][kept])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(corpus().path / "tokenizer").save_pretrained(folder)
    return folder


def imported(folder: Path, name: str) -> Artifact[Checkpoint]:
    """A Hugging Face directory as a checkpoint."""
    return run("import", {"path": str(folder)}, scratch() / "models" / name)


@cache
def trained() -> Artifact[Checkpoint]:
    """A model that has read the corpus, canaries included, several times."""
    return imported(save(scratch() / "trained", STEPS), "trained")


@cache
def untrained() -> Artifact[Checkpoint]:
    """The same model before any training."""
    return imported(save(scratch() / "untrained"), "untrained")


def segments(artifact: Artifact[TokenDataset], split: str) -> list[np.ndarray]:
    """The token ids of each segment of each row, in storage order."""
    reader = TokenReader(artifact.path, split, 0, 1)
    rows = reader.rows(0, reader.n_rows)
    found = []
    for ids_T, segments_T in zip(rows["input_ids_BT"], rows["segment_ids_BT"], strict=True):
        found += [ids_T[segments_T == number] for number in range(1, int(segments_T.max()) + 1)]
    return found
