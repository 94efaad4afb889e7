"""The face of a model with a task's head: opened, started from a pretrained one, asked, saved.

Shapes: B rows, T positions, K labels.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import ArtifactError, ConfigError
from fmray.model.adapter import save_adapter
from fmray.model.checkpoint import Head
from fmray.model.positions import n_positions
from fmray.tasks.starting import (
    SAFELY,
    frame_as_in_pretraining,
    head_class,
    open_model,
    require_body,
    require_fit,
    spelled,
)

Rows = dict[str, NDArray[Any]]
Outputs = tuple[NDArray[Any], ...]
Method = Literal["full", "frozen", "lora"]

LONGEST = 512
SCRATCH_SEED = 1_000_003
AUTO_CLASSES: dict[Head, str] = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "masked_lm": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
}
LABELLED: tuple[Head, ...] = ("sequence_classification", "token_classification")
"""Heads of tasks that have labels."""
FRESH: tuple[Head, ...] = (*LABELLED, "question_answering")
"""Heads that no pretrained model brings along; the others are weights of the model itself."""
INPUTS = {"input_ids_BT": "input_ids", "attention_mask_BT": "attention_mask", "token_type_ids_BT": "token_type_ids"}
"""Columns of rows, and the model's own names for them."""


class LoraShape(Protocol):
    """The size of low-rank adapters."""

    @property
    def rank(self) -> int:
        """Their inner width."""

    @property
    def alpha(self) -> int:
        """What they are scaled by, over the rank."""

    @property
    def dropout(self) -> float:
        """The share of their inputs that is dropped in training."""


@dataclass
class Classifier:
    """A Hugging Face model with the head of a task and its tokenizer, in float32 on one device.

    No code in a model's directory is run and no pickle is read. `missing` names the weights below the head that the directory it started
    from has not, so that they were drawn with the head.
    """

    model: Any
    tokenizer: Any
    head: Head = "sequence_classification"
    missing: frozenset[str] = frozenset()

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names by index."""
        names = self.model.config.id2label
        return tuple(str(names[index]) for index in range(len(names)))

    @classmethod
    def load(cls, path: Path, device: str | None = None, head: Head = "sequence_classification") -> "Classifier":
        """Opens a directory that `save` (or Hugging Face) wrote, ready to be asked.

        Raises:
            ArtifactError: it is no model directory, or it has not this head.
        """
        config, tokenizer = open_model(path)
        auto = _auto(AUTO_CLASSES[head])
        if getattr(head_class(config, auto, head), "__name__", None) not in (config.architectures or ()):
            raise ArtifactError(f"has no {spelled(head)} head", where=str(path), todo="give a checkpoint that finetune or search made")
        with _quiet():
            model = auto.from_pretrained(path, dtype=_float32(), **SAFELY)
        return cls(model.to(_device(device)).eval(), tokenizer, head)

    @classmethod
    def start(
        cls, path: Path, labels: Sequence[str], *, seed: int, from_scratch: bool = False, device: str | None = None,
        head: Head = "sequence_classification", problem: str | None = "single_label_classification",
    ) -> "Classifier":  # fmt: skip
        """A model with a fresh head for `labels` on the weights in `path`, or on random ones of the same shape (the control).

        Args:
            labels: empty for a head without labels.
            problem: the `problem_type` that its config.json is to keep.

        Raises:
            ArtifactError: it is no model directory, transformers knows no such head for its architecture, or its tokenizer holds
                tokens that it has no embeddings for.
        """
        import torch

        config, tokenizer = opened_for(path, head)
        # What was tuned is asked as its own tokenizer frames a text; what starts here is framed as it was pretrained.
        # What a decoder is to write on must not end, so there tasks put the tokens around a text themselves.
        if head != "causal_lm":
            frame_as_in_pretraining(tokenizer)
        auto = _auto(AUTO_CLASSES[head])
        if labels:
            config.num_labels = len(labels)
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
        if problem is not None:
            config.problem_type = problem
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        # Pretraining may have begun from this very seed; the control is to be another draw than what it began with.
        torch.manual_seed(seed + SCRATCH_SEED if from_scratch else seed)
        missing: frozenset[str] = frozenset()
        with _quiet():
            if from_scratch:
                model = auto.from_config(config, dtype=_float32())
            else:
                model, told = auto.from_pretrained(path, config=config, dtype=_float32(), output_loading_info=True, **SAFELY)
                missing = require_body(model, set(told["missing_keys"]), path)
        return cls(model.to(_device(device)), tokenizer, head, missing)

    def train_only(self, method: Method, lora: "LoraShape") -> None:
        """Chooses which weights are tuned: all of them, the head alone (`frozen`), or the head and low-rank adapters of every linear
        layer (`lora`: Hu et al. 2021, https://arxiv.org/abs/2106.09685, by peft). What is `missing` is tuned with the head.

        Raises:
            ConfigError: `lora` is asked for and peft is not installed.
        """
        if method == "full":
            return
        body = self.model.base_model
        children = self.model.named_children() if self.head in FRESH else ()
        fresh = [name for name, child in children if child is not body and any(True for _ in child.parameters())]
        if method == "frozen":
            for name, parameter in body.named_parameters(prefix=self.model.base_model_prefix):
                parameter.requires_grad_(name in self.missing)
            return
        fresh += sorted({name.rpartition(".")[0] for name in self.missing if self.head in FRESH})
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ConfigError("method lora needs peft", where="method", todo="pip install 'fmray[lora]'") from None
        self.model = get_peft_model(self.model, LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", exclude_modules=fresh or None, modules_to_save=fresh or None,
        ))

    def longest(self, max_length: int | None) -> int:
        """The number of tokens that texts are cut to, which the tokenizer keeps as its own: `max_length`, or by default all of
        the model's positions up to 512.

        Raises:
            ConfigError: the model has fewer positions than `max_length`.
        """
        limit = _positions_for(self.model.config, max_length)
        self.tokenizer.model_max_length = max_length or min(LONGEST, limit or LONGEST)
        return int(self.tokenizer.model_max_length)

    def encode(self, texts: Sequence[str], max_length: int) -> Rows:
        """Token ids of each text (see the function `encode`)."""
        return encode(self.tokenizer, texts, max_length)

    def logits(self, rows: Rows, batch_size: int = 64) -> NDArray[np.float32]:
        """The first of `outputs`: of a sequence classifier its logits [B, K]."""
        return self.outputs(rows, batch_size)[0]

    def outputs(self, rows: Rows, batch_size: int = 64) -> Outputs:
        """The logits of encoded rows, computed without dropout in batches of similar length.

        Returns:
            By head: [B, K]; [B, T, K]; or, of a question, the starts [B, T] and the ends [B, T]. Padding has the lowest float32.
        """
        given = {name: rows[name] for name in INPUTS if name in rows}

        def compute(batch: Mapping[str, Any]) -> list[Any]:
            return [logits.float() for logits in logits_of(self.model(**inputs_of(batch)), self.head)]

        return self.each(given, batch_size, compute, fill=float(np.finfo(np.float32).min))

    def each(self, rows: Rows, batch_size: int, compute: Callable[[Mapping[str, Any]], Sequence[Any]], *, fill: float) -> Outputs:
        """What `compute` says of batches of rows of similar length, put together in the order of the rows.

        Args:
            compute: is given the columns of a batch on the model's device, without dropout and gradients, and gives tensors or arrays
                [B, ...]; where they are narrower than those of another batch they are filled up with `fill`.
        """
        import torch

        order_B = np.argsort(rows["attention_mask_BT"].sum(axis=1), kind="stable")
        found: list[list[NDArray[Any]]] = []
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order_B), batch_size):
                picked = order_B[start : start + batch_size]
                batch = trim({name: column[picked] for name, column in rows.items()})
                given = {name: torch.from_numpy(np.ascontiguousarray(column)).to(self.model.device) for name, column in batch.items()}
                found.append([part if isinstance(part, np.ndarray) else part.cpu().numpy() for part in compute(given)])
        self.model.train(was_training)
        return tuple(_together(parts, order_B, fill) for parts in zip(*found, strict=True))

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face directory: config with id2label, safetensors with adapters merged in, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            merged(self.model).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


    def save_adapter(self, folder: Path) -> None:
        """Writes the low-rank adapter by itself, as peft does, into a folder; nothing where there is none."""
        if hasattr(self.model, "merge_and_unload"):
            save_adapter(self.model, folder)


def encode(tokenizer: Any, texts: Sequence[str], max_length: int, pairs: Sequence[str] | None = None) -> Rows:
    """Token ids of each text (and its pair), cut at `max_length` and padded on the right to the longest.

    Exactly what `tokenizer(text, truncation=True, max_length=max_length)` gives, so that whoever opens the exported
    directory feeds the model what it was tuned on.

    Returns:
        `input_ids_BT`, `attention_mask_BT`, and for pairs `token_type_ids_BT` if the tokenizer tells them apart, all int64.
    """
    encoded = tokenizer(
        list(texts), *(() if pairs is None else (list(pairs),)), truncation=True, max_length=max_length, padding=True, padding_side="right",
        return_tensors="np",
    )  # fmt: skip
    return model_inputs(encoded, pairs is not None)


def model_inputs(encoded: Mapping[str, Any], pairs: bool) -> Rows:
    """The columns that a model reads, from what a tokenizer gave."""
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if pairs and "token_type_ids" in encoded else [])]
    return {f"{name}_BT": np.asarray(encoded[name]).astype(np.int64) for name in names}


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a batch that a model reads, under its own names."""
    return {INPUTS[name]: batch[name] for name in INPUTS if name in batch}


def logits_of(output: Any, head: Head) -> tuple[Any, ...]:
    """The logits of a model's output, by its head."""
    return (output.start_logits, output.end_logits) if head == "question_answering" else (output.logits,)


def opened_for(path: Path, head: Head, max_length: int | None = None) -> tuple[Any, Any]:
    """The config and the tokenizer of a model that a head can be put on; none of its weights is read.

    Raises:
        ArtifactError: see `Classifier.start`.
        ConfigError: the model has fewer positions than `max_length`.
    """
    config, tokenizer = open_model(path)
    if head_class(config, _auto(AUTO_CLASSES[head]), head) is None:
        raise ArtifactError(f"the architecture '{config.model_type}' has no {spelled(head)} head", where=str(path), todo="give a model of another architecture")
    require_fit(config, tokenizer, path)
    _positions_for(config, max_length)
    return config, tokenizer


def _positions_for(config: Any, max_length: int | None) -> int | None:
    """The positions of a model, None where it has no limit. Raises ConfigError where they are fewer than `max_length`."""
    limit = n_positions(config)
    if max_length is not None and limit is not None and max_length > limit:
        raise ConfigError(f"is {max_length}, but the model has {limit} positions", where="max_length", todo=f"use at most {limit}")
    return limit


def trim(rows: Rows) -> Rows:
    """Drops the positions that are padding in every row: batches cost what their longest row costs.

    `mask_BU` says which positions of a second sequence, along U, are no padding.
    """
    widths = {mask[-3:]: max(1, int(rows[mask].sum(axis=1).max())) for mask in ("attention_mask_BT", "mask_BU") if mask in rows}
    return {name: column[:, : widths[name[-3:]]] if name[-3:] in widths else column for name, column in rows.items()}


def _together(parts: Sequence[NDArray[Any]], order_B: NDArray[np.int64], fill: float) -> NDArray[Any]:
    """Arrays of batches, one behind the other in `order_B`, as one array in the order of the rows."""
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int) if parts[0].ndim > 1 else ()
    whole = np.full((len(order_B), *shape), fill, parts[0].dtype)
    start = 0
    for part in parts:
        place: Any = (order_B[start : start + len(part)], *(slice(length) for length in part.shape[1:]))
        whole[place] = part
        start += len(part)
    return whole


def merged(model: Any) -> Any:
    """The model itself; one with adapters as a copy with these merged into its weights, so that it opens without peft."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return copy.deepcopy(model).merge_and_unload()


def _auto(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


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
