"""Masked language modelling: what is chosen and shown, and that no document sees another."""

import dataclasses

import numpy as np
import pytest
import torch

from fmray.core.errors import ConfigError
from fmray.objectives import Setting
from fmray.objectives.masked_lm import IGNORED, MaskedLM
from tests.objectives.cases import (
    CASES,
    MASK,
    SEQ_LEN,
    SIZE,
    learns_as_transformers,
    lone_rows,
    several_rows,
    vocabulary,
)
from tests.train.rows import BOS, EOS, VOCAB

SETTING = Setting(vocabulary=vocabulary())
PACKED = [case for case in CASES if isinstance(case.objective, MaskedLM) and case.rows is several_rows]


def test_the_share_is_exact_and_special_tokens_are_never_told():
    rows = several_rows(200)
    batch = MaskedLM(share=0.25).collate(rows, SETTING)
    labels_BT, ids_BT = batch["labels_BT"].numpy(), rows["input_ids_BT"]
    text_BT = (rows["segment_ids_BT"] != 0) & ~np.isin(ids_BT, (BOS, EOS))
    told_BT = labels_BT != IGNORED
    assert not (told_BT & ~text_BT).any()
    np.testing.assert_array_equal(told_BT.sum(axis=1), np.maximum(1, np.round(0.25 * text_BT.sum(axis=1))))
    np.testing.assert_array_equal(labels_BT[told_BT], ids_BT[told_BT])
    np.testing.assert_array_equal(batch["input_ids_BT"].numpy()[~told_BT], ids_BT[~told_BT])


def test_eighty_ten_ten_and_random_tokens_stand_for_text():
    rows = several_rows(2000)
    batch = MaskedLM().collate(rows, SETTING)
    told = batch["labels_BT"] != IGNORED
    shown, label = batch["input_ids_BT"][told].numpy(), batch["labels_BT"][told].numpy()
    n = len(label)
    masked, same = (shown == MASK).mean(), (shown == label).mean()
    others = shown[(shown != MASK) & (shown != label)]
    assert masked == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / n))
    # One random token in 61 is the one that stood there.
    assert same == pytest.approx(0.1 + 0.1 / 61, abs=4 * np.sqrt(0.1 / n))
    assert not np.isin(others, (0, BOS, EOS)).any()
    assert set(range(3, VOCAB)) == set(others.tolist())


def test_whole_words_are_told_whole_until_the_share_is_reached():
    rows, objective = several_rows(100), MaskedLM(share=0.3, whole_words=True)
    labels_BT = objective.collate(rows, SETTING)["labels_BT"].numpy()
    starts_V = vocabulary().word_start_V
    for ids_T, segments_T, labels_T in zip(rows["input_ids_BT"], rows["segment_ids_BT"], labels_BT, strict=True):
        words: list[list[int]] = []
        for place, token in enumerate(ids_T):
            if segments_T[place] == 0 or token in (BOS, EOS):
                continue
            if not words or words[-1][-1] != place - 1 or starts_V[token]:
                words.append([])
            words[-1].append(place)
        told = [word for word in words if labels_T[word[0]] != IGNORED]
        assert sorted(place for word in told for place in word) == np.flatnonzero(labels_T != IGNORED).tolist()
        n, wanted = sum(map(len, told)), max(1, round(0.3 * sum(map(len, words))))
        assert wanted <= n < wanted + max(map(len, words))


def test_it_says_what_the_dataset_lacks():
    def check(objective, **changes):
        objective.check(Setting(vocabulary=vocabulary(**changes)), SEQ_LEN)

    check(MaskedLM(whole_words=True))
    with pytest.raises(ConfigError, match="the dataset's tokenizer has no mask token"):
        check(MaskedLM(), mask_id=None)
    check(MaskedLM(), word_start_V=None)
    with pytest.raises(ConfigError, match="does not tell where words begin"):
        check(MaskedLM(whole_words=True), word_start_V=None)


@pytest.mark.parametrize("case", PACKED, ids=lambda case: case.name)
def test_changing_one_document_leaves_the_others_logits_unchanged(case):
    rows, model = several_rows(2), case.model()
    batch = case.objective.collate(rows, case.setting(model))
    inside = batch["segment_ids_BT"] == 1
    changed = dict(batch) | {"input_ids_BT": torch.where(inside, (batch["input_ids_BT"] + 9) % VOCAB, batch["input_ids_BT"])}
    seen = []

    def watched(**inputs):
        seen.append(model(**inputs))
        return seen[-1]

    with torch.no_grad():
        for each in (batch, changed):
            case.objective.loss(watched, each)
    a, b = (out.logits for out in seen)
    assert torch.equal(a[~inside], b[~inside])
    assert (a[inside] - b[inside]).abs().max() > 1e-4


@pytest.mark.parametrize("case", PACKED, ids=lambda case: case.name)
def test_a_packed_row_has_the_loss_of_its_documents_alone(case):
    """And that of transformers itself, which is given neither positions nor a mask of pairs."""
    rows, model = several_rows(2, seed=3), case.model()
    batch = case.objective.collate(rows, case.setting(model))
    total, count = 0.0, 0
    with torch.no_grad():
        packed = case.objective.loss(model, batch)
        for row in range(2):
            for segment in range(1, rows["segment_ids_BT"][row].max() + 1):
                mine = batch["segment_ids_BT"][row] == segment
                labels = batch["labels_BT"][row][mine][None]
                if n := int((labels != IGNORED).sum()):
                    total += model(input_ids=batch["input_ids_BT"][row][mine][None], labels=labels).loss.item() * n
                    count += n
    assert int(packed.count) == count
    assert packed.sum.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.objective, MaskedLM) and c.rows is lone_rows], ids=lambda case: case.name)
def test_lone_rows_have_transformers_own_loss_and_gradients(case):
    learns_as_transformers(case)


def test_positions_of_the_roberta_type_begin_behind_its_padding_id():
    batch = MaskedLM().collate(lone_rows(2), dataclasses.replace(SETTING, position_offset=1, one_a_row=True))
    assert batch["position_ids_BT"][:, :3].tolist() == [[1, 2, 3]] * 2
    assert batch["position_ids_BT"].max() < SIZE
