"""Encoder-decoders of the T5 type (relative positions, RMS norms, gated MLP), by named sizes."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fmray.core.config import Config
from fmray.model.activations import LOGIT_BYTES, Precision, attention_bytes, kept_bytes
from fmray.model.architectures import Architecture, Family, Reads, overridden

if TYPE_CHECKING:
    from transformers import T5Config

Size = Literal["nano", "micro", "small", "base", "large"]
BUCKETS = 32
# Of a row whose tokens are hidden by 15 % in spans of three: what the encoder and the decoder read of it, sentinels included.
ENCODED, DECODED = 0.9, 0.2


class Shape(Config):
    """Every dimension, named as T5's config names them; both halves have `num_layers`."""

    num_layers: int
    d_model: int
    num_heads: int
    d_kv: int
    d_ff: int


# small, base and large are those of T5 1.1 (Raffel et al. 2020; Shazeer 2020).
SIZES: dict[str, Shape] = {
    "nano": Shape(num_layers=3, d_model=192, num_heads=3, d_kv=64, d_ff=512),
    "micro": Shape(num_layers=4, d_model=256, num_heads=4, d_kv=64, d_ff=704),
    "small": Shape(num_layers=8, d_model=512, num_heads=6, d_kv=64, d_ff=1024),
    "base": Shape(num_layers=12, d_model=768, num_heads=12, d_kv=64, d_ff=2048),
    "large": Shape(num_layers=24, d_model=1024, num_heads=16, d_kv=64, d_ff=2816),
}


class T5(Architecture):
    """A named size; any dimension may be overridden. One table embeds the tokens of both halves and tells the output."""

    type: Literal["t5"] = "t5"
    family: ClassVar[Family] = "encoder_decoder"
    size: Size = "nano"
    num_layers: int | None = Field(None, ge=1)
    d_model: int | None = Field(None, ge=1)
    num_heads: int | None = Field(None, ge=1)
    d_kv: int | None = Field(None, ge=1)
    d_ff: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @property
    def shape(self) -> Shape:
        """The named size with the overrides applied."""
        return overridden(SIZES[self.size], self)

    @property
    def packs(self) -> bool:
        """The mask of pairs that keeps packed documents apart in the encoder would be the decoder's as well, whose rows are others."""
        return False

    @property
    def fused_width(self) -> int:
        """That of the decoder's hidden states."""
        return self.shape.d_model

    def hf_config(self, vocab_size: int, max_positions: int) -> "T5Config":
        """A `T5Config`; relative positions have no limit. Token ids are set by whoever knows the tokenizer."""
        from transformers import T5Config

        shape = self.shape
        return T5Config(
            vocab_size=vocab_size, num_layers=shape.num_layers, num_decoder_layers=shape.num_layers, d_model=shape.d_model, num_heads=shape.num_heads,
            d_kv=shape.d_kv, d_ff=shape.d_ff, relative_attention_num_buckets=BUCKETS, dropout_rate=self.dropout,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """The table, matrices without biases, norms without biases, and a table of relative positions for either half."""
        shape = self.shape
        attention, mlp = self._layer()
        matrices = shape.num_layers * (3 * attention + 2 * mlp)
        norms = shape.d_model * (5 * shape.num_layers + 2)
        return vocab_size * shape.d_model + matrices + norms + 2 * BUCKETS * shape.num_heads

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 d T a layer of each half, as `Decoder.flops_per_token`, for one of the `seq_len` tokens of a row before spans are hidden.

        Keys and values of the attention between the halves are computed for what the encoder read, queries for what the decoder reads.
        """
        shape = self.shape
        attention, mlp = self._layer()
        inner = shape.num_heads * shape.d_kv
        encoder = shape.num_layers * (attention + mlp + attention / 2)
        decoder = shape.num_layers * (attention + mlp + attention / 2) + vocab_size * shape.d_model
        read, written = reads or (ENCODED, DECODED)
        pairs = read**2 + written**2 + read * written
        return 6.0 * (read * encoder + written * decoder) + 12.0 * shape.num_layers * inner * seq_len * pairs

    def activation_bytes(self, vocab_size: int, seq_len: int, *, precision: Precision, attention: str, reads: Reads | None = None) -> float:
        """As `Decoder.activation_bytes` for either half and what it reads of a row. Scores are kept with any attention, for the table of
        relative positions is learned through them.
        """
        shape = self.shape
        inner, n = shape.num_heads * shape.d_kv, shape.num_layers
        norm, attended, mlp = 2 * shape.d_model, shape.d_model + 5 * inner, shape.d_model + 8 * shape.d_ff
        encoder = kept_bytes(n * (2 * norm + attended + mlp), 2 * n * shape.d_model, precision)
        decoder = kept_bytes(n * (3 * norm + 2 * attended + mlp), 3 * n * shape.d_model, precision)
        read, written = (share * seq_len for share in reads or (ENCODED, DECODED))
        pairs = ((read, read), (written, written), (written, read))
        scores = sum(attention_bytes(n, shape.num_heads, queries, keys, precision=precision, attention="eager", masked=True) for queries, keys in pairs)
        return read * encoder + written * (decoder + LOGIT_BYTES * vocab_size) + scores

    def _layer(self) -> tuple[int, int]:
        """Parameters of one attention and of one MLP."""
        shape = self.shape
        return 4 * shape.d_model * shape.num_heads * shape.d_kv, 3 * shape.d_model * shape.d_ff
