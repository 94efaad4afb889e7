"""The experiment files of fine-tuning in jobs/: accepted as they stand, and their tasks read the data that they name."""

import json
import re
import shlex
from pathlib import Path

import pytest

import fmray  # noqa: F401  (registers the stages)
from fmray.core.errors import ArtifactError, FmrayError
from fmray.core.experiment import Experiment, load_experiment
from fmray.tasks.folds import cut
from fmray.tasks.sourced import Sourced
from fmray.train.finetune import FinetuneConfig
from tests.models import minilm
from tests.train import tiny

JOBS, DATA = Path(__file__).parents[2] / "jobs", Path(__file__).parents[3] / "shared" / "data"
POLARITY = {f"source.sources.{side}.source": f"tasks/cls_en/sentence_polarity/rt-polarity.{side[:3]}.txt.gz" for side in ("negative", "positive")}
FILES = {
    "finetune_summary": {"source": "tasks/summ/scitldr_A.train.jsonl.gz", "test": "tasks/summ/scitldr_A.dev.jsonl.gz"},
    "finetune_instructions": {"source": "lmeval/lambada_openai.jsonl.gz"},
    "finetune_masks": {"source": "tasks/cls_en/sentence_polarity/rt-polarity.pos.txt.gz"},
    "finetune_similarity": {"source": "tasks/counterfactual/NLI/original/train.tsv.gz"},
    "finetune_ner": {"source": "tasks/ner/wnut17.train.conll.gz", "test": "tasks/ner/wnut17.dev.conll.gz"},
    "finetune_spam": {"source": "tasks/cls_en/sms_spam.tsv.gz"},
    "finetune_qa": {"source": "tasks/qa/xquad.en.json.gz"},
    "finetune_polarity": POLARITY,
    "search_polarity": POLARITY,
    "finetune_cold": {"source": "tasks/cls_zh/cold.train.csv.gz", "test": "tasks/cls_zh/cold.dev.csv.gz"},
}


def model_for(name: str, folder: Path) -> Path:
    """A model that bears the head of the job's task."""
    if name == "finetune_instructions":
        tiny.save_decoder(folder, max_positions=512)
    elif name == "finetune_summary":
        tiny.save_encoder_decoder(folder, max_positions=512)
    else:
        return minilm()
    return folder


def test_summaries_by_a_decoder_as_the_job_tells_it(tmp_path: Path) -> None:
    (told,) = re.findall(r"# For a decoder: (.+)", (JOBS / "finetune_summary.yaml").read_text())
    tiny.save_decoder(tmp_path, max_positions=512)
    task = load_experiment(JOBS / "finetune_summary.yaml", [f"base.path={tmp_path}", *shlex.split(told)]).steps["tuned"].config.task  # type: ignore[attr-defined]
    assert (task.type, task.prefix, task.cue) == ("causal_summarisation", "", "\nTL;DR:")


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_accepted_and_its_task_reads_the_data(name: str, tmp_path: Path) -> None:
    overrides = [f"tuned.task.{field}.path={DATA / path}" for field, path in FILES[name].items()]
    imported = [] if name == "finetune_cold" else [f"base.path={model_for(name, tmp_path)}"]
    experiment = load_experiment(JOBS / f"{name}.yaml", [*overrides, *imported])
    task = experiment.steps["tuned"].config.task  # type: ignore[attr-defined]
    assert isinstance(task, Sourced)
    missing = [path for path in FILES[name].values() if not (DATA / path).exists()]
    if missing:
        pytest.skip(f"{missing[0]} lies beside the project only")
    plans = {step.name: lines for step, lines in experiment.plan()}
    assert plans["tuned"]["task"] == task.name
    for field in {name.partition(".")[0] for name in FILES[name]}:
        examples = task.examples(getattr(task, field))
        assert len(examples) > 300
        assert all(example.text.strip() for example in examples)


def test_every_experiment_file_of_a_task_is_among_them() -> None:
    assert {path.stem for path in (*JOBS.glob("finetune_*.yaml"), *JOBS.glob("search_*.yaml"))} == set(FILES)


def test_the_cross_validated_questions_are_all_held_out_once_by_passage() -> None:
    path = DATA / FILES["finetune_qa"]["source"]
    if not path.exists():
        pytest.skip(f"{path.name} lies beside the project only")
    config = load_experiment(JOBS / "finetune_qa.yaml", [f"tuned.task.source.path={path}", f"base.path={minilm()}"]).steps["tuned"].config
    assert isinstance(config, FinetuneConfig)
    assert config.folds == 5
    folds = cut(config.task, config.task.load(), config.folds)
    questions = [(one["context"], one["question"]) for part in folds.parts for one in part.splits["test"].inputs]
    assert len(questions) == len(set(questions)) > 1180
    passages = [{one["context"] for one in part.splits["test"].inputs} for part in folds.parts]
    assert sum(map(len, passages)) == len(set.union(*passages)) == 240
    assert all(len(part.splits["test"]) == pytest.approx(238, abs=8) for part in folds.parts)


def test_the_model_that_offence_is_learnt_from_is_made_in_the_same_file_and_small() -> None:
    experiment = load_experiment(JOBS / "finetune_cold.yaml")
    plans = {step.name: lines for step, lines in experiment.plan()}
    assert int(plans["base"]["parameters"].split(" ")[0].replace(",", "")) < 5_000_000
    assert experiment.steps["tuned"].parents == {"base"}
    assert plans["tuned"]["task"] == "cold"


def spam(folder: Path, *overrides: str) -> Experiment:
    """The job about spam on a small file of its own, imported from MiniLM."""
    rows = [f"{'spam' if number % 3 == 0 else 'ham'}\tmessage {number} says {chr(97 + number % 26) * 5} to you" for number in range(90)]
    (folder / "sms.tsv").write_text("\n".join(["Label\tSMS", *rows]))
    return load_experiment(JOBS / "finetune_spam.yaml", [f"base.path={minilm()}", f"tuned.task.source.path={folder / 'sms.tsv'}", *overrides])


def test_check_reads_the_task(tmp_path: Path) -> None:
    said = {step.name: lines for step, lines in spam(tmp_path).plan()}["tuned"]
    assert re.fullmatch(r"\d+ train, \d+ validation, \d+ test", said["examples"])
    assert said["labels"] == "ham, spam"


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("tuned.task.source.text=body", "has no column 'body'; it has: Label, SMS"),
        ("tuned.task.source.path=nowhere.tsv", "no such file"),
        ("tuned.max_length=4096", "is 4096, but the model has 512 positions"),
    ],
)
def test_check_refuses_what_the_stage_would(tmp_path: Path, override: str, error: str) -> None:
    with pytest.raises(FmrayError, match=re.escape(error)):
        list(spam(tmp_path, override).plan())


def test_check_refuses_a_task_whose_head_the_imported_model_lacks(tmp_path: Path) -> None:
    source = {"type": "csv", "path": str(tmp_path / "sms.tsv"), "text": "SMS"}
    experiment = spam(tmp_path, "tuned.task=" + json.dumps({"type": "causal_summarisation", "name": "sms", "source": source}), "tuned.metric=rouge_l")
    with pytest.raises(ArtifactError, match=r"the architecture 'bert' has no causal lm head"):
        list(experiment.plan())
