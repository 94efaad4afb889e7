"""Shadow requests: the same question to champion and candidate, made deterministic, and how far their answers agree."""

import itertools
from typing import Any

# Fields that make an answer random, several, or a stream.
_VARIED = ("stream", "stream_options", "n", "best_of", "logprobs", "top_logprobs", "echo", "top_p", "top_k", "min_p", "seed")
GENERATING = ("/v1/completions", "/v1/chat/completions")
SCORING = ("/v1/classify",)


def deterministic(route: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
    """The body of a request whose answer depends on the model alone; None where answers cannot be compared."""
    if body is None or route not in (*GENERATING, *SCORING):
        return None
    if route in SCORING:
        return body
    return {key: value for key, value in body.items() if key not in _VARIED} | {"temperature": 0}


def agreement(champion: Any, candidate: Any) -> float:
    """How far two answers agree, between 0 and 1: the mean over their parts of equal labels, or of the common beginning's share
    of the longer text."""
    left, right = _parts(champion), _parts(candidate)
    if not left or len(left) != len(right):
        return 0.0
    return sum(_alike(a, b) for a, b in zip(left, right, strict=True)) / len(left)


def _parts(answer: Any) -> list[tuple[str, bool]]:
    """The texts (False) or labels (True) of an answer."""
    if "choices" in answer:
        return [(str(c["text"] if "text" in c else c["message"]["content"]), False) for c in answer["choices"]]
    return [(str(d.get("label")), True) for d in answer.get("data", ())]


def _alike(left: tuple[str, bool], right: tuple[str, bool]) -> float:
    longer = max(len(left[0]), len(right[0]))
    if left == right or longer == 0:
        return 1.0
    if left[1]:
        return 0.0
    pairs = zip(left[0], right[0], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) / longer
