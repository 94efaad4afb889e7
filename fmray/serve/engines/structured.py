"""Answers that keep to a JSON schema: at each step the tokens that would break it lose their probability (llguidance, extra `structured`).

Legend: V vocabulary.
"""

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.serve.engine import RequestError

PARAM = "response_format"
MAX_SCHEMA_BYTES = 64 * 1024
KEPT_SCHEMAS = 64
SHOWN = 300
# Blanks between the parts of JSON: one at most, or a model that is fond of them would fill its answer with nothing else.
WHITESPACE = "[ ]?"


class Follower:
    """Where one answer stands in its schema. `fault` says why nothing can follow any more, where that is no end."""

    def __init__(self, matcher: Any, vocab_size: int, eos: Collection[int]) -> None:
        self._matcher, self._vocab_size, self._eos = matcher, vocab_size, list(eos)
        self._n_read = 0
        self.fault: str | None = None

    def allowed(self, answer: Sequence[int]) -> NDArray[np.bool_]:
        """Which tokens may follow an answer that holds these so far: [V]. After a fault only the end, so that the request ends."""
        if len(answer) < self._n_read:
            self._matcher.rollback(self._n_read - len(answer))
        else:
            self._matcher.consume_tokens(list(answer[self._n_read :]))
        self._n_read = len(answer)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed_V = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)
        if self._matcher.is_error():
            self.fault = _one_line(self._matcher.get_error())
            allowed_V = np.zeros(self._vocab_size, bool)
            allowed_V[self._eos] = True
        return allowed_V


class Structures:
    """The schemas that requests to one model ask for; compiled once, the last `KEPT_SCHEMAS` of them kept."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._vocabularies: dict[tuple[int, ...], Any] = {}
        self._compiled: OrderedDict[tuple[tuple[int, ...], str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def follower(self, schema: str, eos: Collection[int]) -> Follower:
        """What follows an answer through a schema (JSON). A new schema takes milliseconds, the first one about a second.

        Args:
            eos: the ids that end a text of this model.

        Raises:
            RequestError: (400) no schema that can be kept to, a model that cannot end, or llguidance is not installed here.
        """
        if importlib.util.find_spec("llguidance") is None:
            raise _refused("needs llguidance on the server (pip install 'fmray[structured]')")
        if not eos:
            raise _refused("needs a model that can end its answer, and this one has no end token")
        if len(schema.encode()) > MAX_SCHEMA_BYTES:
            raise RequestError(400, f"the schema is longer than {MAX_SCHEMA_BYTES} bytes", param=PARAM)
        ends = tuple(sorted(eos))
        key = (ends, schema)
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(schema, ends)
                if len(self._compiled) > KEPT_SCHEMAS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return Follower(self._compiled[key].deep_copy(), self._vocab_size, ends)

    def _compile(self, schema: str, eos: tuple[int, ...]) -> Any:
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        if eos not in self._vocabularies:
            try:
                self._vocabularies[eos] = from_tokenizer(self._tokenizer, self._vocab_size, list(eos))
            except Exception as error:
                raise _refused(f"cannot be followed with this model's tokenizer ({_one_line(str(error))})") from None
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
        matcher = LLMatcher(self._vocabularies[eos], grammar, log_level=0)
        if matcher.is_error():
            raise RequestError(400, f"the schema cannot be kept to: {_one_line(matcher.get_error())}", param=PARAM)
        return matcher


def _one_line(said: str) -> str:
    return " ".join(said.split())[:SHOWN]


def _refused(why: str) -> RequestError:
    return RequestError(400, f"'{PARAM}' {why}", param=PARAM, code="unsupported_parameter")
