"""Tasks that cannot be put to a model are refused when the experiment is read: one line, exit code 2."""

from pathlib import Path

import numpy as np
import pytest

from fmray.core.config import load_config
from fmray.core.errors import ConfigError, DataError, FmrayError
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.lm_tasks.config import OUTPUTS, read_definition, shipped
from fmray.evaluate.lm_tasks.documents import contaminated, draw
from fmray.evaluate.lm_tasks.opened import OpenTask
from tests.data.corpora import topics
from tests.evaluate.lives import corpus
from tests.evaluate.lm_tasks.small import sentence, write

PLAIN = "output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\n"


def refused(entry: dict, name: str = "mine") -> str:
    with pytest.raises(FmrayError) as error:
        load_config(EvaluateConfig, {"tasks": {name: {"path": "data.jsonl", **entry}}}, "step")
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", shipped())
def test_shipped_definitions_can_be_read(name):
    assert read_definition(name)["output_type"] in OUTPUTS


def test_a_task_that_there_is_none_of():
    assert "did you mean 'piqa'?" in refused({}, "pika")


def test_a_metric_that_the_task_lacks():
    assert "step.tasks.piqa.metrics: the task piqa has no metric 'f1'; it has: acc, acc_norm" in refused({"metrics": ["f1"]}, "piqa")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("multiple_choice", "multiple_choices"), "unknown output_type 'multiple_choices', did you mean 'multiple_choice'?"),
        (("metric: acc", "metric: rouge"), "asks for the metric 'rouge', which multiple_choice does not give"),
        (("metric_list: [{metric: acc}]", "metric_list: acc"), "needs a `metric_list`"),
        (("doc_to_choice: choices\n", ""), "lacks `doc_to_choice`"),
        (("doc_to_text: query", "doc_to_text: query\nnum_fewshot: many"), "has num_fewshot 'many', which is no number from 0 to 64"),
        (("doc_to_text: query", "doc_to_text: query\nfewshot_config: 3"), "has a `fewshot_config` that is no mapping"),
        (("doc_to_text: query", "doc_to_text: query\nfewshot_config: {samples: [{query: a}]}"), "names its solved examples in `fewshot_config.samples`"),
        (("doc_to_text: query", "doc_to_text: !function a.b"), "is not valid YAML at line 2"),
    ],
)
def test_a_task_file_that_is_none(tmp_path: Path, change, said):
    (tmp_path / "mine.yaml").write_text(PLAIN.replace(*change))
    assert said in refused({"task": str(tmp_path / "mine.yaml")})


def test_a_definitions_solved_examples_are_as_many_and_written_as_it_says(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", [{"query": f"q{i}", "choices": ["b", "c"], "gold": i % 2} for i in range(6)])
    (tmp_path / "mine.yaml").write_text(PLAIN + 'num_fewshot: 2\nfewshot_config: {split: dev, sampler: default, doc_to_text: "Solved {{query}}:"}\n')
    for told, shots in (({}, 2), ({"shots": 1}, 1), ({"shots": 0}, 0)):
        (task,) = load_config(EvaluateConfig, {"tasks": {"mine": {"task": str(tmp_path / "mine.yaml"), "path": path, **told}}}).tasks.values()
        assert task.shots == shots
        contexts = [ask.arguments[0] for ask in OpenTask("mine", task, draw("mine", task, 0)).asks]
        assert [context.count("Solved q") for context in contexts] == [shots] * (2 * (6 - shots)), contexts[0]


@pytest.mark.parametrize(("usual", "gold"), [(0, 2), (0, -1), ("b", "d"), ([1], [5]), ([1], [])])
def test_a_document_whose_answer_is_none_of_its_choices_is_refused(tmp_path: Path, usual, gold):
    (tmp_path / "mine.yaml").write_text(PLAIN)
    path = write(tmp_path / "d.jsonl", [{"query": "a", "choices": ["b", "c"], "gold": gold if i == 2 else usual} for i in range(4)])
    (task,) = load_config(EvaluateConfig, {"tasks": {"mine": {"task": str(tmp_path / "mine.yaml"), "path": path}}}).tasks.values()
    with pytest.raises(DataError, match=r"document 2: its right answer .* is none of its 2 choices") as error:
        OpenTask("mine", task, draw("mine", task, 0))
    assert error.value.exit_code == 2


def test_f1_of_more_than_two_choices_is_refused_before_anything_is_asked(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(PLAIN.replace("metric: acc", "metric: f1"))
    for choices in (["b", "c"], ["b", "c", "d"]):
        path = write(tmp_path / "d.jsonl", [{"query": "a", "choices": choices, "gold": 0}] * 3)
        (task,) = load_config(EvaluateConfig, {"tasks": {"mine": {"task": str(tmp_path / "mine.yaml"), "path": path}}}).tasks.values()
        if len(choices) == 2:
            OpenTask("mine", task, draw("mine", task, 0))
            continue
        with pytest.raises(ConfigError, match="f1 is for documents with two choices, one of them right, and document 0 has 3") as error:
            OpenTask("mine", task, draw("mine", task, 0))
        assert error.value.where == "tasks.mine"


def test_whole_texts_take_no_examples_and_names_are_spelled_as_rules_can():
    assert "no example can stand before them" in refused({"shots": 1}, "perplexity")
    assert "is no name for a task" in refused({"task": "piqa"}, "a task")


def test_documents_that_lack_a_field_are_named(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", [{"question": "a", "choices": ["b", "c"], "gold": 0}] * 2)
    (task,) = load_config(EvaluateConfig, {"tasks": {"piqa": {"path": path}}}).tasks.values()
    with pytest.raises(FmrayError, match=r"cannot be put to its documents .*'query' is undefined.* has: question, choices, gold") as error:
        OpenTask("piqa", task, draw("piqa", task, 0))
    assert error.value.exit_code == 2


def test_the_same_documents_are_drawn_whatever_the_shots_and_none_of_these_is_scored(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", [{"text": str(i)} for i in range(50)])
    drawn = {shots: draw("t", load_config(EvaluateConfig, {"tasks": {"copa": {"path": path, "limit": 20, "shots": shots}}}).tasks["copa"], 3) for shots in (0, 1, 5)}
    assert drawn[0].places == drawn[1].places == drawn[5].places == tuple(sorted(set(drawn[0].places)))
    assert drawn[1].shot_places == drawn[5].shot_places[-1:]
    assert not set(drawn[5].shot_places) & set(drawn[5].places)
    few = load_config(EvaluateConfig, {"tasks": {"copa": {"path": path, "shots": 50}}}).tasks["copa"]
    with pytest.raises(DataError, match="too few for 50 solved examples"):
        draw("t", few, 0)


def test_a_text_that_was_trained_on_is_found_wherever_rows_cut_it():
    paragraphs = [text for text in topics() if len(text.split()) > 60][:30]
    texts = [" ".join(text.split()[8:30]) for text in paragraphs] + [sentence(1, 20), "too short"]
    hit = contaminated(texts, corpus().path)
    # A tenth of the corpus validates and trains nothing, and some texts here lie beyond what was taken.
    # Words are counted without what is no letter, so one or another text may be too short.
    assert np.nanmean(hit[:30]) > 0.5
    assert hit[30] == 0
    assert hit[31] != hit[31], "fewer than thirteen words cannot be looked for"
