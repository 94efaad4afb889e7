"""Span corruption: nothing is lost, spans are as many and as long as said, and transformers' own loss."""

import dataclasses

import numpy as np
import pytest

from fmray.core.errors import ConfigError
from fmray.objectives import Setting
from fmray.objectives._encoder_decoder import IGNORED
from fmray.objectives.span_corruption import SpanCorruption, _cut
from tests.objectives.cases import CASES, SEQ_LEN, learns_as_transformers, lone_rows, vocabulary
from tests.train.rows import BOS, EOS, PAD

SETTING = Setting(vocabulary=vocabulary(), one_a_row=True)
CASE = next(case for case in CASES if isinstance(case.objective, SpanCorruption))


def test_input_and_target_together_are_the_document():
    rows, objective = lone_rows(100), SpanCorruption(share=0.3, mean_span=2)
    batch = objective.collate(rows, SETTING)
    sentinels = list(vocabulary().sentinel_ids)
    for row in range(100):
        given = rows["input_ids_BT"][row][rows["segment_ids_BT"][row] == 1].tolist()
        shown = [t for t, m in zip(batch["input_ids_BT"][row].tolist(), batch["attention_mask_BT"][row].tolist(), strict=True) if m]
        target = [t for t in batch["labels_BT"][row].tolist() if t != IGNORED]
        assert (shown[0], shown[-1], target[0], target[-1]) == (BOS, EOS, sentinels[0], EOS)
        spans: dict[int, list[int]] = {}
        for token in target[:-1]:
            if token in sentinels:
                spans[token] = []
            else:
                spans[sentinels[len(spans) - 1]].append(token)
        assert list(spans) == sentinels[: len(spans)] == [t for t in shown if t in sentinels]
        assert [t for token in shown for t in spans.get(token, [token])] == given
        hidden = max(1, round(0.3 * (len(given) - 2)))
        assert sum(map(len, spans.values())) == hidden
        assert len(spans) == max(1, round(hidden / 2))
        assert min(map(len, spans.values())) >= 1
        assert batch["decoder_input_ids_BT"][row, : len(target)].tolist() == [PAD, *target[:-1]]


def test_every_cut_is_equally_likely():
    draw = np.random.default_rng(0)
    seen = np.unique([tuple(_cut(5, 3, draw)) for _ in range(6000)], axis=0, return_counts=True)
    assert len(seen[0]) == 6
    assert np.all(np.abs(seen[1] - 1000) < 4 * np.sqrt(6000 * (1 / 6) * (5 / 6)))


def test_loss_and_gradients_are_those_of_transformers():
    learns_as_transformers(CASE)


def test_a_document_of_one_token_has_no_target():
    rows = {name: values.copy() for name, values in lone_rows(1).items()}
    rows["segment_ids_BT"][:, 3:] = 0
    rows["input_ids_BT"][:, 2] = EOS
    assert SpanCorruption().count(SpanCorruption().collate(rows, SETTING)) == 0


def test_it_says_what_the_dataset_lacks():
    SpanCorruption().check(SETTING, SEQ_LEN)
    with pytest.raises(ConfigError, match="rows of one document each"):
        SpanCorruption().check(dataclasses.replace(SETTING, one_a_row=False), SEQ_LEN)
    with pytest.raises(ConfigError, match="rows of 1024 tokens need 51 sentinels and the dataset's tokenizer has 15"):
        SpanCorruption().check(SETTING, 1024)
