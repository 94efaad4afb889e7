"""Causal decoders of the GPT-2 type (learned positions, LayerNorm, biases everywhere), by named sizes."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fmray.model.activations import LOGIT_BYTES, Precision, attention_bytes, kept_bytes
from fmray.model.architectures import Architecture, Family, PlainShape, Reads, overridden

if TYPE_CHECKING:
    from transformers import GPT2Config

Size = Literal["nano", "micro", "125m", "350m", "774m", "1.5b", "7b"]
# 125m to 1.5b are those of Radford et al. 2019 (table 2; 1.5b has 25 heads of 64), 7b is the 6.7B of Brown et al. 2020 (table 2.1).
SIZES: dict[str, PlainShape] = {
    "nano": PlainShape.of(4, 192, 3),
    "micro": PlainShape.of(8, 256, 4),
    "125m": PlainShape.of(12, 768, 12),
    "350m": PlainShape.of(24, 1024, 16),
    "774m": PlainShape.of(36, 1280, 20),
    "1.5b": PlainShape.of(48, 1600, 25),
    "7b": PlainShape.of(32, 4096, 32),
}


class Gpt2(Architecture):
    """A named size; any dimension may be overridden. One table embeds the tokens and tells the output; there are as many positions as a row has.

    Attributes:
        dropout: of embeddings, attention and what either half of a layer adds, in training.
    """

    type: Literal["gpt2"] = "gpt2"
    family: ClassVar[Family] = "decoder"
    size: Size = "nano"
    num_hidden_layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    num_attention_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        shape = self.shape
        if shape.hidden_size % shape.num_attention_heads:
            raise ValueError(f"hidden_size {shape.hidden_size} must be a multiple of num_attention_heads {shape.num_attention_heads}")
        return self

    @property
    def shape(self) -> PlainShape:
        """The named size with the overrides applied."""
        return overridden(SIZES[self.size], self)

    @property
    def fused_width(self) -> int:
        """The head is a plain product."""
        return self.shape.hidden_size

    def hf_config(self, vocab_size: int, max_positions: int) -> "GPT2Config":
        """A `GPT2Config`. Token ids are set by whoever knows the tokenizer."""
        from transformers import GPT2Config

        shape = self.shape
        return GPT2Config(
            vocab_size=vocab_size, n_positions=max_positions, n_embd=shape.hidden_size, n_layer=shape.num_hidden_layers, n_head=shape.num_attention_heads,
            n_inner=shape.intermediate_size, resid_pdrop=self.dropout, embd_pdrop=self.dropout, attn_pdrop=self.dropout, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """The tables of tokens and positions, and for each layer its matrices with their biases and two norms; the last norm."""
        shape = self.shape
        layers, width, inner = shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size
        # Biases of q, k, v and the output (4 widths), of the MLP (inner and width); a norm has a weight and a bias.
        vectors = layers * (4 * width + inner + width + 2 * 2 * width) + 2 * width
        return (vocab_size + max_positions) * width + self._matrix_params() + vectors

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 L d T, as `Decoder.flops_per_token`: the output head counts, tables that are only looked up do not."""
        shape = self.shape
        n = self._matrix_params() + vocab_size * shape.hidden_size
        return 6.0 * n + 12.0 * shape.num_hidden_layers * shape.hidden_size * seq_len

    def activation_bytes(self, vocab_size: int, seq_len: int, *, precision: Precision, attention: str, reads: Reads | None = None) -> float:
        """A layer keeps input and output of each norm, q, k and v, attention's output twice, and of the MLP's inside five: its activation is
        written in steps. Packed rows are masked.
        """
        shape = self.shape
        layers = kept_bytes(shape.num_hidden_layers * (9 * shape.hidden_size + 5 * shape.intermediate_size) + 2 * shape.hidden_size, 0, precision)
        scores = attention_bytes(shape.num_hidden_layers, shape.num_attention_heads, seq_len, seq_len, precision=precision, attention=attention, masked=True)
        return seq_len * (layers + LOGIT_BYTES * vocab_size) + scores

    def _matrix_params(self) -> int:
        shape = self.shape
        return shape.num_hidden_layers * (4 * shape.hidden_size**2 + 2 * shape.hidden_size * shape.intermediate_size)
