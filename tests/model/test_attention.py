"""Attention by config: what `auto` comes to, what is refused, and documents of a row kept apart under flash and flex attention."""

import importlib.util
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.modeling_flash_attention_utils import _is_packed_sequence

from fmray.core.errors import ConfigError
from fmray.model.architectures.decoder import Decoder
from fmray.model.architectures.gpt2 import Gpt2
from fmray.model.architectures.hf_config import FAMILIES
from fmray.model.architectures.qwen import Qwen
from fmray.model.attention import (
    attention_fault,
    check_attention,
    document_bounds,
    flash_works,
    implementation,
    require_flash,
    tell_bounds,
)
from fmray.objectives.causal_lm import CausalLM
from tests.model.test_hf_config import SMALL
from tests.train.rows import VOCAB, packed_rows

ROWS, SEQ_LEN = 3, 32
NO_FLASH = pytest.mark.skipif(not flash_works(), reason="flash attention wants a GPU and the package flash-attn")


def by_bounds(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, cu_seq_lens_q: Any = None, cu_seq_lens_k: Any = None, max_length_q: int = 0, **more: Any) -> Any:
    """What flash attention's kernel for documents computes, from the arguments that it is given: causal attention within each stretch."""
    assert mask is None
    query, key, value = (x.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for x in (query, key, value))
    assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    assert max_length_q == int(cu_seq_lens_q.diff().max())
    stretches = zip(cu_seq_lens_q[:-1].tolist(), cu_seq_lens_q[1:].tolist(), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    found = [attend(*(x[:, :, a:b] for x in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True) for a, b in stretches]
    return torch.cat(found, dim=2)[0].transpose(0, 1).unflatten(0, (ROWS, SEQ_LEN)), None


AttentionInterface.register("by_bounds", by_bounds)


def built(config: Any, attention: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def logits(model: Any, rows: Any) -> torch.Tensor:
    """As `CausalLM.loss` runs the model."""
    batch = CausalLM().collate(rows)
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=batch["input_ids_BT"].to(model.device), position_ids=batch["position_ids_BT"].to(model.device), use_cache=False).logits
    return found.float().cpu()


def kept_apart(model: Any) -> bool:
    """Whether other tokens in the first document of each row change nothing in those behind it."""
    rows = packed_rows(ROWS, SEQ_LEN)
    changed = rows | {"input_ids_BT": rows["input_ids_BT"].copy()}
    first = rows["segment_ids_BT"] == 1
    changed["input_ids_BT"][first] = (rows["input_ids_BT"][first] + 9) % VOCAB
    one, other = logits(model, rows), logits(model, changed)
    assert not torch.equal(one[torch.as_tensor(first)], other[torch.as_tensor(first)])
    return torch.equal(one[torch.as_tensor(~first)], other[torch.as_tensor(~first)])


def config_of(kind: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, vocab_size=VOCAB, pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=0.3, **SMALL)


def test_bounds_are_those_of_documents_in_all_rows():
    positions_BT = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 0, 0]])
    told = document_bounds(positions_BT)
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 8, 10, 11, 12]
    assert told["cu_seq_lens_q"].dtype == torch.int32
    assert told["max_length_q"] == told["max_length_k"] == 3
    # A row is a document's beginning, wherever its positions begin.
    assert document_bounds(torch.tensor([[4, 5, 6], [7, 8, 9]]))["cu_seq_lens_q"].tolist() == [0, 3, 6]


def test_transformers_finds_bounds_by_itself_in_a_single_row_alone():
    """The reason for `tell_bounds`; if this fails, transformers has learnt to."""
    positions_BT = torch.tensor([[0, 1, 2, 0, 1, 0]])
    assert _is_packed_sequence(positions_BT, batch_size=1)
    assert not _is_packed_sequence(positions_BT.repeat(2, 1), batch_size=2)


@pytest.mark.parametrize("kind", FAMILIES["decoder"])
def test_every_decoder_hands_the_bounds_to_its_attention(kind):
    model = built(config_of(kind), "by_bounds")
    tell_bounds(model)
    assert kept_apart(model)
    if kind != "gemma2":  # whose cap on scores the reading of the arguments above leaves out
        torch.testing.assert_close(logits(model, packed_rows(ROWS, SEQ_LEN)), logits(built(config_of(kind), "eager"), packed_rows(ROWS, SEQ_LEN)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [Decoder(num_hidden_layers=2), Qwen(num_hidden_layers=2)], ids=["decoder", "qwen"])
def test_flex_attention_keeps_documents_apart_and_computes_the_same(shape):
    config = shape.hf_config(VOCAB, SEQ_LEN)
    config.initializer_range = 0.3
    model = built(config, "flex_attention")
    # transformers would compile it, for which it takes a minute and CPUs lack the backward pass in any case.
    with torch.compiler.set_stance("force_eager"):
        assert kept_apart(model)
        found = logits(model, packed_rows(ROWS, SEQ_LEN))
    torch.testing.assert_close(found, logits(built(config, "sdpa"), packed_rows(ROWS, SEQ_LEN)), atol=1e-4, rtol=1e-4)


@NO_FLASH
@pytest.mark.parametrize("shape", [Decoder(), Qwen(), Gpt2()], ids=["decoder", "qwen", "gpt2"])
def test_flash_attention_keeps_documents_apart_and_computes_the_same(shape):
    config = shape.hf_config(VOCAB, SEQ_LEN)
    rows = packed_rows(ROWS, SEQ_LEN)
    model = tell_bounds(built(config, "flash_attention_2").to("cuda", torch.bfloat16))
    assert kept_apart(model)
    torch.testing.assert_close(logits(model, rows), logits(built(config, "sdpa").to("cuda", torch.bfloat16), rows), atol=0.05, rtol=0.05)


def test_auto_is_what_is_right_for_the_family():
    def auto(**changes):
        told = {"family": "decoder", "model_type": "llama", "precision": "bf16", "use_gpu": False} | changes
        return implementation("auto", **told)

    assert auto() == auto(family="encoder", use_gpu=True) == auto(family="image_autoencoder", use_gpu=True) == auto(precision="fp32", use_gpu=True) == "sdpa"
    assert auto(use_gpu=True) == ("flash_attention_2" if flash_works() else "sdpa")
    assert auto(model_type="gemma2") == "eager"
    assert implementation("eager", family="decoder", model_type="llama", precision="bf16", use_gpu=True) == "eager"


@pytest.mark.parametrize(("asked", "changes"), [("auto", {}), ("sdpa", {}), ("eager", {"family": "encoder"}), ("flash_attention_2", {"use_gpu": True}), ("flex_attention", {"use_gpu": True, "precision": "fp32"})])
def test_what_runs_is_not_refused(asked, changes):
    told = {"family": "decoder", "precision": "bf16", "use_gpu": False, "autocast": False} | changes
    assert attention_fault(asked, **told) is None


@pytest.mark.parametrize(
    ("asked", "told", "said"),
    [
        ("flex_attention", {"model_type": "gpt2"}, "models of the type gpt2 have no flex_attention in transformers"),
        ("flex_attention", {"model_type": "llama", "attention_dropout": 0.1}, "drops no attention weights, and the model asks for attention_dropout 0.1"),
        ("sdpa", {"model_type": "gemma2"}, "models of the type gemma2 cap their scores"),
    ],
)
def test_what_a_model_lacks_is_refused(asked, told, said):
    with pytest.raises(ConfigError, match=said) as error:
        check_attention(asked, told, "base")
    assert str(error.value).startswith("base.attention")
    assert "\n" not in str(error.value)


def test_what_transformers_lacks_is_what_is_refused():
    for kind in FAMILIES["decoder"]:
        supported = type(built(config_of(kind), "eager"))
        for asked, flag in (("sdpa", "_supports_sdpa"), ("flex_attention", "_supports_flex_attn")):
            try:
                check_attention(asked, {"model_type": kind}, "base")
                refused = False
            except ConfigError:
                refused = True
            assert refused != bool(getattr(supported, flag)), (kind, asked)
        assert supported._supports_flash_attn


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed here")
def test_flash_attention_without_its_package_is_one_line():
    with pytest.raises(ConfigError, match="needs a GPU and the package flash-attn") as error:
        require_flash()
    assert "\n" not in str(error.value)
