"""The loss inside of the output head: that of the whole table of logits, for every model that it is used for, with its gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

from fmray.model import target_loss as module
from fmray.model.target_loss import FUSED_TYPES, IGNORED, can_fuse, fuse_head, target_loss

VOCAB, POSITIONS = 64, 12
AUTO = {"bert": "AutoModelForMaskedLM", "roberta": "AutoModelForMaskedLM", "modernbert": "AutoModelForMaskedLM", "esm": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM", "bart": "AutoModelForSeq2SeqLM"}
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
OWN = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, "esm": {"mask_token_id": 3},
    "t5": {"vocab_size": VOCAB, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48, "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0},
    "bart": {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 1},
}  # fmt: skip


def model(kind):
    told = OWN.get(kind, {}) if kind in ("t5", "bart") else SMALL | OWN.get(kind, {})
    torch.manual_seed(0)
    made = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM")).from_config(transformers.AutoConfig.for_model(kind, **told))
    with torch.no_grad():
        # Biases of the output begin at zero, where forgetting one would go unseen.
        if (bias := made.get_output_embeddings().bias) is not None:
            bias.normal_()
    return made


def batch(kind):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(4, VOCAB, (3, POSITIONS), generator=draw)
    labels = ids.roll(-1, 1).masked_fill(torch.rand(ids.shape, generator=draw) < 0.4, IGNORED)
    return labels, {"input_ids": ids} | ({"decoder_input_ids": ids.roll(1, 1)} if kind == "t5" else {})


def pair(kind):
    plain = model(kind)
    fused = copy.deepcopy(plain)
    fuse_head(fused)
    return plain, fused


@pytest.mark.parametrize("chunk_bytes", [1, 4 * VOCAB * 7, 4 << 20])
@pytest.mark.parametrize("kind", FUSED_TYPES)
def test_loss_and_gradients_are_those_of_the_whole_table(kind, chunk_bytes, monkeypatch):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", chunk_bytes)
    plain, fused = pair(kind)
    assert can_fuse(fused)
    labels, inputs = batch(kind)
    losses = []
    for each in (plain, fused):
        loss = target_loss(each, labels, **inputs)
        (loss * 0.37).backward()
        losses.append(loss.item())
    logits = plain(**inputs).logits
    assert losses[0] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum").item(), rel=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    theirs = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["esm", "bart"])
def test_a_model_whose_logits_are_more_than_a_product_is_left_alone(kind):
    assert not can_fuse(model(kind))


def test_called_without_targets_it_gives_logits():
    plain, fused = pair("llama")
    labels, inputs = batch("llama")
    target_loss(fused, labels, **inputs)
    assert torch.equal(fused(**inputs).logits, plain(**inputs).logits)


def test_without_gradients_and_without_targets():
    plain, fused = pair("bert")
    labels, inputs = batch("bert")
    with torch.no_grad():
        assert target_loss(fused, labels, **inputs).item() == pytest.approx(target_loss(plain, labels, **inputs).item(), rel=1e-6)
    none = torch.full_like(labels, IGNORED)
    loss = target_loss(fused, none, **inputs)
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in fused.parameters())


def test_a_token_whose_chance_no_number_holds_has_a_finite_loss():
    _, fused = pair("llama")
    with torch.no_grad():
        fused.get_output_embeddings().weight.mul_(5000)
    labels, inputs = batch("llama")
    assert 1e3 < target_loss(fused, labels, **inputs).item() < float("inf")


def test_in_bf16_it_is_no_further_from_float32_than_the_whole_table():
    plain, fused = pair("llama")
    labels, inputs = batch("llama")
    exact = target_loss(plain, labels, **inputs).item()
    off = []
    for each in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16):
            off.append(abs(target_loss(each, labels, **inputs).item() - exact))
    assert off[1] <= 2 * off[0] + 1e-3 * exact
