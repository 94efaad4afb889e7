"""Answers that a model writes: which tokens are learnt, what is written, ROUGE, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from fmray.core.config import dump, load_config
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.tasks import Predictions, Split, generative
from fmray.tasks.classifier import Classifier
from fmray.tasks.generative import IGNORED, generate
from fmray.tasks.instruction_tuning import InstructionTuning
from fmray.tasks.rouge import rouge
from fmray.tasks.summarisation import Summarisation, lead
from fmray.train.tuning import TuningConfig, tune_classifier
from tests.models import minilm
from tests.tasks.made import causal_summaries, instructions, summaries, task
from tests.train import tiny

SCITLDR = Path(__file__).parents[3] / "shared" / "data" / "tasks" / "summ" / "scitldr_A.dev.jsonl.gz"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("decoder")
    tiny.save_decoder(folder)
    return Classifier.start(folder, (), seed=0, head="causal_lm", problem=None)


def tuning(folder: Path, *rows: dict[str, Any], **fields: Any) -> InstructionTuning:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = fields.pop("text", "text")
    found = task(type="instruction_tuning", source={"type": "jsonl", "path": str(folder / "rows.jsonl"), "text": text}, **fields)
    assert isinstance(found, InstructionTuning)
    return found


def test_every_answer_of_a_conversation_is_learnt_and_nothing_else(decoder: Classifier, tmp_path: Path) -> None:
    turns = [("user", "rain or snow"), ("assistant", "snow"), ("user", "sail or mast"), ("assistant", "the mast")]
    found = tuning(tmp_path, {"messages": [{"role": role, "content": text} for role, text in turns]}, messages="messages", text="messages.content", system="be brief", chat_template="plain")
    (example,) = found.examples(found.source)
    assert [turn["role"] for turn in example.input] == ["system", "user", "assistant", "user"]
    rows = found.encode(decoder.tokenizer, Split((example.input,), (example.target,)), 64, 0)
    learnt = [int(one) for one in rows["labels_BT"][0] if one != IGNORED]
    eos = decoder.tokenizer.eos_token
    assert decoder.tokenizer.decode(learnt) == f"snow{eos}the mast{eos}", "the end of a line behind an answer is the template's"
    at = np.flatnonzero(rows["labels_BT"][0] != IGNORED)
    assert rows["labels_BT"][0, at].tolist() == rows["input_ids_BT"][0, at + 1].tolist(), "labels stand where they are predicted"
    assert decoder.tokenizer.decode(rows["input_ids_BT"][0, : rows["prompt_B"][0]]).endswith("sail or mast\nassistant\n")


def test_what_is_written_is_what_transformers_writes_alone(decoder: Classifier, tmp_path: Path) -> None:
    found = task(**instructions(tmp_path) | {"max_new_tokens": 6})
    rows = found.encode(decoder.tokenizer, found.load().splits["test"], 24, 0)
    batch = {name: torch.from_numpy(column) for name, column in rows.items()}
    decoder.model.eval()
    together = generate(decoder, batch, 6, 1)
    for row, n in enumerate(rows["prompt_B"].tolist()[:4]):
        alone = decoder.model.generate(batch["input_ids_BT"][row : row + 1, :n], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=decoder.tokenizer.eos_token_id)
        told = alone[0, n:].tolist()
        assert together[row, : len(told)].tolist() == told


def test_the_perplexity_is_that_of_the_models_own_loss(decoder: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = task(**causal_summaries(tmp_path))
    data = found.load()
    rows = found.encode(decoder.tokenizer, data.splits["test"], 24, 0)
    said = found.predict(found.outputs(decoder, rows, 4), rows, data.splits["test"])
    labels = torch.from_numpy(np.where(np.roll(rows["labels_BT"], 1, axis=1) == IGNORED, IGNORED, rows["input_ids_BT"]))
    with torch.inference_mode():
        theirs = decoder.model(input_ids=torch.from_numpy(rows["input_ids_BT"]), attention_mask=torch.from_numpy(rows["attention_mask_BT"]), labels=labels).loss
    assert found.metrics((), data.splits["test"].targets, said)["perplexity"] == pytest.approx(float(theirs.exp()), rel=1e-4)
    monkeypatch.setattr(generative, "LOGITS", 1)
    again = found.predict(found.outputs(decoder, rows, 4), rows, data.splits["test"])
    assert again.values == said.values
    np.testing.assert_allclose(again.losses_N2, said.losses_N2, rtol=1e-5, err_msg="how many rows are scored at once changes nothing")


def test_an_encoder_decoder_is_taught_what_transformers_teaches(tmp_path: Path) -> None:
    tiny.save_encoder_decoder(tmp_path)
    model = Classifier.start(tmp_path, (), seed=0, head="seq2seq_lm", problem=None)
    found = task(**summaries(tmp_path))
    rows = found.encode(model.tokenizer, found.load().splits["test"], 24, 0)
    batch = {name: torch.from_numpy(column) for name, column in rows.items()}
    model.model.eval()
    with torch.inference_mode():
        theirs = model.model(input_ids=batch["input_ids_BT"], attention_mask=batch["attention_mask_BT"], labels=batch["labels_BU"]).loss
        ours = found.loss_sum(found.forward(model.model, batch, model.model.config), batch, None) / found.n_targets(batch)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    ends = [row[row != IGNORED][-1] for row in rows["labels_BU"]]
    assert set(ends) == {model.tokenizer.eos_token_id}
    assert max((row != IGNORED).sum() for row in rows["labels_BU"]) == 8, "max_new_tokens cuts what is learnt"


def test_rouge_is_the_packages_and_the_best_over_references() -> None:
    said, right = "the cats sat on mats", ("a dog ran", "the cat sat on the mat")
    theirs = RougeScorer(["rougeL", "rouge1", "rouge2"], use_stemmer=True).score(right[1], said)
    assert rouge(said, right, False) == pytest.approx([theirs[name].fmeasure for name in ("rougeL", "rouge1", "rouge2")])
    assert rouge("今天天气好", ("今天天气不好",), True)[1] == pytest.approx(2 * 5 / (5 + 6))
    assert rouge("今天天气好", ("今天天气不好",), False)[1] == 0.0


def test_the_lead_is_the_first_sentences() -> None:
    assert lead("It was 3.5 m high. Then it fell! Why?", 2) == "It was 3.5 m high. Then it fell!"
    assert lead("今天下雨。明天晴。", 1) == "今天下雨。"
    assert lead("no end here", 3) == "no end here"


@pytest.mark.skipif(not SCITLDR.exists(), reason="SciTLDR lies beside the project only")
def test_scitldr_is_read_as_it_is() -> None:
    found = task(type="summarisation", source={"type": "jsonl", "path": str(SCITLDR), "text": "source"}, max_examples=80)
    assert isinstance(found, Summarisation)
    data = found.load()
    assert sum(len(split) for split in data.splits.values()) == 80
    assert max(len(target) for split in data.splits.values() for target in split.targets) > 1, "the dev split has several references"
    said, _ = found.baselines(data, 0)["lead"]
    test = data.splits["test"]
    assert all(text.startswith(one) for text, one in zip(test.inputs, said.values, strict=True))
    assert 0.1 < found.metrics((), test.targets, said)["rouge_l"] < 0.6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "no column"}, "prompt: name a column in braces"),
        ({"prompt": "{text"}, "write a brace itself as two"),
        ({"response": "{}"}, "response: name a column in braces"),
        ({"head": "masked_lm"}, "unknown key 'head'"),
    ],
)
def test_prompts_without_columns_are_refused_when_the_file_is_read(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tuning(tmp_path, {"text": "a", "response": "b"}, **fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"text": "a", "answer": "b"}, {}, "the source has no column 'response'; it has: text, answer, id"),
        ({"text": "a", "response": " "}, {}, "of 1 rows 1 without 'response'"),
        ({"text": "a", "turns": [{"role": "user", "content": "x"}]}, {"messages": "turns"}, "does not end with an answer of the assistant"),
        ({"text": "a", "turns": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}, {"role": "assistant", "content": "z"}]}, {"messages": "turns"}, "the conversation begins with the assistant"),
        ({"text": "a", "turns": [{"role": "teacher", "content": "x"}]}, {"messages": "turns"}, "holds no list of turns with a role (system, user, assistant) and a content"),
    ],
)
def test_rows_without_a_question_or_an_answer_are_refused(tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        tuning(tmp_path, row, **fields).load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_summaries_that_are_none_are_refused(tmp_path: Path) -> None:
    for target, message in ((3, "holds int, which is no text and no list of texts"), ([" "], "1 without 'target'")):
        (tmp_path / "s.jsonl").write_text(json.dumps({"text": "a", "target": target}) + "\n")
        with pytest.raises(DataError, match=message):
            task(type="summarisation", source={"type": "jsonl", "path": str(tmp_path / "s.jsonl")}).load()


def test_what_a_model_cannot_do_is_refused(decoder: Classifier, tmp_path: Path) -> None:
    found = tuning(tmp_path, {"text": "rain " * 40, "response": "snow"})
    split = Split(([{"role": "user", "content": "rain " * 40}],), ("snow",))
    decoder.tokenizer.chat_template = None
    with pytest.raises(ArtifactError, match=r"has no chat template; set task\.chat_template"):
        found.encode(decoder.tokenizer, split, 64, 0)
    with pytest.raises(DataError, match="of 1 examples 1 have no token of the answer within max_length 16; raise max_length"):
        tuning(tmp_path, {"text": "a", "response": "b"}, chat_template="plain").encode(decoder.tokenizer, split, 16, 0)
    with pytest.raises(ArtifactError, match="does not begin a longer conversation as it renders a shorter one"):
        tuning(tmp_path, {"text": "a", "response": "b"}, chat_template="{{ messages|length }}").encode(decoder.tokenizer, split, 16, 0)
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ messages[0].content }}"
    for template, said in ((strict, r"refuses a conversation of system, user, assistant \(TemplateError: System role not supported\)"), ("{% if %}", "TemplateSyntaxError")):
        told = Split(([{"role": "system", "content": "be brief"}, *split.inputs[0]],), ("snow",))
        with pytest.raises(DataError, match=said) as refused:
            tuning(tmp_path, {"text": "a", "response": "b"}, chat_template=template).encode(decoder.tokenizer, told, 16, 0)
        assert refused.value.exit_code == 2
    with pytest.raises(DataError, match="max_length 8 leaves no room for a text beside 8 tokens of its summary"):
        task(**causal_summaries(tmp_path)).encode(decoder.tokenizer, Split(("a",), (["b"],)), 8, 0)
    tiny.save_encoder_decoder(tmp_path / "t5")
    tiny.save_decoder(tmp_path / "llama")
    for path, head, kind in ((minilm(), "causal_lm", "bert"), (minilm(), "seq2seq_lm", "bert"), (tmp_path / "t5", "causal_lm", "t5"), (tmp_path / "t5", "encoder", "t5"), (tmp_path / "llama", "masked_lm", "llama"), (tmp_path / "llama", "seq2seq_lm", "llama")):
        with pytest.raises(ArtifactError, match=f"the architecture '{kind}' has no {head.replace('_', ' ')} head"):
            Classifier.start(path, (), seed=0, head=head, problem=None)  # type: ignore[arg-type]


def test_answers_that_the_model_has_no_positions_for_are_refused_before_training(decoder: Classifier, tmp_path: Path) -> None:
    found = task(**instructions(tmp_path) | {"max_new_tokens": 40})
    data = found.load()
    rows = found.encode(decoder.tokenizer, data.splits["test"], 60, 0)
    longest = int(rows["prompt_B"].max())
    for new, fits in ((64 - longest + 1, True), (64 - longest + 2, False)):
        asked = found.model_copy(update={"max_new_tokens": new})
        if fits:
            assert len(asked.outputs(decoder, rows)[0]) == len(data.splits["test"])
            continue
        with pytest.raises(DataError, match=f"behind a prompt of {longest} tokens the model has no positions for {new} new ones: it has 64 in all; lower task.max_new_tokens") as caught:
            asked.outputs(decoder, rows)
        assert caught.value.exit_code == 2
    tiny.save_decoder(tmp_path / "start")
    config, steps = load_config(TuningConfig, {"task": dump(found) | {"max_new_tokens": 64}, "epochs": 1}), list[int]()
    with pytest.raises(DataError, match="no positions for 64 new ones"):
        tune_classifier(config, tmp_path / "start", data, on_epoch=lambda tuned: True, on_step=lambda step, total, stats: steps.append(step))
    assert steps == []


def test_figures_without_a_models_losses_have_no_perplexity(tmp_path: Path) -> None:
    assert set(task(**summaries(tmp_path)).metrics((), [["a b"]], Predictions(["a b"]))) == {"rouge_l", "rouge_1", "rouge_2"}
