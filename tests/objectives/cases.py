"""Every registered objective with rows, a setting and a small model of each architecture that it trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fmray.data.vocabulary import Vocabulary
from fmray.model.architectures import Architecture
from fmray.model.architectures.bart import Bart
from fmray.model.architectures.decoder import Decoder
from fmray.model.architectures.encoder import Encoder
from fmray.model.architectures.gpt2 import Gpt2
from fmray.model.architectures.qwen import Qwen
from fmray.model.architectures.t5 import T5
from fmray.model.architectures.vit_mae import VitMae
from fmray.model.fresh import fresh_model
from fmray.model.positions import patch_size, position_offset
from fmray.objectives import Objective, Rows, Setting
from fmray.objectives.causal_lm import CausalLM
from fmray.objectives.contrastive import Contrastive
from fmray.objectives.denoising import Denoising
from fmray.objectives.masked_image import MaskedImage
from fmray.objectives.masked_lm import MaskedLM
from fmray.objectives.span_corruption import SpanCorruption
from fmray.objectives.supervised import Supervised
from tests.train.rows import BOS, EOS, PAD, VOCAB, packed_rows

SEQ_LEN, MASK, N_SENTINELS = 32, VOCAB, 15
IMAGE = (16, 16, 3)
SIZE = VOCAB + 1 + N_SENTINELS
"""The tokens of the rows, a mask, sentinels."""


def vocabulary(**changes: Any) -> Vocabulary:
    """Of the rows in tests/train/rows.py; every third token begins a word, and every ninth ends a sentence."""
    special_V = np.zeros(SIZE, dtype=bool)
    special_V[[BOS, EOS, PAD, *range(MASK, SIZE)]] = True
    about: dict[str, Any] = {
        "tokens": {f"{i}." if i % 9 == 5 else str(i): i for i in range(SIZE)}, "special_V": special_V, "mask_id": MASK, "bos_id": BOS, "eos_id": EOS, "pad_id": PAD,
        "sentinel_ids": tuple(range(MASK + 1, SIZE)), "word_start_V": np.arange(SIZE) % 3 == 0,
    }  # fmt: skip
    return Vocabulary(**about | changes)


def lone_rows(n_rows: int, seed: int = 0) -> Rows:
    """One document a row, padded."""
    rows = {name: values.copy() for name, values in packed_rows(n_rows, SEQ_LEN, seed, longest=28).items()}
    rest = rows["segment_ids_BT"] > 1
    for name, value in (("input_ids_BT", PAD), ("segment_ids_BT", 0), ("position_ids_BT", 0)):
        rows[name][rest] = value
    return rows


def several_rows(n_rows: int, seed: int = 0) -> Rows:
    """Several documents a row, padded."""
    return packed_rows(n_rows, SEQ_LEN, seed)


def image_rows(n_rows: int, seed: int = 0) -> Rows:
    """Images of noise."""
    draw = np.random.default_rng(seed)
    return {"row_ids_B": np.arange(n_rows), "pixels_BHWC": draw.integers(0, 256, (n_rows, *IMAGE), dtype=np.uint8), "labels_B": np.full(n_rows, -1)}


@dataclass(frozen=True)
class Case:
    """An objective, what it trains and what on."""

    objective: Objective
    architecture: Architecture
    rows: Callable[..., Rows] = several_rows
    image_shape: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """For the test's id."""
        normalised = isinstance(self.objective, MaskedImage) and self.objective.normalised
        packed = ", normalised" if normalised else "" if self.image_shape else ", packed" if self.rows is several_rows else ", one a row"
        return f"{type(self.objective).__name__} on {getattr(self.architecture, 'variant', self.architecture.type)}{packed}"

    def model(self) -> Any:
        """A fresh small model."""
        import transformers

        config = self.architecture.fit(self.image_shape).hf_config(0 if self.image_shape else SIZE, SEQ_LEN)
        if not self.image_shape:
            config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, EOS, PAD
            if offset := position_offset(config.to_dict()):
                config.max_position_embeddings += offset
        self.objective.configure(config)
        torch.manual_seed(0)
        return fresh_model(getattr(transformers, self.objective.auto_class), config, attn_implementation="sdpa").eval()

    def setting(self, model: Any, seed: int = 0) -> Setting:
        """What the objective is told."""
        config = model.config.to_dict()
        return Setting(seed, None if self.image_shape else vocabulary(), self.rows is not several_rows, position_offset(config), patch_size(config))


SMALL = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 96}
CASES = [
    Case(CausalLM(), Decoder(**SMALL)),
    Case(CausalLM(), Gpt2(**SMALL)),
    *(Case(CausalLM(), Qwen(variant=variant, num_key_value_heads=1, **SMALL)) for variant in ("qwen2", "qwen3")),
    *(Case(MaskedLM(), Encoder(variant=variant, **SMALL)) for variant in ("bert", "roberta", "modernbert")),
    *(Case(MaskedLM(), Encoder(variant=variant, **SMALL), lone_rows) for variant in ("bert", "roberta", "modernbert", "esm")),
    *(Case(MaskedImage(normalised=normalised), VitMae(num_hidden_layers=2), image_rows, IMAGE) for normalised in (True, False)),
    Case(SpanCorruption(share=0.3), T5(num_layers=2, d_model=48, num_heads=2, d_kv=24, d_ff=96), lone_rows),
    Case(Denoising(), Bart(num_layers=2, d_model=48, num_heads=2, ffn_dim=96), lone_rows),
    *(Case(Contrastive(pooling="cls"), Encoder(variant=variant, **SMALL), lone_rows) for variant in ("bert", "roberta", "esm")),
    Case(Contrastive(), Encoder(variant="modernbert", **SMALL), lone_rows),
    Case(MaskedLM(share=0.3, whole_words=True), Encoder(**SMALL)),
]
# Labels and not rows of a dataset: it has a test of its own.
ELSEWHERE = (Supervised,)


def learns_as_transformers(case: Case) -> None:
    """Checks that loss and gradients over rows of one document are those that transformers computes from the same batch."""
    ours, theirs, rows = case.model(), case.model(), lone_rows(4)
    batch = case.objective.collate(rows, case.setting(ours))
    parts = case.objective.loss(ours, batch)
    (parts.sum / parts.count).backward()
    loss = theirs(input_ids=batch["input_ids_BT"], attention_mask=batch["attention_mask_BT"], labels=batch["labels_BT"]).loss
    loss.backward()
    assert (parts.sum / parts.count).item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        # ESM's contact head is trained apart, from attention maps.
        if "contact_head" not in name:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
