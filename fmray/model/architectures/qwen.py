"""Causal decoders of the Qwen2 and Qwen3 types (rotary positions, RMSNorm, gated MLP, few key-value heads), by named sizes."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fmray.core.config import Config
from fmray.model.activations import LOGIT_BYTES, Precision, attention_bytes, kept_bytes
from fmray.model.architectures import Architecture, Family, Reads, overridden

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Size = Literal["nano", "micro", "0.5b", "0.6b", "1.5b", "1.7b", "3b", "4b", "7b", "8b"]
Variant = Literal["qwen2", "qwen3"]


class Shape(Config):
    """Every dimension, named as Hugging Face names them. Without `head_dim` heads share out the hidden size."""

    variant: Variant
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool
    head_dim: int | None = None
    rope_theta: float = 1_000_000.0

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        """The width of attention's queries and of its output."""
        return self.num_attention_heads * self.head_width

    @property
    def key_width(self) -> int:
        """The width of attention's keys, and of its values."""
        return self.num_key_value_heads * self.head_width


def _qwen2(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, tied: bool) -> Shape:
    return Shape(
        variant="qwen2", num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, tie_word_embeddings=tied,
    )  # fmt: skip


def _qwen3(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, tied: bool, head_dim: int = 128) -> Shape:
    shape = _qwen2(layers, hidden, heads, kv_heads, intermediate, tied)
    return shape.model_copy(update={"variant": "qwen3", "head_dim": head_dim})


# 0.5b, 1.5b, 3b and 7b are those of Qwen2.5 (https://arxiv.org/abs/2412.15115, table 1), 0.6b, 1.7b, 4b and 8b those of Qwen3
# (https://arxiv.org/abs/2505.09388, table 1), with the inner widths and head dimensions of their published configs.
SIZES: dict[str, Shape] = {
    "nano": _qwen3(4, 192, 3, 1, 512, True, head_dim=64),
    "micro": _qwen3(8, 256, 4, 2, 704, True, head_dim=64),
    "0.5b": _qwen2(24, 896, 14, 2, 4864, True),
    "0.6b": _qwen3(28, 1024, 16, 8, 3072, True),
    "1.5b": _qwen2(28, 1536, 12, 2, 8960, True),
    "1.7b": _qwen3(28, 2048, 16, 8, 6144, True),
    "3b": _qwen2(36, 2048, 16, 2, 11008, True),
    "4b": _qwen3(36, 2560, 32, 8, 9728, True),
    "7b": _qwen2(28, 3584, 28, 4, 18944, False),
    "8b": _qwen3(36, 4096, 32, 8, 12288, False),
}


class Qwen(Architecture):
    """A named size, which is of one of two variants; any dimension may be overridden, the variant too.

    Projections to queries, keys and values have biases in qwen2; in qwen3 queries and keys are normalised instead, and heads may be of
    any width.
    """

    type: Literal["qwen"] = "qwen"
    family: ClassVar[Family] = "decoder"
    size: Size = "nano"
    variant: Variant | None = None
    num_hidden_layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    num_attention_heads: int | None = Field(None, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=2)
    tie_word_embeddings: bool | None = None
    rope_theta: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        shape = self.shape
        if self.head_dim is not None and shape.variant == "qwen2":
            raise ValueError("heads of qwen2 share out hidden_size: leave head_dim out, or take variant qwen3")
        if shape.head_dim is None and shape.hidden_size % (2 * shape.num_attention_heads):
            raise ValueError(f"hidden_size {shape.hidden_size} must be a multiple of 2 x num_attention_heads {shape.num_attention_heads}")
        if shape.head_width % 2:
            raise ValueError(f"head_dim {shape.head_width} must be even, for positions turn pairs")
        if shape.num_attention_heads % shape.num_key_value_heads:
            raise ValueError(f"num_attention_heads {shape.num_attention_heads} must be a multiple of num_key_value_heads {shape.num_key_value_heads}")
        return self

    @property
    def shape(self) -> Shape:
        """The named size with the overrides applied; overridden to qwen2, a size of qwen3 has no head dimension of its own."""
        shape = overridden(SIZES[self.size], self)
        return shape.model_copy(update={"head_dim": None}) if shape.variant == "qwen2" else shape

    @property
    def fused_width(self) -> int:
        """The head is a plain product."""
        return self.shape.hidden_size

    def hf_config(self, vocab_size: int, max_positions: int) -> "PreTrainedConfig":
        """A `Qwen2Config` or `Qwen3Config`. Token ids are set by whoever knows the tokenizer."""
        from transformers import Qwen2Config, Qwen3Config

        shape = self.shape
        told: dict[str, Any] = shape.model_dump(exclude={"variant", "rope_theta", "head_dim"}) | {
            "vocab_size": vocab_size, "max_position_embeddings": max_positions, "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
            "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip
        return Qwen2Config(**told) if shape.variant == "qwen2" else Qwen3Config(**told, head_dim=shape.head_width)

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """As `Decoder.count_params`, and for each layer the biases of queries, keys and values, or the norms of queries' and keys' heads."""
        shape = self.shape
        tables = 1 if shape.tie_word_embeddings else 2
        vectors = shape.query_width + 2 * shape.key_width if shape.variant == "qwen2" else 2 * shape.head_width
        norms = shape.hidden_size * (2 * shape.num_hidden_layers + 1)
        return self._matrix_params() + shape.num_hidden_layers * vectors + norms + tables * vocab_size * shape.hidden_size

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 L d T, as `Decoder.flops_per_token`, with d the width of attention, which need not be the hidden size."""
        shape = self.shape
        n = self._matrix_params() + vocab_size * shape.hidden_size
        return 6.0 * n + 12.0 * shape.num_hidden_layers * shape.query_width * seq_len

    def activation_bytes(self, vocab_size: int, seq_len: int, *, precision: Precision, attention: str, reads: Reads | None = None) -> float:
        """As `Decoder.activation_bytes`; the norms of queries and keys keep their inputs in float32 and what they normalised."""
        shape = self.shape
        n, width, normalised = shape.num_hidden_layers, shape.hidden_size, 0 if shape.variant == "qwen2" else shape.query_width + shape.key_width
        elements = n * (4 * width + 5 * shape.query_width + 4 * shape.intermediate_size + normalised) + 2 * width
        layers = kept_bytes(elements, (2 * n + 1) * width + n * normalised, precision)
        scores = attention_bytes(n, shape.num_attention_heads, seq_len, seq_len, precision=precision, attention=attention, masked=True)
        return seq_len * (layers + LOGIT_BYTES * vocab_size) + scores

    def _matrix_params(self) -> int:
        shape = self.shape
        attention = 2 * shape.hidden_size * (shape.query_width + shape.key_width)
        return shape.num_hidden_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)
