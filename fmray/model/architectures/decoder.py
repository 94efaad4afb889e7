"""Causal decoders of the Llama type (rotary positions, RMSNorm, gated MLP), by named sizes."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fmray.core.config import Config
from fmray.model.activations import LOGIT_BYTES, Precision, attention_bytes, kept_bytes
from fmray.model.architectures import Architecture, Family, Reads, overridden

if TYPE_CHECKING:
    from transformers import LlamaConfig

Size = Literal["nano", "micro", "125m", "350m", "1b", "7b"]


class Shape(Config):
    """Every dimension of a decoder, named as Hugging Face names them."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        """The width of one attention head."""
        return self.hidden_size // self.num_attention_heads


def _shape(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, tied: bool) -> Shape:
    return Shape(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, tie_word_embeddings=tied,
    )  # fmt: skip


# Heads are 64 wide up to 350m and 128 above. Embeddings are tied where they would else be a large part of the model.
SIZES: dict[str, Shape] = {
    "nano": _shape(4, 192, 3, 3, 512, True),
    "micro": _shape(8, 256, 4, 4, 704, True),
    "125m": _shape(12, 768, 12, 12, 2048, True),
    "350m": _shape(24, 1024, 16, 16, 2816, True),
    "1b": _shape(24, 2048, 16, 8, 5504, True),
    "7b": _shape(32, 4096, 32, 32, 11008, False),
}


class Decoder(Architecture):
    """A named size; any dimension may be overridden."""

    type: Literal["decoder"] = "decoder"
    family: ClassVar[Family] = "decoder"
    size: Size = "nano"
    num_hidden_layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    num_attention_heads: int | None = Field(None, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=1)
    tie_word_embeddings: bool | None = None
    rope_theta: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        shape = self.shape
        if shape.hidden_size % (2 * shape.num_attention_heads):
            raise ValueError(f"hidden_size {shape.hidden_size} must be a multiple of 2 x num_attention_heads {shape.num_attention_heads}")
        if shape.num_attention_heads % shape.num_key_value_heads:
            raise ValueError(f"num_attention_heads {shape.num_attention_heads} must be a multiple of num_key_value_heads {shape.num_key_value_heads}")
        return self

    @property
    def shape(self) -> Shape:
        """The named size with the overrides applied. Overriding the heads alone gives as many key-value heads."""
        shape = overridden(SIZES[self.size], self)
        if self.num_attention_heads is not None and self.num_key_value_heads is None:
            return shape.model_copy(update={"num_key_value_heads": self.num_attention_heads})
        return shape

    @property
    def fused_width(self) -> int:
        """Every decoder's head is a plain product."""
        return self.shape.hidden_size

    def hf_config(self, vocab_size: int, max_positions: int) -> "LlamaConfig":
        """A `LlamaConfig`. Token ids are set by whoever knows the tokenizer."""
        from transformers import LlamaConfig

        shape = self.shape
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            max_position_embeddings=max_positions,
            tie_word_embeddings=shape.tie_word_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            bos_token_id=None,
            eos_token_id=None,
        )

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """Embeddings, per layer four attention projections, three MLP projections and two norms, the last norm, the head."""
        shape = self.shape
        tables = 1 if shape.tie_word_embeddings else 2
        norms = shape.hidden_size * (2 * shape.num_hidden_layers + 1)
        return self._matrix_params() + norms + tables * vocab_size * shape.hidden_size

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 L d T (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, with the backward pass counted twice the forward).

        N are the parameters that multiply: the input embedding is looked up and not counted, the output head is. L layers,
        d the attention's width, T = `seq_len`. The attention term counts the whole T x T square, as the convention of MFU does,
        though a causal mask needs half of it.
        """
        shape = self.shape
        n = self._matrix_params() + vocab_size * shape.hidden_size
        return 6.0 * n + 12.0 * shape.num_hidden_layers * shape.hidden_size * seq_len

    def activation_bytes(self, vocab_size: int, seq_len: int, *, precision: Precision, attention: str, reads: Reads | None = None) -> float:
        """A layer keeps of each norm its input in float32, what it normalised and its output; q, k (turned) and v, k and v repeated for
        every head; attention's output twice; and four times the MLP's inner width. Packed rows are masked.
        """
        shape = self.shape
        width, inner = shape.hidden_size, shape.intermediate_size
        layers = kept_bytes(shape.num_hidden_layers * (9 * width + 4 * inner) + 2 * width, (2 * shape.num_hidden_layers + 1) * width, precision)
        scores = attention_bytes(shape.num_hidden_layers, shape.num_attention_heads, seq_len, seq_len, precision=precision, attention=attention, masked=True)
        return seq_len * (layers + LOGIT_BYTES * vocab_size) + scores

    def _matrix_params(self) -> int:
        shape = self.shape
        key_value = shape.num_key_value_heads * shape.head_dim
        attention = shape.hidden_size * (2 * shape.hidden_size + 2 * key_value)
        return shape.num_hidden_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)
