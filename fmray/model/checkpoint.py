"""What a checkpoint says about itself: an artifact whose directory is itself a Hugging Face directory."""

import fnmatch
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fmray.core.artifact import Payload, tree_digest
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError
from fmray.core.report import Cost
from fmray.model.watched import Watched

Head = Literal[
    "causal_lm", "masked_lm", "seq2seq_lm", "masked_image", "encoder", "sequence_classification", "token_classification", "question_answering"
]

# What `from_pretrained` reads. Records, logs and work folders beside them are no part of the model.
HF_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "chat_template.jinja", "preprocessor_config.json",
)  # fmt: skip
# Constants that weight files hold beside the parameters: BART's bias of zeros, ESM's rotary frequencies.
BUFFERS = ("final_logits_bias", "inv_freq")
TOKENIZER_FILES = tuple(name for name in HF_FILES if name not in ("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json"))


class LossPoint(BaseModel):
    """The training loss (nats a target, mean over one global batch) at an optimizer step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float


class Trial(BaseModel):
    """One trial of a search: its hyperparameters, how it ended, its score and the score after each epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial_id: str
    config: dict[str, Any]
    status: str
    score: float | None
    history: tuple[float, ...] = ()
    wall_s: float | None = None
    note: str = ""


class Checkpoint(Payload, kind="checkpoint"):
    """A model that initialises another run, is evaluated or served.

    `digest` is the sha256 over the Hugging Face files (relative names and contents). `step` counts optimizer steps and
    `tokens_seen` the positions trained on, both summed over all rounds; None and 0 mean that it was not trained here.
    `objective` is the config of what it was pretrained with here. `adapter_digest` is that of the low-rank adapter which lies unmerged in
    `adapter/` and of which the model is the sum with its parent.
    """

    head: Head
    architecture: str
    digest: str
    n_params: int
    vocab_size: int
    step: int = 0
    tokens_seen: int = 0
    cursor: Cursor | None = None
    losses: tuple[LossPoint, ...] = ()
    parent: str | None = None
    objective: dict[str, Any] = {}
    task: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    figures: dict[str, float] = {}
    watched: Watched = Watched()
    cost: Cost | None = None
    adapter_digest: str | None = None


def hf_files(root: Path) -> list[str]:
    """The sorted names of the Hugging Face files that lie in a directory."""
    return sorted(p.name for p in root.iterdir() if p.is_file() and any(fnmatch.fnmatchcase(p.name, pattern) for pattern in HF_FILES))


def tokenizer_files(root: Path) -> list[str]:
    """The sorted names of the tokenizer's files that lie in a directory."""
    return sorted(p.name for p in root.iterdir() if p.is_file() and any(fnmatch.fnmatchcase(p.name, pattern) for pattern in TOKENIZER_FILES))


def hf_digest(root: Path) -> str:
    """sha256 over the names and contents of the Hugging Face files of a directory."""
    return tree_digest(root, hf_files(root))


def read_hf_config(root: Path) -> Mapping[str, Any]:
    """The `config.json` of a Hugging Face directory.

    Raises:
        ArtifactError: the directory is not there, or holds no readable config.json or no safetensors weights.
    """
    todo = "give a directory that `save_pretrained` wrote (config.json and safetensors weights)"
    if not root.is_dir():
        raise ArtifactError("is not a directory", where=str(root), todo=todo)
    try:
        config = json.loads((root / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "it has no config.json" if isinstance(error, FileNotFoundError) else f"its config.json cannot be read: {error}"
        raise ArtifactError(f"is not a model checkpoint ({reason})", where=str(root), todo=todo) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ArtifactError("is not a model checkpoint (its config.json names no model_type)", where=str(root), todo=todo)
    if not any(root.glob("*.safetensors")):
        raise ArtifactError("is not a model checkpoint (it has no *.safetensors weights)", where=str(root), todo=todo)
    return config


def count_weights(root: Path) -> int:
    """The number of parameters stored in a directory's safetensors files, read from their headers alone.

    Tensors that share storage are saved once by `save_pretrained`, so tied embeddings count once. Constants are no parameters.

    Raises:
        ArtifactError: a file whose header is damaged or truncated.
    """
    total = 0
    for file in sorted(root.glob("*.safetensors")):
        total += sum(math.prod(shape) for name, shape in tensor_shapes(file).items() if not name.endswith(BUFFERS))
    return total


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file, read from its header alone.

    Raises:
        ArtifactError: its header is damaged or truncated.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        shapes = {name: tuple(int(length) for length in entry["shape"]) for name, entry in entries.items()}
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        if max(ends, default=0) != file.stat().st_size - 8 - length:
            raise ValueError("its length is not what its header says")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"is not a whole safetensors file ({error})", where=str(file), todo="copy the checkpoint again") from None
    return shapes
