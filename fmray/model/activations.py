"""What a forward and backward pass holds besides weights and gradients: the tensors that layers keep for their backward pass.

After Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198, section 4), who count them for a layer of GPT as 34 bytes a position
and unit of width, and 5 a score of each head. The layers of transformers keep others: no dropout masks, norms of the RMS type written
in Python, gated MLPs, and fused attention that keeps no scores. Here each architecture counts its own, in elements a position;
tests/model/test_activations.py holds the counts to within a quarter of what is measured.
"""

from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]
ELEMENT_BYTES: dict[Precision, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
# Logits of a position, when the loss turns back: log-probabilities and two gradients, in float32 whatever the model computes in.
LOGIT_BYTES = 12
# Scores that eager attention keeps of every layer, and holds besides of the one that it is in: softmax in float32, and in bf16 a copy.
SCORE_KEPT: dict[Precision, int] = {"bf16": 6, "fp16": 6, "fp32": 4}
SCORE_PASSING: dict[Precision, int] = {"bf16": 8, "fp16": 8, "fp32": 8}


def kept_bytes(elements: float, in_float32: float, precision: Precision) -> float:
    """Bytes of so many kept elements, of which some are in float32 in any precision."""
    return elements * ELEMENT_BYTES[precision] + 4 * in_float32


def attention_bytes(layers: int, heads: int, queries: float, keys: float, *, precision: Precision, attention: str, masked: bool) -> float:
    """Bytes that attention keeps of a row besides queries, keys, values and output.

    Eager attention keeps its scores, at most so many bytes. Fused attention keeps none, but where sdpa is given a mask of what sees what (`masked`), every
    layer makes numbers of it and keeps them; flash and flex attention are told documents' bounds instead.
    """
    square = queries * keys
    if attention == "eager":
        return square * (heads * (layers * SCORE_KEPT[precision] + SCORE_PASSING[precision]) + ELEMENT_BYTES[precision])
    return square * (1 + layers * ELEMENT_BYTES[precision]) if masked and attention == "sdpa" else 0.0
