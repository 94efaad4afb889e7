"""Held-out loss, perplexity and bits per byte of a causal language model, beside its baselines and an untrained twin.

Everything is computed on the very same targets: each token of the validation rows but the first of its segment. The
bytes are those of the predicted tokens; the end of a document counts in the loss and stands for no byte.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmray.cluster import call
from fmray.core.artifact import Artifact
from fmray.core.errors import ConfigError, DataError
from fmray.core.intervals import Interval, ratio
from fmray.core.report import Metric
from fmray.core.stage import Out
from fmray.data.dataset import TokenDataset
from fmray.data.reader import TokenReader
from fmray.evaluate.baselines import count, score, targets
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.token_bytes import token_bytes
from fmray.model.checkpoint import Checkpoint
from fmray.model.language_model import LanguageModel

EXAMPLES = "examples.jsonl"
BLOCK_ROWS = 4096
EXCERPT = 200
PASS_POSITIONS = 16_384  # positions a forward pass, whose logits over a large vocabulary are what fills memory
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What a worker measured, one value a scored row (B rows): nats of the model and the baselines, targets and bytes.

    `control_nats_C` are the twin's on the C rows whose places `control_rows_C` gives. `bytes_B` is None where the tokenizer is not
    byte-level. `excerpts_B` is how each row's text begins.
    """

    row_ids_B: NDArray[np.int64]
    nats_B: Floats
    targets_B: Floats
    bytes_B: Floats | None
    unigram_B: Floats
    bigram_B: Floats
    discounts: tuple[float, float]
    control_rows_C: NDArray[np.int64]
    control_nats_C: Floats
    excerpts_B: list[str]


def evaluate_language_model(
    config: EvaluateConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None
) -> tuple[list[Metric], str]:
    """The metrics of a causal_lm checkpoint and the name of its per-row examples file.

    Raises:
        ConfigError: no dataset is given, or its token ids are not this model's.
        DataError: the validation split holds nothing to predict.
    """
    if dataset is None:
        raise ConfigError(f"a language model is evaluated on held-out rows and {out.name} names no dataset", where=f"{out.name}.dataset", todo="add `dataset: <the prepare step>`")
    if dataset.payload.modality != "text":
        raise ConfigError(f"{dataset.name} holds images, and {checkpoint.name} is a language model", where=f"{out.name}.dataset")
    if dataset.payload.vocab_size > checkpoint.payload.vocab_size:
        raise ConfigError(
            f"the dataset has {dataset.payload.vocab_size} token ids and the model {checkpoint.payload.vocab_size}", where=f"{out.name}.dataset",
            todo="evaluate on a dataset prepared with this model's tokenizer",
        )  # fmt: skip
    out.progress(f"scoring {checkpoint.name} on held-out text", done=0, total=1)
    started = time.monotonic()
    scores = call(measure, config, checkpoint.path, dataset.path, num_cpus=config.num_cpus, num_gpus=config.num_gpus)
    out.spend(device="cuda" if config.num_gpus else "cpu", count=config.num_gpus or config.num_cpus, seconds=time.monotonic() - started)
    write_examples(out.path / EXAMPLES, scores)
    found = metrics(scores)
    out.progress(f"{len(scores.row_ids_B)} rows", done=1, total=1, loss=found[0].value or math.nan)
    return found, EXAMPLES


def measure(config: EvaluateConfig, model_path: Path, dataset_path: Path) -> Scores:
    """Scores the validation rows with the model, both baselines and the untrained twin, in this process.

    Raises:
        ConfigError: the model's tokenizer is not the dataset's.
        DataError: the validation split holds nothing to predict.
    """
    import torch

    torch.set_num_threads(config.num_cpus)
    device = "cuda" if config.num_gpus else "cpu"
    model = LanguageModel.load(model_path, device=device)
    _same_tokens(model, dataset_path)
    rows = read_rows(dataset_path, config.max_rows)
    predicted_BT, history_N, target_N = targets(rows["input_ids_BT"], rows["segment_ids_BT"])
    if not len(target_N):
        raise DataError("the validation split holds nothing to predict", where=str(dataset_path), todo="prepare a larger validation split")
    counts = count(_train_blocks(dataset_path), len(model.tokenizer))
    unigram, bigram = score(counts, history_N, target_N)
    bytes_V = token_bytes(model.tokenizer)
    control_rows_C = spread(len(predicted_BT), config.control_rows)
    nats_B = row_nats(model, rows, predicted_BT, config.micro_batch_size)
    excerpts = [_excerpt(model, ids_T, segments_T) for ids_T, segments_T in zip(rows["input_ids_BT"], rows["segment_ids_BT"], strict=True)]
    del model
    twin = LanguageModel.random_twin(model_path, config.seed, device=device)
    control = {name: values[control_rows_C] for name, values in rows.items()}
    return Scores(
        row_ids_B=rows["row_ids_B"], nats_B=nats_B, targets_B=predicted_BT.sum(axis=1).astype(float),
        bytes_B=None if bytes_V is None else _by_row(predicted_BT, bytes_V[target_N]),
        unigram_B=_by_row(predicted_BT, unigram.nats_N), bigram_B=_by_row(predicted_BT, bigram.nats_N), discounts=(unigram.discount, bigram.discount),
        control_rows_C=control_rows_C, control_nats_C=row_nats(twin, control, predicted_BT[control_rows_C], config.micro_batch_size),
        excerpts_B=excerpts,
    )  # fmt: skip


def spread(n_rows: int, at_most: int | None) -> NDArray[np.int64]:
    """At most so many of `n_rows` rows, evenly spread and always the same."""
    if at_most is None or at_most >= n_rows:
        return np.arange(n_rows)
    return np.arange(at_most) * n_rows // at_most


def read_rows(dataset_path: Path, max_rows: int | None) -> dict[str, NDArray[np.int64]]:
    """The validation rows to score, as the reader's arrays with the rows as first axis."""
    reader = TokenReader(dataset_path, "validation", 0, 1)
    wanted = spread(reader.n_rows, max_rows)
    parts = []
    for start in range(0, reader.n_rows, BLOCK_ROWS):
        block = reader.rows(start, min(start + BLOCK_ROWS, reader.n_rows))
        chosen = wanted[(wanted >= start) & (wanted < start + BLOCK_ROWS)] - start
        parts.append({name: values[chosen] for name, values in block.items()})
    if not parts:
        raise DataError("the validation split has no rows", where=str(dataset_path), todo="prepare a larger validation split")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def row_nats(model: LanguageModel, rows: dict[str, NDArray[np.int64]], predicted_BT: NDArray[np.bool_], micro_batch_size: int) -> Floats:
    """The model's nats summed over the targets of each row [B].

    Raises:
        DataError: the model predicted other positions than the baselines, so that the figures could not be compared.
    """
    size = max(1, min(micro_batch_size, PASS_POSITIONS // predicted_BT.shape[1]))
    sums = []
    for start in range(0, len(predicted_BT), size):
        part = slice(start, start + size)
        nll_BT = model.token_nll(rows["input_ids_BT"][part], rows["segment_ids_BT"][part], rows["position_ids_BT"][part])
        if not np.array_equal(~np.isnan(nll_BT), predicted_BT[part]):
            raise DataError("the model's loss is not a number on some targets, or it predicts others than the baselines do", where="token_nll")
        sums.append(np.nansum(nll_BT, axis=1, dtype=np.float64))
    return np.concatenate(sums)


def metrics(scores: Scores) -> list[Metric]:
    """Figures with intervals from resampling rows; the control is the untrained twin on its sample of the rows."""
    n_targets, picked = int(scores.targets_B.sum()), scores.control_rows_C
    control_loss = float(scores.control_nats_C.sum() / scores.targets_B[picked].sum())
    loss = ratio(scores.nats_B, scores.targets_B)
    how = f"{n_targets} targets; interval by resampling rows; control: untrained twin on {len(picked)} of the rows"
    found = [
        _metric("eval/loss", loss, "nat/token", how, control_loss),
        _metric("eval/perplexity", loss.map(math.exp), "", how, math.exp(control_loss)),
    ]
    names = ("eval/bits_per_byte", "eval/unigram_bits_per_byte", "eval/bigram_bits_per_byte")
    if scores.bytes_B is None or not scores.bytes_B.sum():
        why = "the tokenizer is not byte-level, so a token stands for no fixed number of bytes" if scores.bytes_B is None else "the targets stand for no byte"
        return found + [Metric(name=name, value=None, higher_is_better=False, unit="bit/byte", note=why) for name in names]
    bits_B = scores.bytes_B * math.log(2)
    baseline = "counted on the train split; same targets; discount {:.2f} chosen on them, which favours this baseline"
    return [
        *found,
        _metric(names[0], ratio(scores.nats_B, bits_B), "bit/byte", how, float(scores.control_nats_C.sum() / bits_B[picked].sum())),
        _metric(names[1], ratio(scores.unigram_B, bits_B), "bit/byte", baseline.format(scores.discounts[0])),
        _metric(names[2], ratio(scores.bigram_B, bits_B), "bit/byte", baseline.format(scores.discounts[1])),
    ]


def write_examples(path: Path, scores: Scores) -> None:
    """One JSON line a scored row: its id, targets, bytes, the loss under model and bigram, and how its text begins."""
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(scores.row_ids_B):
            n = max(float(scores.targets_B[i]), 1.0)
            example = {
                "row": int(row), "targets": int(scores.targets_B[i]), "bytes": None if scores.bytes_B is None else int(scores.bytes_B[i]),
                "loss": round(scores.nats_B[i] / n, 4), "bigram_loss": round(scores.bigram_B[i] / n, 4), "text": scores.excerpts_B[i],
            }  # fmt: skip
            file.write(json.dumps(example, ensure_ascii=False) + "\n")


def _metric(name: str, interval: Interval, unit: str, note: str, control: float | None = None) -> Metric:
    return Metric(
        name=name, value=interval.value, higher_is_better=False, stderr=interval.stderr, lower=interval.lower, upper=interval.upper,
        n=interval.n, unit=unit, method="measured", control=control, note=note,
    )  # fmt: skip


def _train_blocks(dataset_path: Path) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    reader = TokenReader(dataset_path, "train", 0, 1)
    for start in range(0, reader.n_rows, BLOCK_ROWS):
        block = reader.rows(start, min(start + BLOCK_ROWS, reader.n_rows))
        _, history_N, target_N = targets(block["input_ids_BT"], block["segment_ids_BT"])
        yield history_N, target_N


def _same_tokens(model: LanguageModel, dataset_path: Path) -> None:
    """Refuses a dataset whose ids mean other tokens than the model's do."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dataset_path / "tokenizer", local_files_only=True)
    if tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise ConfigError("the dataset was made with another tokenizer than the model's", where=str(dataset_path), todo="evaluate on a dataset prepared with this model's tokenizer")


def _by_row(predicted_BT: NDArray[np.bool_], values_N: NDArray[np.number]) -> Floats:
    """Sums of per-target values over each row [B]."""
    grid_BT = np.zeros(predicted_BT.shape)
    grid_BT[predicted_BT] = values_N
    sums_B: Floats = grid_BT.sum(axis=1)
    return sums_B


def _excerpt(model: LanguageModel, ids_T: NDArray[np.int64], segments_T: NDArray[np.int64]) -> str:
    text: str = model.tokenizer.decode(ids_T[segments_T != 0], skip_special_tokens=True)
    return text[:EXCERPT]
