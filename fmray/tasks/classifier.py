"""The face of a sequence classification model: opened, started from a pretrained one, asked, saved.

Shapes: N or B rows, T positions, K labels.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import ArtifactError, ConfigError
from fmray.model.checkpoint import read_hf_config

Rows = dict[str, NDArray[Any]]

LONGEST = 512
SCRATCH_SEED = 1_000_003
_SAFELY = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}


@dataclass
class Classifier:
    """A Hugging Face sequence classification model with its tokenizer, in float32 on one device.

    No code in a model's directory is run and no pickle is read.
    """

    model: Any
    tokenizer: Any

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names by index."""
        names = self.model.config.id2label
        return tuple(str(names[index]) for index in range(len(names)))

    @classmethod
    def load(cls, path: Path, device: str | None = None) -> "Classifier":
        """Opens a directory that `save` (or Hugging Face) wrote, ready to be asked.

        Raises:
            ArtifactError: it is no model directory, or it has no classification head.
        """
        from transformers import AutoModelForSequenceClassification

        config, tokenizer = _open(path)
        if not any("SequenceClassification" in name for name in config.architectures or ()):
            raise ArtifactError("has no sequence classification head", where=str(path), todo="give a checkpoint that finetune or search made")
        with _quiet():
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=_float32(), **_SAFELY)
        return cls(model.to(_device(device)).eval(), tokenizer)

    @classmethod
    def start(cls, path: Path, labels: Sequence[str], *, seed: int, from_scratch: bool = False, device: str | None = None) -> "Classifier":
        """A model with a fresh head for `labels` on the weights in `path`, or on random ones of the same shape (the control).

        Raises:
            ArtifactError: it is no model directory, or transformers knows no classification head for its architecture.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        config, tokenizer = _open(path)
        # What was tuned is asked as its own tokenizer frames a text; what starts here is framed as it was pretrained.
        _frame_as_in_pretraining(tokenizer)
        if type(config) not in AutoModelForSequenceClassification._model_mapping:
            raise ArtifactError(f"the architecture '{config.model_type}' has no sequence classification head", where=str(path))
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        # Pretraining may have begun from this very seed; the control is to be another draw than what it began with.
        torch.manual_seed(seed + SCRATCH_SEED if from_scratch else seed)
        with _quiet():
            if from_scratch:
                model = AutoModelForSequenceClassification.from_config(config, dtype=_float32())
            else:
                model = AutoModelForSequenceClassification.from_pretrained(path, config=config, dtype=_float32(), **_SAFELY)
        return cls(model.to(_device(device)), tokenizer)

    def longest(self, max_length: int | None) -> int:
        """The number of tokens that texts are cut to, which the tokenizer keeps as its own: `max_length`, or by default all of
        the model's positions up to 512.

        Raises:
            ConfigError: the model has fewer positions than `max_length`.
        """
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if max_length is not None and limit is not None and max_length > limit:
            raise ConfigError(f"is {max_length}, but the model has {limit} positions", where="max_length", todo=f"use at most {limit}")
        self.tokenizer.model_max_length = max_length or min(LONGEST, limit or LONGEST)
        return int(self.tokenizer.model_max_length)

    def encode(self, texts: Sequence[str], max_length: int) -> Rows:
        """Token ids of each text, cut at `max_length` and padded on the right to the longest.

        Exactly what `tokenizer(text, truncation=True, max_length=max_length)` gives, so that whoever opens the exported
        directory feeds the model what it was tuned on.

        Returns:
            `input_ids_BT` int64 and `attention_mask_BT` int64.
        """
        encoded = self.tokenizer(list(texts), truncation=True, max_length=max_length, padding=True, padding_side="right", return_tensors="np")
        return {
            "input_ids_BT": encoded["input_ids"].astype(np.int64),
            "attention_mask_BT": encoded["attention_mask"].astype(np.int64),
        }

    def logits(self, rows: Rows, batch_size: int = 64) -> NDArray[np.float32]:
        """Logits [N, K] of encoded rows, computed without dropout in batches of similar length."""
        import torch

        lengths_N = rows["attention_mask_BT"].sum(axis=1)
        order_N = np.argsort(lengths_N, kind="stable")
        logits_NK = np.empty((len(order_N), len(self.labels)), dtype=np.float32)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order_N), batch_size):
                picked = order_N[start : start + batch_size]
                batch = trim({name: column[picked] for name, column in rows.items()})
                output = self.model(
                    input_ids=torch.from_numpy(batch["input_ids_BT"]).to(self.model.device),
                    attention_mask=torch.from_numpy(batch["attention_mask_BT"]).to(self.model.device),
                )
                logits_NK[picked] = output.logits.float().cpu().numpy()
        self.model.train(was_training)
        return logits_NK

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face directory: config with id2label, safetensors, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def trim(rows: Rows) -> Rows:
    """Drops the columns that are padding in every row: batches cost what their longest row costs."""
    width = max(1, int(rows["attention_mask_BT"].sum(axis=1).max()))
    return {name: column[:, :width] if name.endswith("_BT") else column for name, column in rows.items()}


def _open(path: Path) -> tuple[Any, Any]:
    read_hf_config(path)
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"is not a Hugging Face model directory ({first})", where=str(path), todo="check the path") from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ArtifactError("its tokenizer has neither a padding nor an end token, so rows cannot be batched", where=str(path))
        tokenizer.pad_token = tokenizer.eos_token
    return config, tokenizer


def _frame_as_in_pretraining(tokenizer: Any) -> None:
    """Makes a tokenizer that puts nothing behind a text put the document's end there (and its beginning in front), as pretraining did.

    The head of a decoder reads the last position: of a whole document that is the end token, where nothing was predicted, so
    that tuning is free to gather the document there. What the tokenizer puts in front by itself stays as it is, so that nothing
    comes twice; one that puts something behind is an encoder's and left alone.
    """
    text = "a"
    framed, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), None)
    if at is None or len(framed) > at + len(plain):
        return
    from tokenizers.processors import TemplateProcessing

    front = tokenizer.convert_ids_to_tokens(framed[:at]) or [token for token in (tokenizer.bos_token,) if token is not None]
    behind = [token for token in (tokenizer.eos_token,) if token is not None]
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {*front, *behind}]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=" ".join([*front, "$A", *behind]), special_tokens=special)


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _float32() -> Any:
    import torch

    return torch.float32


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns at length that the head is new; here that is the purpose."""
    from transformers.utils import logging

    verbosity: Any = logging
    level, bar = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
    verbosity.set_verbosity_error()
    verbosity.disable_progress_bar()
    try:
        yield
    finally:
        verbosity.set_verbosity(level)
        if bar:
            verbosity.enable_progress_bar()
