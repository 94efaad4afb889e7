"""What holds for every task: one harness over all registered members, so that a new one is tested by existing."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmray.core.config import dump, load_config
from fmray.core.errors import DataError
from fmray.evaluate.comparison import compare
from fmray.evaluate.downstream import write_examples
from fmray.tasks import SPLITS, Predictions, Task, TaskData, task_from
from fmray.tasks.classifier import Classifier, Rows
from fmray.tasks.summarisation import Summarisation
from fmray.train.task_loss import TaskLoss, collate
from fmray.train.tuning import Tuned, TuningConfig, tune_classifier
from tests.evaluate.test_comparison import report
from tests.models import minilm
from tests.tasks.made import DATA, task
from tests.train import tiny

MEMBERS = list(Task.members())
LENGTH = 24


SAVE = {"masked_lm": tiny.save_encoder, "encoder": tiny.save_encoder, "seq2seq_lm": tiny.save_encoder_decoder}


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """A tiny model by what saves it."""
    folders = {save: tmp_path_factory.mktemp(save.__name__) for save in (tiny.save_decoder, tiny.save_encoder, tiny.save_encoder_decoder)}
    for save, folder in folders.items():
        save(folder)
    return folders


@pytest.fixture
def small(made: tuple[Task, TaskData], tiny_models: dict[Any, Path]) -> Path:
    """A tiny model that can bear the task's head."""
    return tiny_models[SAVE.get(made[0].head, tiny.save_decoder)]


@pytest.fixture(scope="module", params=MEMBERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, TaskData]:
    found = task(**DATA[request.param](tmp_path_factory.mktemp(request.param)))
    return found, found.load()


def gold(found: Task, data: TaskData, split: str = "test") -> list[Any]:
    """The targets as predictions: of several right answers the first."""
    targets = data.splits[split].targets
    if found.head == "masked_lm":
        return [[[word, 1] for _, word in target] for target in targets]
    if isinstance(found, Summarisation):
        return [references[0] for references in targets]
    return [answers[0][1] for answers in targets] if found.head == "question_answering" else list(targets)


def wrong(found: Task, said: list[Any]) -> list[Any]:
    """The gold of other examples, in the form that these want."""
    if found.head == "masked_lm":
        return [[["another", 9]] * len(one) for one in said]
    other = random.Random(0).sample(said, len(said))
    if found.head == "token_classification":
        return [(tags * 20)[: len(own)] for tags, own in zip(other, said, strict=True)]
    return other


def start(found: Task, data: TaskData, path: Path) -> Classifier:
    return Classifier.start(path, data.labels, seed=0, head=found.head, problem=found.problem)


def encoded(found: Task, data: TaskData, model: Classifier, split: str = "train") -> Rows:
    return found.encode(model.tokenizer, data.splits[split], LENGTH, len(data.labels))


def test_it_is_tried_with_data_of_its_own() -> None:
    assert sorted(DATA) == MEMBERS


def test_every_split_has_examples_and_none_stands_in_two(made: tuple[Task, TaskData]) -> None:
    _, data = made
    assert set(data.splits) == set(SPLITS)
    seen = [json.dumps(one) for split in data.splits.values() for one in split.inputs]
    assert len(seen) == len(set(seen))
    assert all(len(split.inputs) == len(split.targets) > 5 for split in data.splits.values())


def test_the_digest_is_of_the_data_and_saving_keeps_them(made: tuple[Task, TaskData], tmp_path: Path) -> None:
    found, data = made
    assert found.read_data().digest == data.digest
    data.save(tmp_path / "data.json", SPLITS)
    again = TaskData.read(tmp_path / "data.json")
    for name in SPLITS:
        assert json.dumps(again.splits[name].targets) == json.dumps(data.splits[name].targets)
        assert json.dumps(again.splits[name].inputs) == json.dumps(data.splits[name].inputs)


def test_it_comes_back_from_its_dump(made: tuple[Task, TaskData]) -> None:
    assert task_from(json.loads(json.dumps(dump(made[0]))), "here") == made[0]


def test_figures_are_perfect_on_the_truth_and_poor_on_shuffled_truth(made: tuple[Task, TaskData]) -> None:
    found, data = made
    said = gold(found, data, "train")
    truth = data.splits["train"].targets
    perfect = found.metrics(data.labels, truth, Predictions(said))
    assert perfect.pop("auc", 1.0) == 1.0
    assert set(perfect) == set(found.metric_names)
    assert found.main_metric in found.metric_names
    assert all(value == pytest.approx(1.0) for value in perfect.values()), perfect
    shuffled = found.metrics(data.labels, truth, Predictions(wrong(found, said)))
    assert shuffled[found.main_metric] < 0.75, shuffled


def test_weights_of_whole_numbers_are_repeated_examples(made: tuple[Task, TaskData]) -> None:
    found, data = made
    truth, said = list(data.splits["train"].targets), gold(found, data, "train")
    said = [said[0], *said[:-1]] if found.head != "token_classification" else [[0] * len(tags) if n % 2 else tags for n, tags in enumerate(said)]
    weights_N = np.random.default_rng(0).integers(1, 4, len(truth))
    weighted = found.figures(data.labels, truth, Predictions(said), weights_N[None].astype(float))
    repeat = [i for i, n in enumerate(weights_N) for _ in range(n)]
    repeated = found.metrics(data.labels, [truth[i] for i in repeat], Predictions([said[i] for i in repeat]))
    for name, value in repeated.items():
        assert weighted[name][0] == pytest.approx(value), name


def test_rows_of_a_decoder_and_an_encoder_fit_their_models(made: tuple[Task, TaskData], small: Path) -> None:
    found, data = made
    for path in (small,) if found.head in ("causal_lm", "seq2seq_lm") else (small, minilm()):
        model = start(found, data, path)
        rows = encoded(found, data, model)
        n = len(rows["example_B"])
        assert set(rows["example_B"].tolist()) == set(range(len(data.splits["train"])))
        for name, column in rows.items():
            assert column.dtype == np.int64, name
            assert column.shape[0] == n, name
            if name.endswith("_BU"):
                assert column.shape == rows["mask_BU"].shape, name
            if name.endswith("_BT"):
                assert column.shape == rows["input_ids_BT"].shape, name
        assert rows["input_ids_BT"].shape[1] <= LENGTH
        rows["row_ids_B"] = np.arange(n)
        whole = collate({name: column[:6] for name, column in rows.items()})
        loss = TaskLoss(found, None, torch.device("cpu"), model.model.config)
        model.model.eval()
        total = loss.loss(model.model, whole)
        parts = [loss.loss(model.model, collate({k: v[i : i + 1] for k, v in rows.items()})) for i in range(6)]
        assert total.count == sum(part.count for part in parts) == loss.count(whole) > 0
        assert total.sum.item() == pytest.approx(sum(part.sum.item() for part in parts), rel=1e-4), "padding and company must change nothing"


def test_predictions_are_in_the_form_of_targets_and_survive_saving(made: tuple[Task, TaskData], small: Path, tmp_path: Path) -> None:
    found, data = made
    model = start(found, data, small)
    model.longest(LENGTH)
    rows = encoded(found, data, model, "test")
    said = found.predict(found.outputs(model, rows), rows, data.splits["test"])
    json.dumps([found.shown(data.labels, value) for value in said.values])
    figures = found.metrics(data.labels, data.splits["test"].targets, said)
    assert set(figures) <= {*found.metric_names, *found.lower_is_better}
    assert all(-1 <= value <= 1 for name, value in figures.items() if name != "perplexity")
    model.save(tmp_path)
    again = Classifier.load(tmp_path, head=found.head)
    rows = found.encode(again.tokenizer, data.splits["test"], again.tokenizer.model_max_length, len(data.labels))
    assert found.predict(found.outputs(again, rows, batch_size=5), rows, data.splits["test"]).values == said.values


def is_longer(found: Task, tokenizer: Any, one: Any, limit: int) -> bool:
    """Whether an input has more tokens than the limit and is not read in windows."""
    if found.head == "encoder":
        return any(len(tokenizer(side)["input_ids"]) > limit for side in one)
    texts = [" ".join(one)] if found.head == "token_classification" else [one] if isinstance(one, str) else one
    return found.head != "question_answering" and len(tokenizer(*texts)["input_ids"]) > limit


def test_what_is_cut_is_counted(made: tuple[Task, TaskData], small: Path) -> None:
    found, data = made
    tokenizer, split = start(found, data, small).tokenizer, data.splits["test"]
    assert not found.truncated(tokenizer, split, 10_000, len(data.labels)).any()
    if found.head == "causal_lm":  # rows without a token of the answer are refused instead
        return
    expected = [is_longer(found, tokenizer, one, 14) for one in split.inputs]
    assert found.truncated(tokenizer, split, 14, len(data.labels)).tolist() == expected
    assert any(expected) == (found.head != "question_answering")


def test_two_models_are_compared_by_the_figures_of_one_example(made: tuple[Task, TaskData], tmp_path: Path) -> None:
    found, data = made
    right, reports = gold(found, data), []
    for name, said in (("a", right), ("b", wrong(found, right))):
        write_examples(tmp_path / f"{name}.jsonl", found, data, {"model": Predictions(said)}, None)
        reports.append(report(tmp_path / name, [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]))
    if not found.per_example:
        with pytest.raises(DataError, match="hold no figure that one example has on its own"):
            compare(*reports)
        return
    compared = compare(*reports)
    assert [one.name for one in compared] == [f"{found.name}/{figure}" for figure in found.per_example]
    for one in compared:
        assert one.n == len(right)
        assert one.a == pytest.approx(1.0)
        assert (one.b < 1, one.wins > 0, one.losses) == (True, True, 0)
        assert len(one.won[0]["said"]) == 2, "the reader sees what both said"


def test_baselines_say_something_of_every_test_example(made: tuple[Task, TaskData]) -> None:
    found, data = made
    for said, note in found.baselines(data, 0).values():
        assert note
        assert 0 <= found.metrics(data.labels, data.splits["test"].targets, said)[found.main_metric] <= 1


def test_a_tiny_model_learns_it(made: tuple[Task, TaskData], small: Path) -> None:
    found, data = made
    ended: list[Tuned] = []
    fields = {"task": dump(found), "epochs": 4, "optim": {"lr": 4e-3}, "max_length": LENGTH}
    tune_classifier(load_config(TuningConfig, fields), small, data, on_epoch=lambda tuned: not ended.append(tuned))
    losses = ended[-1].progress.losses
    assert np.mean(losses[-4:]) < 0.97 * np.mean(losses[:4])
