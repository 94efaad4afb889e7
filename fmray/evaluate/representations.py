"""How well an encoder trained to tell texts apart does so on held-out rows, beside an untrained twin.

Every row is read twice with dropout, as in training. Shapes: N rows, G groups of M rows, D width, R weightings.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.cluster import call
from fmray.core import intervals
from fmray.core.artifact import Artifact, load
from fmray.core.errors import ConfigError, DataError
from fmray.core.intervals import Interval
from fmray.core.report import Metric
from fmray.core.stage import Out
from fmray.data.dataset import TokenDataset
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.held_out import check_tokens, objective_of, open_model
from fmray.evaluate.language_modelling import EXAMPLES, Floats, read_rows
from fmray.model.checkpoint import Checkpoint, read_hf_config
from fmray.objectives import Setting, objective_from, setting_for
from fmray.objectives.contrastive import Contrastive

GROUP = 256
"""A row is told from about so many others."""


@dataclass(frozen=True)
class Readings:
    """What a model made of N rows, in groups of M.

    `loss_N`: nats of finding a row's second reading among those of its group; `found_N`: whether it is the nearest; `distance_N`: the
    squared distance of its two readings; `near_GMM`: exp(-2 squared distance) of the first readings of a group, 0 on the diagonal.
    """

    loss_N: Floats
    found_N: Floats
    distance_N: Floats
    near_GMM: Floats


def evaluate_representations(
    config: EvaluateConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None
) -> tuple[list[Metric], str]:
    """The metrics of an encoder by its contrastive objective, and the name of its per-row examples file.

    Raises:
        ConfigError: no dataset is given or not one for this model, or the checkpoint was not pretrained here so as to tell texts apart.
        DataError: the validation split holds fewer than two rows.
    """
    dataset = objective_of(checkpoint, out, dataset)[1]
    out.progress(f"reading held-out rows with {checkpoint.name}", done=0, total=1)
    started = time.monotonic()
    row_ids_N, model, twin = call(
        measure, config, checkpoint.payload.objective, checkpoint.path, dataset.path, num_cpus=config.num_cpus, num_gpus=config.num_gpus
    )
    out.spend(device="cuda" if config.num_gpus else "cpu", count=config.num_gpus or config.num_cpus, seconds=time.monotonic() - started)
    _write_examples(out.path / EXAMPLES, row_ids_N, model)
    found = metrics(model, twin)
    out.progress(f"{len(row_ids_N)} rows", done=1, total=1, loss=found[0].value or math.nan)
    return found, EXAMPLES


def measure(config: EvaluateConfig, objective_config: dict[str, Any], model_path: Path, dataset_path: Path) -> tuple[NDArray[np.int64], Readings, Readings]:
    """The ids of the rows that are read, and what the model and its untrained twin make of them, in this process.

    Raises:
        ConfigError: the objective makes no readings, or the model's tokenizer is not the dataset's.
        DataError: the validation split holds fewer than two rows.
    """
    import torch

    torch.set_num_threads(config.num_cpus)
    device, objective = "cuda" if config.num_gpus else "cpu", objective_from(objective_config)
    if not isinstance(objective, Contrastive):
        raise ConfigError(f"an encoder trained with {objective_config['type']} cannot be measured: it makes no two readings of a text", where="checkpoint")
    payload = load(dataset_path, TokenDataset).payload
    check_tokens(payload, model_path, dataset_path)
    setting = setting_for(dataset_path, payload, read_hf_config(model_path), config.seed)
    objective.check(setting, payload.seq_len)
    rows = read_rows(dataset_path, config.max_rows)
    n_rows = len(rows["row_ids_B"])
    if n_rows < 2:
        raise DataError("the validation split holds fewer than two rows to tell apart", where=str(dataset_path), todo="prepare a larger validation split")
    n_groups = max(1, round(n_rows / GROUP))
    rows = {name: values[: n_rows // n_groups * n_groups] for name, values in rows.items()}
    found = [_read(open_model(model_path, objective, seed, device), objective, rows, setting, config, n_groups) for seed in (None, config.seed)]
    return rows["row_ids_B"], found[0], found[1]


def _read(model: Any, objective: Contrastive, rows: dict[str, NDArray[np.int64]], setting: Setting, config: EvaluateConfig, n_groups: int) -> Readings:
    import torch

    parts = []
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(config.seed)
        model.train()
        for start in range(0, len(rows["row_ids_B"]), config.micro_batch_size):
            batch = objective.collate({name: values[start : start + config.micro_batch_size] for name, values in rows.items()}, setting)
            there = {name: value.to(model.device) for name, value in batch.items()}
            parts.append([reading.cpu().numpy().astype(np.float64) for reading in objective.readings(model, there)])
    first_ND, second_ND = (np.concatenate(part) for part in zip(*parts, strict=True))
    return told_apart(first_ND, second_ND, objective.temperature, n_groups)


def told_apart(first_ND: Floats, second_ND: Floats, temperature: float, n_groups: int) -> Readings:
    """What two readings of N rows, all of length 1, come to in groups of rows that follow each other."""
    first_GMD, second_GMD = (readings.reshape(n_groups, -1, readings.shape[1]) for readings in (first_ND, second_ND))
    cosines_GMM = first_GMD @ second_GMD.transpose(0, 2, 1)
    own_GM = np.diagonal(cosines_GMM, axis1=1, axis2=2)
    scores_GMM = cosines_GMM / temperature
    highest = scores_GMM.max(axis=2, keepdims=True)
    totals_GM = np.log(np.exp(scores_GMM - highest).sum(axis=2)) + highest[:, :, 0]
    near_GMM = np.exp(-2 * (2 - 2 * first_GMD @ first_GMD.transpose(0, 2, 1)))
    near_GMM[:, np.arange(near_GMM.shape[1]), np.arange(near_GMM.shape[1])] = 0.0
    return Readings(
        loss_N=(totals_GM - own_GM / temperature).ravel(), found_N=(cosines_GMM.argmax(axis=2) == np.arange(cosines_GMM.shape[1])).ravel().astype(float),
        distance_N=2 - 2 * own_GM.ravel(), near_GMM=near_GMM,
    )  # fmt: skip


def uniformity(readings: Readings, weights_RN: Floats) -> Floats:
    """log of the mean exp(-2 squared distance) over pairs of different rows of a group (Wang and Isola 2020, section 4), for each weighting."""
    n_groups, size = readings.near_GMM.shape[:2]
    weights_RGM = weights_RN.reshape(-1, n_groups, size)
    near_R = ((weights_RGM.transpose(1, 0, 2) @ readings.near_GMM).transpose(1, 0, 2) * weights_RGM).sum(axis=(1, 2))
    pairs_R = (weights_RGM.sum(axis=2) ** 2 - (weights_RGM**2).sum(axis=2)).sum(axis=1)
    values_R: Floats = np.log(near_R / pairs_R)
    return values_R


def metrics(model: Readings, twin: Readings) -> list[Metric]:
    """Figures with intervals from resampling rows; the control is the untrained twin on the same rows."""
    size, n_rows = model.near_GMM.shape[1], len(model.loss_N)
    how = f"{n_rows} rows read twice with dropout, each among {size}; interval by resampling rows; control: untrained twin on the same rows. It says that texts are told apart, not that like texts are near"

    def metric(name: str, found: Interval, control: float, note: str, *, unit: str = "", better: bool = False) -> Metric:
        return Metric(
            name=f"eval/{name}", value=found.value, higher_is_better=better, stderr=found.stderr, lower=found.lower, upper=found.upper, n=found.n,
            unit=unit, method="measured", control=control, note=f"{note}; {how}",
        )  # fmt: skip

    spread = intervals.statistic(lambda weights: uniformity(model, weights), n_rows)
    return [
        metric("loss", intervals.mean(model.loss_N), float(twin.loss_N.mean()), "nats of finding the second reading of a row", unit="nat/row"),
        Metric(name="eval/chance_loss", value=math.log(size), higher_is_better=None, unit="nat/row", note=f"the logarithm of {size}: all rows of a group alike"),
        metric("retrieval", intervals.mean(model.found_N), float(twin.found_N.mean()), "rows whose second reading is the nearest to the first", better=True),
        metric("alignment", intervals.mean(model.distance_N), float(twin.distance_N.mean()), "squared distance of a row's two readings (Wang and Isola 2020)"),
        metric("uniformity", spread, float(uniformity(twin, np.ones((1, n_rows)))[0]), "log of the mean exp(-2 squared distance) of two rows (Wang and Isola 2020)"),
    ]


def _write_examples(path: Path, row_ids_N: NDArray[np.int64], model: Readings) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(row_ids_N):
            example = {"row": int(row), "loss": round(model.loss_N[i], 4), "found": bool(model.found_N[i]), "distance": round(model.distance_N[i], 4)}
            file.write(json.dumps(example) + "\n")
