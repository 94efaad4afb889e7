"""Bidirectional encoders of the BERT, RoBERTa, ModernBERT and ESM types, by named sizes."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fmray.model.activations import LOGIT_BYTES, Precision, attention_bytes, kept_bytes
from fmray.model.architectures import Architecture, Family, PlainShape, Reads, overridden

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Size = Literal["nano", "micro", "small", "base", "large"]
Variant = Literal["bert", "roberta", "modernbert", "esm"]
# What a layer keeps for its backward pass, in widths and in inner widths of the MLP: inputs of norms and matrices, q, k, v, attention's
# output twice. modernbert turns q and k and gates; esm turns them too, scales q, and has an activation of four steps.
KEPT: dict[str, tuple[int, int]] = {"bert": (9, 2), "roberta": (9, 2), "modernbert": (11, 4), "esm": (9, 5)}
# base and large are those of Devlin et al. 2019; all heads are 64 wide.
SIZES: dict[str, PlainShape] = {
    "nano": PlainShape.of(4, 192, 3),
    "micro": PlainShape.of(6, 256, 4),
    "small": PlainShape.of(6, 512, 8),
    "base": PlainShape.of(12, 768, 12),
    "large": PlainShape.of(24, 1024, 16),
}


class Encoder(Architecture):
    """A named size of one of four types; any dimension may be overridden.

    bert and roberta have learned positions and are post-normalised; roberta counts positions from behind the padding id. modernbert has
    rotary positions, gated MLPs and no biases, here with full attention in every layer. esm has rotary positions and is pre-normalised;
    it reads one document a row only.

    Attributes:
        dropout: of hidden states and attention, in training.
    """

    type: Literal["encoder"] = "encoder"
    family: ClassVar[Family] = "encoder"
    variant: Variant = "bert"
    size: Size = "nano"
    num_hidden_layers: int | None = Field(None, ge=1)
    hidden_size: int | None = Field(None, ge=1)
    num_attention_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        shape = self.shape
        if shape.hidden_size % (2 * shape.num_attention_heads):
            raise ValueError(f"hidden_size {shape.hidden_size} must be a multiple of 2 x num_attention_heads {shape.num_attention_heads}")
        return self

    @property
    def shape(self) -> PlainShape:
        """The named size with the overrides applied."""
        return overridden(SIZES[self.size], self)

    @property
    def packs(self) -> bool:
        """ESM's embeddings read a mask of rows, so it cannot be told which positions share a segment."""
        return self.variant != "esm"

    @property
    def fused_width(self) -> int:
        """Of all heads but that of ESM, which adds its bias later."""
        return 0 if self.variant == "esm" else self.shape.hidden_size

    def hf_config(self, vocab_size: int, max_positions: int) -> "PreTrainedConfig":
        """A Hugging Face config of the variant. Token ids, and with them RoBERTa's place in front of the positions, are set by whoever
        knows the tokenizer.
        """
        import transformers

        shape: dict[str, Any] = self.shape.model_dump() | {"vocab_size": vocab_size, "max_position_embeddings": max_positions}
        ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
        dropout: dict[str, Any] = {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        if self.variant == "bert":
            return transformers.BertConfig(**shape, **dropout)
        if self.variant == "roberta":
            return transformers.RobertaConfig(**shape, **dropout, **ids, type_vocab_size=1, layer_norm_eps=1e-5)
        if self.variant == "esm":
            return transformers.EsmConfig(**shape, **dropout, position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=False)
        return transformers.ModernBertConfig(
            **shape, **ids, layer_types=["full_attention"] * self.shape.num_hidden_layers, embedding_dropout=self.dropout, mlp_dropout=self.dropout, attention_dropout=self.dropout,
            cls_token_id=None, sep_token_id=None,
        )  # fmt: skip

    def count_params(self, vocab_size: int, max_positions: int = 0) -> int:
        """With the masked-token head, whose matrix is the embedding table. RoBERTa's are counted for a padding id of 0."""
        shape = self.shape
        layers, width, inner = shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size
        total = self._matrix_params() + vocab_size * width + vocab_size
        if self.variant == "modernbert":
            # Norms without bias: of the embeddings, two a layer but for the first's first, the last one, the head's.
            return total + width * (1 + 2 * layers - 1 + 1 + 1)
        total += layers * (9 * width + inner) + 3 * width
        if self.variant == "esm":
            return total + 2 * width + layers * shape.num_attention_heads + 1
        extra = max_positions + 2 if self.variant == "bert" else max_positions + 1 + 1
        return total + extra * width + 2 * width

    def flops_per_token(self, vocab_size: int, seq_len: int, reads: Reads | None = None) -> float:
        """6 N + 12 L d T, as `Decoder.flops_per_token`: N are the parameters that multiply, the whole T x T square is computed."""
        shape = self.shape
        n = self._matrix_params() + vocab_size * shape.hidden_size
        return 6.0 * n + 12.0 * shape.num_hidden_layers * shape.hidden_size * seq_len

    def activation_bytes(self, vocab_size: int, seq_len: int, *, precision: Precision, attention: str, reads: Reads | None = None) -> float:
        """What `KEPT` says of every layer, the head's dense layer and norm, and the logits. Packed rows are masked."""
        shape = self.shape
        widths, inners = KEPT[self.variant]
        layers = kept_bytes(shape.num_hidden_layers * (widths * shape.hidden_size + inners * shape.intermediate_size) + 4 * shape.hidden_size, 0, precision)
        scores = attention_bytes(shape.num_hidden_layers, shape.num_attention_heads, seq_len, seq_len, precision=precision, attention=attention, masked=True)
        return seq_len * (layers + LOGIT_BYTES * vocab_size) + scores

    def _matrix_params(self) -> int:
        """Attention and MLP matrices of all layers, and the dense layer of the head."""
        shape = self.shape
        mlp = (3 if self.variant == "modernbert" else 2) * shape.hidden_size * shape.intermediate_size
        return shape.num_hidden_layers * (4 * shape.hidden_size**2 + mlp) + shape.hidden_size**2
