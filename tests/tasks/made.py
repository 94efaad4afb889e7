"""Small synthetic data for every task that a tiny model could learn, and the configs of tasks over them."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmray.core.config import Config, load_config
from fmray.tasks import Task
from tests.train import tiny

N = 90


class _Holder(Config):
    task: Task


def task(**fields: Any) -> Task:
    """A task from its config."""
    return load_config(_Holder, {"task": fields}).task


def text(folder: Path) -> dict[str, Any]:
    """One label a text."""
    return tiny.task(tiny.write_csv(folder / "t.csv", tiny.labelled(N // 3)))


def pairs(folder: Path) -> dict[str, Any]:
    """Whether two texts are of one topic."""
    rows, draw = tiny.labelled(N), random.Random(0)
    with (folder / "pairs.tsv").open("w", newline="") as file:
        out = csv.writer(file, delimiter="\t")
        out.writerow(["sentence1", "sentence2", "gold_label"])
        for first, label in draw.sample(rows, N):
            second, other = draw.choice(rows)
            out.writerow([first, second, "same" if label == other else "other"])
    return {"type": "pair_classification", "source": {"type": "csv", "path": str(folder / "pairs.tsv"), "text": "sentence1"}, "classes": 2}


def several(folder: Path) -> dict[str, Any]:
    """Which topics a text is of."""
    rows, draw = tiny.labelled(N), random.Random(1)
    lines = [{"text": f"{a} . {b}", "labels": sorted({one, other})} for (a, one), (b, other) in (draw.sample(rows, 2) for _ in range(N))]
    (folder / "several.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"type": "multi_label_classification", "source": {"type": "jsonl", "path": str(folder / "several.jsonl")}}


def tagged(n: int = N, seed: int = 2) -> list[list[tuple[str, str]]]:
    """Sentences in which the words of two topics are spans: what one topic word begins, a next one of the same goes on with."""
    sentences = []
    kinds = {word: label[:3].upper() for label in ("cooking", "sailing") for word in tiny.WORDS[label]}
    for sentence, _ in random.Random(seed).sample(tiny.labelled(n, seed), n):
        tags: list[tuple[str, str]] = []
        for word in sentence.split():
            kind = kinds.get(word)
            before = tags[-1][1] if tags else "O"
            tags.append((word, "O" if kind is None else f"{'I' if before[2:] == kind else 'B'}-{kind}"))
        sentences.append(tags)
    return sentences


def words(folder: Path) -> dict[str, Any]:
    """A tag a word."""
    (folder / "words.conll").write_text("\n".join("".join(f"{w}\t{t}\n" for w, t in sentence) for sentence in tagged()))
    return {"type": "token_classification", "source": {"type": "conll", "path": str(folder / "words.conll")}}


def questions(folder: Path) -> dict[str, Any]:
    """What stands behind a word of a passage."""
    draw, paragraphs = random.Random(3), []
    for number, (passage, _) in enumerate(tiny.labelled(N // 3)):
        held = passage.split()
        at = draw.randrange(len(held) - 1)
        start = len(" ".join(held[: at + 1])) + 1
        paragraphs.append({"context": passage, "qas": [{"id": str(number), "question": held[at], "answers": [{"text": held[at + 1], "answer_start": start}]}]})
    (folder / "questions.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return {"type": "question_answering", "source": {"type": "squad", "path": str(folder / "questions.json")}, "stride": 4}


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"type": "jsonl", "path": str(path)}


def topic_words(text: str) -> list[str]:
    """The words of a text that belong to a topic, in order."""
    return [word for word in text.split() if word not in tiny.PLAIN]


def summaries(folder: Path) -> dict[str, Any]:
    """Of a text its words of a topic, told in two ways; sentences are lines."""
    rows = [{"source": [text, "it was very much again"], "target": ["about " + " ".join(topic_words(text)[:3]), text]} for text, _ in tiny.labelled(N // 3)]
    return {"type": "summarisation", "source": _jsonl(folder / "s.jsonl", rows) | {"text": "source"}, "max_new_tokens": 8}


def causal_summaries(folder: Path) -> dict[str, Any]:
    """The same for a decoder."""
    return summaries(folder) | {"type": "causal_summarisation", "cue": " ="}


TEMPLATE = "{% for m in messages %}{{ m.content }}{{ ' =' if m.role == 'user' else ' ' + eos_token }}{% endfor %}"


def instructions(folder: Path) -> dict[str, Any]:
    """The last word of a text, for the asking."""
    rows = [{"text": " ".join(text.split()[-6:]), "answer": f" {text.split()[-1]}"} for text, _ in tiny.labelled(N // 3)]
    return {"type": "instruction_tuning", "source": _jsonl(folder / "i.jsonl", rows), "response": "{answer}", "chat_template": TEMPLATE, "max_new_tokens": 4}


def masks(folder: Path) -> dict[str, Any]:
    """Words of a topic, one of which is hidden."""
    return {"type": "fill_mask", "source": _jsonl(folder / "m.jsonl", [{"text": text} for text, _ in tiny.labelled(N // 3)])}


def similar(folder: Path) -> dict[str, Any]:
    """Two texts, and 4 where they are of one topic, else 0 to 2."""
    rows, draw = tiny.labelled(N), random.Random(4)
    found = []
    for first, label in draw.sample(rows, N):
        second, other = draw.choice(rows)
        found.append({"text": first, "sentence2": second, "score": 4 if label == other else draw.choice([0, 1, 2])})
    return {"type": "embedding_similarity", "source": _jsonl(folder / "e.jsonl", found), "highest": 4.0}


DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text_classification": text,
    "pair_classification": pairs,
    "multi_label_classification": several,
    "token_classification": words,
    "question_answering": questions,
    "summarisation": summaries,
    "causal_summarisation": causal_summaries,
    "instruction_tuning": instructions,
    "fill_mask": masks,
    "embedding_similarity": similar,
}
