"""The evaluate stage: what a checkpoint can do, measured on text that it was not trained on."""

from collections.abc import Mapping

from fmray.core.artifact import Artifact
from fmray.core.config import Config
from fmray.core.report import Report
from fmray.core.stage import Out, stage
from fmray.data.dataset import TokenDataset
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.downstream import evaluate_downstream
from fmray.evaluate.held_out import evaluate_held_out
from fmray.evaluate.language_modelling import evaluate_language_model
from fmray.evaluate.lm_tasks.documents import draw
from fmray.evaluate.lm_tasks.run import evaluate_lm_tasks
from fmray.evaluate.representations import evaluate_representations
from fmray.model.checkpoint import Checkpoint

# By the head of the checkpoint: (config, checkpoint, out, dataset) -> its metrics and the name of its per-example file.
MEASURES = {
    "causal_lm": evaluate_language_model,
    "masked_lm": evaluate_held_out,
    "masked_image": evaluate_held_out,
    "seq2seq_lm": evaluate_held_out,
    "encoder": evaluate_representations,
    "sequence_classification": evaluate_downstream,
    "token_classification": evaluate_downstream,
    "question_answering": evaluate_downstream,
}


def plan(config: EvaluateConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """The lines for `fmray check`."""
    if config.tasks:
        counts = {name: len(draw(name, task, config.seed).places) for name, task in config.tasks.items()}
        return {"tasks": ", ".join(f"{name} ({n} documents, {config.tasks[name].shots} shots)" for name, n in counts.items())}
    return {"rows": "all held-out rows" if config.max_rows is None else f"at most {config.max_rows} held-out rows"}


@stage("evaluate", version=1, recompute=True, plan=plan)
def evaluate(config: EvaluateConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None = None) -> Report:
    """Measures a checkpoint on the tasks given, else on the one that it was tuned for, else by its head, and reports the figures about it."""
    if config.tasks:
        metrics, findings, examples = evaluate_lm_tasks(config, checkpoint, out, dataset)
        return Report(subject=checkpoint.fingerprint, metrics=tuple(metrics), findings=tuple(findings), examples=examples)
    measure = MEASURES[checkpoint.payload.head] if checkpoint.payload.task is None else evaluate_downstream
    metrics, examples = measure(config, checkpoint, out, dataset)
    return Report(subject=checkpoint.fingerprint, metrics=tuple(metrics), examples=examples)
