"""Held-out loss of a model under the objective that it was pretrained with, beside a baseline and an untrained twin.

Everything is computed on the very same targets: which tokens or patches of a validation row are hidden is drawn from the seed and the
row alone.
"""

import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmray.cluster import call
from fmray.core.artifact import Artifact, load
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.core.intervals import ratio
from fmray.core.report import Metric
from fmray.core.stage import Out
from fmray.data.dataset import TOKENIZER, TokenDataset
from fmray.data.reader import TokenReader
from fmray.data.vocabulary import read_vocabulary
from fmray.evaluate.baselines import count, score
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.language_modelling import BLOCK_ROWS, EXAMPLES, Floats, read_rows, spread
from fmray.model.checkpoint import Checkpoint, read_hf_config
from fmray.model.fresh import fresh_model
from fmray.objectives import Batch, Forward, Objective, Setting, objective_from, setting_for

if TYPE_CHECKING:
    import torch

IGNORED = -100
BASELINE_ROWS = 16_384
"""So many train rows at most, evenly spread, make up a baseline."""


@dataclass(frozen=True)
class Held:
    """What a worker measured, one value a scored row (B rows): summed loss, targets, and of tokens how many were told right.

    `baseline_B` is the same loss of the baseline; `control_C` that of the twin on the C rows whose places `control_rows_C` gives.
    """

    row_ids_B: NDArray[np.int64]
    loss_B: Floats
    targets_B: Floats
    right_B: Floats | None
    baseline_B: Floats
    control_rows_C: NDArray[np.int64]
    control_C: Floats


def evaluate_held_out(config: EvaluateConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None) -> tuple[list[Metric], str]:
    """The metrics of a checkpoint by its own objective, and the name of its per-row examples file.

    Raises:
        ConfigError: no dataset is given or not one for this model, or the checkpoint was not pretrained here.
        DataError: the validation split holds nothing to predict.
    """
    objective, dataset = objective_of(checkpoint, out, dataset)
    out.progress(f"scoring {checkpoint.name} on held-out rows", done=0, total=1)
    started = time.monotonic()
    held = call(measure, config, checkpoint.payload.objective, checkpoint.path, dataset.path, num_cpus=config.num_cpus, num_gpus=config.num_gpus)
    out.spend(device="cuda" if config.num_gpus else "cpu", count=config.num_gpus or config.num_cpus, seconds=time.monotonic() - started)
    _write_examples(out.path / EXAMPLES, held)
    found = metrics(held, objective)
    out.progress(f"{len(held.row_ids_B)} rows", done=1, total=1, loss=found[0].value or math.nan)
    return found, EXAMPLES


def objective_of(checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None) -> tuple[Objective, Artifact[TokenDataset]]:
    """What a checkpoint was pretrained with, and the dataset that it can be measured on.

    Raises:
        ConfigError: the checkpoint does not say, or no dataset is given, or one that is not for this model.
    """
    about = checkpoint.payload
    if not about.objective:
        raise ConfigError(f"{checkpoint.name} does not say what it was pretrained with, so its {about.head} head cannot be measured", where=out.name, todo="evaluate a checkpoint that pretrain made, or tune this one on a task first")
    if dataset is None:
        raise ConfigError(f"a {about.head} model is evaluated on held-out rows and {out.name} names no dataset", where=f"{out.name}.dataset", todo="add `dataset: <the prepare step>`")
    objective = objective_from(about.objective)
    if dataset.payload.modality != objective.modality or dataset.payload.vocab_size > max(about.vocab_size, 0):
        raise ConfigError(f"{dataset.name} is no dataset for {checkpoint.name}: it holds other tokens or other data", where=f"{out.name}.dataset", todo="evaluate on a dataset prepared with this model's tokenizer")
    return objective, dataset


def measure(config: EvaluateConfig, objective_config: dict[str, Any], model_path: Path, dataset_path: Path) -> Held:
    """Scores the validation rows with the model, the baseline and the untrained twin, in this process.

    Raises:
        ConfigError: the model's tokenizer is not the dataset's.
        DataError: the validation split holds nothing to predict.
    """
    import torch

    torch.set_num_threads(config.num_cpus)
    device, objective = "cuda" if config.num_gpus else "cpu", objective_from(objective_config)
    payload = load(dataset_path, TokenDataset).payload
    check_tokens(payload, model_path, dataset_path)
    setting = setting_for(dataset_path, payload, read_hf_config(model_path), config.seed)
    objective.check(setting, payload.seq_len)
    rows = read_rows(dataset_path, config.max_rows)
    batches = [objective.collate({name: values[i : i + 1] for name, values in rows.items()}, setting) for i in range(len(rows["row_ids_B"]))]
    targets_B = np.array([objective.count(batch) for batch in batches], dtype=float)
    if not targets_B.sum():
        raise DataError("the validation split holds nothing to predict", where=str(dataset_path), todo="prepare a larger validation split")
    chosen_C = spread(len(batches), config.control_rows)
    loss_B, right_B = score_rows(open_model(model_path, objective, None, device), device, objective, batches)
    control_C, _ = score_rows(open_model(model_path, objective, config.seed, device), device, objective, [batches[i] for i in chosen_C])
    blocks = train_blocks(dataset_path, objective, setting)
    baseline_B = mean_image(blocks, batches, objective) if payload.modality == "image" else unigram(blocks, batches, payload.vocab_size, _mask_id(objective, setting))
    return Held(rows["row_ids_B"], loss_B, targets_B, right_B, baseline_B, chosen_C, control_C)


def open_model(path: Path, objective: Objective, seed: int | None, device: str) -> Any:
    """The model of a directory in float32, or its twin with fresh weights drawn from `seed`.

    Raises:
        ArtifactError: it cannot be opened with the objective's class.
    """
    import torch
    import transformers

    auto, safely = getattr(transformers, objective.auto_class), {"local_files_only": True, "trust_remote_code": False}
    try:
        if seed is None:
            return auto.from_pretrained(path, dtype=torch.float32, use_safetensors=True, **safely).to(device).eval()
        config = transformers.AutoConfig.from_pretrained(path, **safely)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return fresh_model(auto, config, dtype=torch.float32).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"cannot be opened with {objective.auto_class} ({str(error).splitlines()[0]})", where=str(path)) from error


def score_rows(model: Forward, device: "str | torch.device", objective: Objective, batches: Iterable[Batch]) -> tuple[Floats, Floats | None]:
    """Summed loss of each batch, and how many of its labelled tokens were told right; None where there are no such labels.

    `model` lies on `device` and is in the mode that it is to be scored in.
    """
    import torch

    seen: list[Any] = []

    def forward(**inputs: Any) -> Any:
        seen[:] = [model(**inputs)]
        return seen[0]

    losses, right = [], []
    # Not inference_mode: weights that a sharded engine gathers here are computed with again in training.
    with torch.no_grad():
        for batch in batches:
            there = {name: value.to(device) for name, value in batch.items()}
            losses.append(float(objective.loss(forward, there).sum))
            # A head that tells its loss straight away has no logits to look at.
            if "labels_BT" in there and seen[0].logits.ndim:
                right.append(int((seen[0].logits.argmax(-1) == there["labels_BT"]).sum()))
    return np.array(losses), np.array(right, dtype=float) if right else None


def train_blocks(dataset_path: Path, objective: Objective, setting: Setting) -> Iterator[Batch]:
    """The train split as batches of the objective, up to BASELINE_ROWS rows."""
    reader = TokenReader(dataset_path, "train", 0, 1)
    wanted = spread(reader.n_rows, BASELINE_ROWS)
    for start in range(0, reader.n_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, reader.n_rows)
        chosen = wanted[(wanted >= start) & (wanted < stop)] - start
        if len(chosen):
            yield objective.collate({name: values[chosen] for name, values in reader.rows(start, stop).items()}, setting)


def unigram(blocks: Iterator[Batch], batches: list[Batch], vocab_size: int, mask_id: int | None = None) -> Floats:
    """Nats of each batch's targets by how often they are targets in the train split.

    With `mask_id`, targets that show another token than the mask are told by that token as well, with the share of those in the train
    split that show themselves: a tenth of all targets do, and a baseline that did not look would be beaten by looking.
    """
    train: list[NDArray[np.int64]] = []
    n_open = n_same = 0
    for block in blocks:
        target_N, shown_N = _targets(block)
        train.append(target_N)
        n_open, n_same = n_open + int((shown_N != mask_id).sum()), n_same + int((shown_N == target_N).sum())
    counts = count(((np.zeros(len(found), np.int64), found) for found in train), vocab_size)
    pairs = [_targets(batch) for batch in batches]
    target_N, shown_N = (np.concatenate(part) for part in zip(*pairs, strict=True))
    nats_N = score(counts, np.zeros(len(target_N), np.int64), target_N)[0].nats_N
    if mask_id is not None and n_open:
        # One more of each kind, so that neither is taken to be impossible.
        looked = (n_same + 1) / (n_open + 2)
        nats_N = np.where(shown_N == mask_id, nats_N, -np.log(looked * (shown_N == target_N) + (1 - looked) * np.exp(-nats_N)))
    edges = np.cumsum([0, *(len(found) for found, _ in pairs)])
    return np.array([nats_N[a:b].sum() for a, b in itertools.pairwise(edges)])


def _targets(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The targets of a batch in row order, and what stands in their place in the input (-100 where an input has other positions)."""
    labels_BT = batch["labels_BT"].numpy()
    told_BT = labels_BT != IGNORED
    inputs_BT = batch["input_ids_BT"].numpy() if "decoder_input_ids_BT" not in batch else np.full_like(labels_BT, IGNORED)
    return labels_BT[told_BT].astype(np.int64), inputs_BT[told_BT].astype(np.int64)


def _mask_id(objective: Objective, setting: Setting) -> int | None:
    return setting.vocabulary.mask_id if objective.head == "masked_lm" and setting.vocabulary is not None else None


def mean_image(blocks: Iterator[Batch], batches: list[Batch], objective: Objective) -> Floats:
    """The loss of each batch when every hidden patch is told to be what stands there on average in the train split."""
    total, n = np.zeros(0), 0
    for block in blocks:
        targets_BNP = block["targets_BNP"].numpy().astype(np.float64)
        total, n = targets_BNP.sum(axis=0) + (total if n else 0.0), n + len(targets_BNP)
    guess_NP = total / max(n, 1)
    return np.array([_patch_loss(batch, guess_NP) for batch in batches])


def _patch_loss(batch: Batch, guess_NP: Floats) -> float:
    error_BN = ((batch["targets_BNP"].numpy() - guess_NP) ** 2).mean(axis=-1)
    return float((error_BN * batch["masked_BN"].numpy()).sum())


def metrics(held: Held, objective: Objective) -> list[Metric]:
    """Figures with intervals from resampling rows; the control is the untrained twin on its sample of the rows."""
    n_targets, picked = int(held.targets_B.sum()), held.control_rows_C
    how = f"{n_targets} targets; interval by resampling rows; control: untrained twin on {len(picked)} of the rows"
    image = objective.modality == "image"
    unit = "squared error/patch" if image else "nat/token"

    def metric(name: str, values_B: Floats, note: str, *, unit: str, better: bool = False, control: float | None = None) -> Metric:
        found = ratio(values_B, held.targets_B)
        return Metric(
            name=name, value=found.value, higher_is_better=better, stderr=found.stderr, lower=found.lower, upper=found.upper, n=found.n,
            unit=unit, method="measured", control=control, note=note,
        )  # fmt: skip

    made = [metric("eval/loss", held.loss_B, how, unit=unit, control=float(held.control_C.sum() / held.targets_B[picked].sum()))]
    name, note = ("eval/mean_image_loss", "the mean patch of the train split at that place") if image else ("eval/unigram_loss", "counted on the train split's targets (a masked model's that are not hidden are told by what they show as well); discount chosen on these very targets, which favours it")
    made.append(metric(name, held.baseline_B, f"same targets; {note}", unit=unit))
    if held.right_B is not None:
        made.append(metric("eval/accuracy", held.right_B, "targets that the model holds likeliest", unit="", better=True))
    return made


def _write_examples(path: Path, held: Held) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(held.row_ids_B):
            n = max(float(held.targets_B[i]), 1.0)
            example = {"row": int(row), "targets": int(held.targets_B[i]), "loss": round(held.loss_B[i] / n, 4), "baseline_loss": round(held.baseline_B[i] / n, 4)}
            file.write(json.dumps(example) + "\n")


def check_tokens(payload: TokenDataset, model_path: Path, dataset_path: Path) -> None:
    """Refuses a dataset whose ids mean other tokens than the model's do.

    Raises:
        ConfigError: they do.
    """
    if payload.modality == "image":
        return
    theirs, ours = read_vocabulary(model_path), read_vocabulary(dataset_path / TOKENIZER)
    if theirs.tokens != ours.tokens:
        raise ConfigError("the dataset was made with another tokenizer than the model's", where=str(dataset_path), todo="evaluate on a dataset prepared with this model's tokenizer")
