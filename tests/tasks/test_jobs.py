"""The experiment files of fine-tuning in jobs/: accepted as they stand, and their tasks read the data that they name."""

from pathlib import Path

import pytest

import fmray  # noqa: F401  (registers the stages)
from fmray.core.experiment import load_experiment
from fmray.tasks.sourced import Sourced
from tests.models import minilm

JOBS, DATA = Path(__file__).parents[2] / "jobs", Path(__file__).parents[3] / "shared" / "data"
FILES = {
    "finetune_summary": {"source": "tasks/summ/scitldr_A.train.jsonl.gz", "test": "tasks/summ/scitldr_A.dev.jsonl.gz"},
    "finetune_instructions": {"source": "lmeval/lambada_openai.jsonl.gz"},
    "finetune_masks": {"source": "tasks/cls_en/sentence_polarity/rt-polarity.pos.txt.gz"},
    "finetune_similarity": {"source": "tasks/counterfactual/NLI/original/train.tsv.gz"},
    "finetune_ner": {"source": "tasks/ner/wnut17.train.conll.gz", "test": "tasks/ner/wnut17.dev.conll.gz"},
    "finetune_spam": {"source": "tasks/cls_en/sms_spam.tsv.gz"},
}


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_accepted_and_its_task_reads_the_data(name: str) -> None:
    overrides = [f"tuned.task.{field}.path={DATA / path}" for field, path in FILES[name].items()]
    experiment = load_experiment(JOBS / f"{name}.yaml", [*overrides, f"base.path={minilm()}"])
    task = experiment.steps["tuned"].config.task  # type: ignore[attr-defined]
    assert isinstance(task, Sourced)
    missing = [path for path in FILES[name].values() if not (DATA / path).exists()]
    if missing:
        pytest.skip(f"{missing[0]} lies beside the project only")
    plans = {step.name: lines for step, lines in experiment.plan()}
    assert plans["tuned"]["task"] == task.name
    for field in FILES[name]:
        examples = task.examples(getattr(task, field))
        assert len(examples) > 300
        assert all(example.text.strip() for example in examples)
