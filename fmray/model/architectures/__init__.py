"""Architectures by named sizes: their Hugging Face configs, parameter counts and FLOPs. One file each."""

import abc
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar

from fmray.core.config import Component, Config
from fmray.model.activations import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Family = Literal["decoder", "encoder", "encoder_decoder", "image_autoencoder"]
# Shares of a row's positions: what the first half of a model reads of it, and what the second does.
Reads = tuple[float, float]
VOCAB_MULTIPLE = 64
Shape = TypeVar("Shape", bound=Config)


def padded_vocab_size(n_tokens: int) -> int:
    """The rows of the embedding table: the tokenizer's vocabulary rounded up to a multiple of 64, which matrix units like."""
    return -(-n_tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Architecture(Component, package="fmray.model.architectures"):
    """The shape of a model before it has weights. `vocab_size` is the padded one everywhere, and 0 for images.

    `family` says which objectives can train it, `packs` whether it keeps documents apart that share a row.
    """

    family: ClassVar[Family]

    @property
    def packs(self) -> bool:
        """Whether documents that share a row can be kept apart."""
        return True

    def fit(self, image_shape: tuple[int, int, int] | None) -> Self:
        """The same architecture for images of (height, width, channels); itself, where it reads text."""
        return self

    def check(self, seq_len: int) -> None:
        """Refuses rows that are longer than it could ever read; called before any worker starts.

        Raises:
            ConfigError: it has fewer positions.
        """

    def positions(self, seq_len: int) -> int:
        """Positions of a row: its tokens, or the patches of its image."""
        return seq_len

    @abc.abstractmethod
    def hf_config(self, vocab_size: int, max_positions: int) -> "PreTrainedConfig":
        """The Hugging Face config, from which `AutoModel...from_config` builds the model."""

    @abc.abstractmethod
    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """Parameters, shared ones counted once: equal to the built model's own count. Rotary positions have none."""

    @abc.abstractmethod
    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """Floating-point operations of forward and backward for one trained position in a row of `seq_len`.

        `reads` is what the objective lets either half of a model with two read of a row; left out, what its usual objective does.
        """

    def activation_bytes(self, vocab_size: int, seq_len: int, *, precision: Precision, attention: str, reads: Reads | None = None) -> float | None:
        """Bytes that forward and backward of one row hold at once besides weights and gradients (see `fmray.model.activations`).

        With all logits of the row; with a `vocab_size` of 0 without them. None where an architecture does not count them.
        """
        return None

    @property
    def fused_width(self) -> int:
        """The width of what the output head reads, where the loss can be taken inside of it and activations are counted; else 0."""
        return 0


class PlainShape(Config):
    """The dimensions of a model with as many heads of keys as of queries, by the names that most of Hugging Face's configs give them."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int

    @classmethod
    def of(cls, layers: int, hidden: int, heads: int) -> "PlainShape":
        """The usual one: MLPs four times as wide inside."""
        return cls(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden)


def overridden(named: Shape, architecture: Architecture) -> Shape:
    """The shape of a named size with those of its dimensions that fields of the architecture give."""
    own = {name: value for name in type(named).model_fields if (value := getattr(architecture, name)) is not None}
    return named.model_copy(update=own)
