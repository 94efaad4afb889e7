"""Encoder-decoders of the BART type (learned positions, post-normalised, biases everywhere), by named sizes."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fmray.core.config import Config
from fmray.model.architectures import Architecture, Family, Reads, overridden

if TYPE_CHECKING:
    from transformers import BartConfig

Size = Literal["nano", "micro", "small", "base", "large"]
# Of a document whose tokens are hidden by 30 % in spans of three: what the encoder and the decoder read of it, masks included.
ENCODED, DECODED = 0.8, 1.0
# BART leaves the first rows of its tables of positions unused.
UNUSED_POSITIONS = 2


class Shape(Config):
    """Every dimension; both halves have `num_layers` of the same widths."""

    num_layers: int
    d_model: int
    num_heads: int
    ffn_dim: int


# base and large are those of Lewis et al. 2020; all heads are 64 wide.
SIZES: dict[str, Shape] = {
    "nano": Shape(num_layers=3, d_model=192, num_heads=3, ffn_dim=768),
    "micro": Shape(num_layers=4, d_model=256, num_heads=4, ffn_dim=1024),
    "small": Shape(num_layers=6, d_model=512, num_heads=8, ffn_dim=2048),
    "base": Shape(num_layers=6, d_model=768, num_heads=12, ffn_dim=3072),
    "large": Shape(num_layers=12, d_model=1024, num_heads=16, ffn_dim=4096),
}


class Bart(Architecture):
    """A named size; any dimension may be overridden. One table embeds the tokens of both halves and tells the output.

    Attributes:
        dropout: of hidden states, in training; attention has none, as in BART.
    """

    type: Literal["bart"] = "bart"
    family: ClassVar[Family] = "encoder_decoder"
    size: Size = "nano"
    num_layers: int | None = Field(None, ge=1)
    d_model: int | None = Field(None, ge=1)
    num_heads: int | None = Field(None, ge=1)
    ffn_dim: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        if self.shape.d_model % self.shape.num_heads:
            raise ValueError(f"d_model {self.shape.d_model} must be a multiple of num_heads {self.shape.num_heads}")
        return self

    @property
    def shape(self) -> Shape:
        """The named size with the overrides applied."""
        return overridden(SIZES[self.size], self)

    @property
    def packs(self) -> bool:
        """Positions are counted by the model itself, through the whole row."""
        return False

    def hf_config(self, vocab_size: int, max_positions: int) -> "BartConfig":
        """A `BartConfig`. Token ids are set by whoever knows the tokenizer."""
        from transformers import BartConfig

        shape = self.shape
        return BartConfig(
            vocab_size=vocab_size, max_position_embeddings=max_positions, d_model=shape.d_model, encoder_layers=shape.num_layers,
            decoder_layers=shape.num_layers, encoder_attention_heads=shape.num_heads, decoder_attention_heads=shape.num_heads,
            encoder_ffn_dim=shape.ffn_dim, decoder_ffn_dim=shape.ffn_dim, dropout=self.dropout, pad_token_id=None, bos_token_id=None,
            eos_token_id=None, decoder_start_token_id=None, forced_eos_token_id=None,
        )  # fmt: skip

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """The table, two tables of positions, and for each half its matrices with their biases and its norms.

        The bias of BART's output is a constant of zeros, not a parameter.
        """
        shape = self.shape
        attention, mlp = self._layer()
        matrices = shape.num_layers * (3 * attention + 2 * mlp)
        # A layer's attentions have four biases each, its MLP one of either width; it has a norm behind each of them.
        biases = shape.num_layers * (3 * 4 * shape.d_model + 2 * (shape.ffn_dim + shape.d_model))
        norms = 2 * shape.d_model * (5 * shape.num_layers + 2)
        tables = (vocab_size + 2 * (max_positions + UNUSED_POSITIONS)) * shape.d_model
        return tables + matrices + biases + norms

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 d T a layer of each half, as `T5.flops_per_token`, for one of the `seq_len` tokens of a document before spans are hidden."""
        shape = self.shape
        attention, mlp = self._layer()
        encoder = shape.num_layers * (attention + mlp + attention / 2)
        decoder = shape.num_layers * (attention + mlp + attention / 2) + vocab_size * shape.d_model
        read, written = reads or (ENCODED, DECODED)
        pairs = read**2 + written**2 + read * written
        return 6.0 * (read * encoder + written * decoder) + 12.0 * shape.num_layers * shape.d_model * seq_len * pairs

    def _layer(self) -> tuple[int, int]:
        """The matrices of one attention and of one MLP."""
        shape = self.shape
        return 4 * shape.d_model**2, 2 * shape.d_model * shape.ffn_dim
