"""The face of a model with a task's head: opened, started from a pretrained one, asked, saved.

Shapes: B rows, T positions, K labels.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import ArtifactError, ConfigError
from fmray.model.checkpoint import Head, read_hf_config

Rows = dict[str, NDArray[Any]]
Outputs = tuple[NDArray[np.float32], ...]
Method = Literal["full", "frozen", "lora"]

LONGEST = 512
SCRATCH_SEED = 1_000_003
AUTO_CLASSES: dict[Head, str] = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}
INPUTS = {"input_ids_BT": "input_ids", "attention_mask_BT": "attention_mask", "token_type_ids_BT": "token_type_ids"}
"""Columns of rows, and the model's own names for them."""
POSITIONAL = ("token_classification", "question_answering")
_SAFELY = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}


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

    No code in a model's directory is run and no pickle is read.
    """

    model: Any
    tokenizer: Any
    head: Head = "sequence_classification"

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
        config, tokenizer = _open(path)
        auto = AUTO_CLASSES[head]
        if not any(name.endswith(auto.removeprefix("AutoModel")) for name in config.architectures or ()):
            raise ArtifactError(f"has no {spelled(head)} head", where=str(path), todo="give a checkpoint that finetune or search made")
        with _quiet():
            model = _auto(auto).from_pretrained(path, dtype=_float32(), **_SAFELY)
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

        config, tokenizer = _open(path)
        # What was tuned is asked as its own tokenizer frames a text; what starts here is framed as it was pretrained.
        _frame_as_in_pretraining(tokenizer)
        auto = _auto(AUTO_CLASSES[head])
        if type(config) not in auto._model_mapping:
            raise ArtifactError(f"the architecture '{config.model_type}' has no {spelled(head)} head", where=str(path), todo="give a model of another architecture")
        _require_fit(config, tokenizer, path)
        if labels:
            config.num_labels = len(labels)
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
        if problem is not None:
            config.problem_type = problem
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        # Pretraining may have begun from this very seed; the control is to be another draw than what it began with.
        torch.manual_seed(seed + SCRATCH_SEED if from_scratch else seed)
        with _quiet():
            if from_scratch:
                model = auto.from_config(config, dtype=_float32())
            else:
                model, told = auto.from_pretrained(path, config=config, dtype=_float32(), output_loading_info=True, **_SAFELY)
                _require_body(model, set(told["missing_keys"]), path)
        return cls(model.to(_device(device)), tokenizer, head)

    def train_only(self, method: Method, lora: "LoraShape") -> None:
        """Chooses which weights are tuned: all of them, the head alone (`frozen`), or the head and low-rank adapters of every linear
        layer (`lora`: Hu et al. 2021, https://arxiv.org/abs/2106.09685, by peft).

        Raises:
            ConfigError: `lora` is asked for and peft is not installed.
        """
        if method == "full":
            return
        body = self.model.base_model
        fresh = [name for name, child in self.model.named_children() if child is not body and any(True for _ in child.parameters())]
        if method == "frozen":
            for parameter in body.parameters():
                parameter.requires_grad_(False)
            return
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ConfigError("method lora needs peft", where="method", todo="pip install 'fmray[lora]'") from None
        self.model = get_peft_model(self.model, LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", exclude_modules=fresh, modules_to_save=fresh
        ))

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
        import torch

        lengths_B = rows["attention_mask_BT"].sum(axis=1)
        order_B = np.argsort(lengths_B, kind="stable")
        found: list[NDArray[np.float32]] = []
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order_B), batch_size):
                picked = order_B[start : start + batch_size]
                batch = trim({name: rows[name][picked] for name in INPUTS if name in rows})
                given = {INPUTS[name]: torch.from_numpy(column).to(self.model.device) for name, column in batch.items()}
                parts = [logits.float().cpu().numpy() for logits in logits_of(self.model(**given), self.head)]
                if not found:
                    found = [np.full(self._shape(rows, part), np.finfo(np.float32).min, np.float32) for part in parts]
                for whole, part in zip(found, parts, strict=True):
                    if self.head in POSITIONAL:
                        whole[picked, : part.shape[1]] = part
                    else:
                        whole[picked] = part
        self.model.train(was_training)
        return tuple(found)

    def _shape(self, rows: Rows, part: NDArray[np.float32]) -> tuple[int, ...]:
        n_rows, width = rows["input_ids_BT"].shape
        return (n_rows, width, *part.shape[2:]) if self.head in POSITIONAL else (n_rows, *part.shape[1:])

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face directory: config with id2label, safetensors with adapters merged in, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            merged(self.model).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


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


def logits_of(output: Any, head: Head) -> tuple[Any, ...]:
    """The logits of a model's output, by its head."""
    return (output.start_logits, output.end_logits) if head == "question_answering" else (output.logits,)


def trim(rows: Rows) -> Rows:
    """Drops the columns that are padding in every row: batches cost what their longest row costs."""
    width = max(1, int(rows["attention_mask_BT"].sum(axis=1).max()))
    return {name: column[:, :width] if name.endswith("_BT") else column for name, column in rows.items()}


def merged(model: Any) -> Any:
    """The model itself; one with adapters as a copy with these merged into its weights, so that it opens without peft."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return copy.deepcopy(model).merge_and_unload()


def spelled(head: Head) -> str:
    """A head in words."""
    return head.replace("_", " ")


def _auto(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _require_body(model: Any, missing: set[str], path: Path) -> None:
    """Sees that the weights below the head are those in `path`.

    Some architectures hold their body under another name with one head than with another (a Llama's under `transformer` with that of
    questions, else under `model`). transformers then finds none of its weights and leaves it random, with no more than a warning.

    Raises:
        ArtifactError: there are no weights for the body.
    """
    prefix = f"{model.base_model_prefix}."
    if not {name for name in model.state_dict() if name.startswith(prefix)} <= missing:
        return
    from transformers import AutoModel

    body, told = AutoModel.from_pretrained(path, dtype=_float32(), output_loading_info=True, **_SAFELY)
    if len(told["missing_keys"]) == len(body.state_dict()):
        raise ArtifactError(f"holds no weights of a {type(body).__name__}", where=str(path), todo="check its config.json")
    model.base_model.load_state_dict(body.state_dict())


def _require_fit(config: Any, tokenizer: Any, path: Path) -> None:
    """A tokenizer with more tokens than the model has embeddings would fail deep inside torch, or read another model's words."""
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ArtifactError(
            f"its tokenizer has {len(tokenizer)} tokens and the model embeddings for {vocab_size}: they do not fit", where=str(path),
            todo="save the model's own tokenizer beside it",
        )  # fmt: skip


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
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*front, "$A", *behind]), pair=" ".join([*front, "$A", *behind, "$B", *behind]), special_tokens=special
    )


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
