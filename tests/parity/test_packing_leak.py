"""Documents that share a row never see each other: other tokens in A change nothing in B, to the last bit."""

from typing import Any

import numpy as np
import pytest
import torch

from fmray.data.packings import Packing, Rows
from fmray.objectives.causal_lm import CausalLM

SEQ_LEN, VOCAB, PAD = 24, 64, 0
A, OTHER_A, B = list(range(10, 19)), list(range(30, 39)), list(range(40, 52))
SHARING = ("best_fit", "concatenate")


def rows_of(tag: str, documents: list[list[int]]) -> Rows:
    packer = Packing.members()[tag]().packer(SEQ_LEN, PAD)
    made = [rows for rows in (packer.add(documents), packer.finish()) if len(rows)]
    assert len(made) == len(made[0]) == 1
    return made[0]


def columns(rows: Rows) -> dict[str, np.ndarray]:
    return {
        "row_ids_B": np.arange(1), "input_ids_BT": rows.input_ids_NT, "segment_ids_BT": rows.segment_ids_NT,
        "position_ids_BT": rows.position_ids_NT,
    }  # fmt: skip


def llama(attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)
    config._attn_implementation = "sdpa"
    return BertForMaskedLM(config).eval()


def causal_logits(model: Any, rows: Rows) -> torch.Tensor:
    """As `CausalLM.loss` runs the model: restarting positions, no mask."""
    batch = CausalLM().collate(columns(rows))
    with torch.inference_mode():
        return model(input_ids=batch["input_ids_BT"], position_ids=batch["position_ids_BT"], use_cache=False).logits[0]


def encoder_logits(model: Any, rows: Rows, *, apart: bool = True) -> torch.Tensor:
    """An encoder is told by a mask which positions share a segment: it does not read that from positions."""
    segments_BT = torch.from_numpy(rows.segment_ids_NT)
    mask_B1TT = (segments_BT[:, None, :, None] == segments_BT[:, None, None, :]) if apart else torch.ones(1, 1, SEQ_LEN, SEQ_LEN, dtype=torch.bool)
    with torch.inference_mode():
        ids, positions = (torch.from_numpy(x).long() for x in (rows.input_ids_NT, rows.position_ids_NT))
        return model(input_ids=ids, position_ids=positions, attention_mask=mask_B1TT).logits[0]


def places(rows: Rows, tokens: list[int]) -> np.ndarray:
    return np.isin(rows.input_ids_NT[0], tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tag", SHARING)
@pytest.mark.parametrize("order", ["A first", "B first"])
def test_a_causal_model_keeps_documents_apart(tag: str, attention: str, order: str) -> None:
    model = llama(attention)
    first, second = (rows_of(tag, [a, B] if order == "A first" else [B, a]) for a in (A, OTHER_A))
    one, other = causal_logits(model, first), causal_logits(model, second)
    assert torch.equal(one[places(first, B)], other[places(second, B)])
    assert not torch.equal(one[places(first, A)], other[places(second, OTHER_A)])


@pytest.mark.parametrize("tag", SHARING)
@pytest.mark.parametrize("order", ["A first", "B first"])
def test_an_encoder_keeps_documents_apart_by_their_segments(tag: str, order: str) -> None:
    model = bert()
    first, second = (rows_of(tag, [a, B] if order == "A first" else [B, a]) for a in (A, OTHER_A))
    one, other = encoder_logits(model, first), encoder_logits(model, second)
    assert torch.equal(one[places(first, B)], other[places(second, B)])
    leaking = [encoder_logits(model, rows, apart=False) for rows in (first, second)]
    assert not torch.equal(leaking[0][places(first, B)], leaking[1][places(second, B)]), "the test would see a leak"


def test_without_restarting_positions_a_causal_model_would_leak() -> None:
    model = llama("sdpa")
    first, second = (rows_of("concatenate", [a, B]) for a in (A, OTHER_A))
    running = [Rows(rows.input_ids_NT, rows.segment_ids_NT, np.arange(SEQ_LEN, dtype=np.int32)[None]) for rows in (first, second)]
    one, other = (causal_logits(model, rows) for rows in running)
    assert not torch.equal(one[places(first, B)], other[places(second, B)])


def test_a_document_in_company_is_what_it_is_alone() -> None:
    model = llama("sdpa")
    together, alone = rows_of("concatenate", [A, B]), rows_of("concatenate", [B])
    torch.testing.assert_close(causal_logits(model, together)[places(together, B)], causal_logits(model, alone)[places(alone, B)], atol=1e-5, rtol=1e-5)
