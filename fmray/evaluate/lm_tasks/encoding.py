"""Texts of requests as tokens, cut where lm-eval cuts them."""

from functools import lru_cache
from typing import Any

from fmray.core.errors import ArtifactError, DataError
from fmray.data.vocabulary import Vocabulary
from fmray.evaluate.lm_tasks.packing import Request, Tokens


def check_fits(vocabulary: Vocabulary, vocab_size: int, head: str, where: str) -> None:
    """Refuses a checkpoint whose tokenizer is not its model's.

    Raises:
        ArtifactError: it has ids that the model has none of, or lacks the token that tasks of this head need.
    """
    n_ids = len(vocabulary.special_V)
    if n_ids > vocab_size:
        raise ArtifactError(f"its tokenizer has ids up to {n_ids - 1} and its model none beyond {vocab_size - 1}", where=where, todo="give the checkpoint the tokenizer that it was trained with")
    if head == "masked_lm" and vocabulary.mask_id is None:
        raise ArtifactError("its tokenizer has no mask token, so no token of a text can be hidden", where=where, todo="give the checkpoint the tokenizer that it was trained with")
    if head == "causal_lm" and vocabulary.bos_id is None and vocabulary.eos_id is None:
        raise ArtifactError("its tokenizer has neither a bos nor an eos token, so a text's first token cannot be asked for", where=where, todo="name one in tokenizer_config.json")


class Encoder:
    """A tokenizer with what it puts in front of a text and behind it."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        plain, special = self.plain("a"), tokenizer("a")["input_ids"]
        at = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
        self.front: Tokens = special[:at]
        self.back: Tokens = special[at + len(plain) :]
        self.beginning: int = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._cached = lru_cache(maxsize=64)(self.plain)

    def plain(self, text: str) -> Tokens:
        """A text alone."""
        ids: Tokens = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def request(self, group: int, context: str, continuation: str) -> Request:
        """A context and its continuation as a causal model reads them.

        As in lm-eval, spaces at the end of a context belong to the continuation; both are tokenized together and cut by the number
        of the context's tokens; and a continuation without a context stands behind the token that begins a text.

        Raises:
            DataError: nothing of the continuation is left to ask for, or it is longer than the model's positions.
        """
        context, continuation = moved(context, continuation)
        if not context:
            ids = self.plain(continuation)
            before, ids = ([self.beginning], ids) if ids[:1] != [self.beginning] else (ids[:1], ids[1:])
            return self._checked(Request(group, before, ids), continuation)
        before = [*self.front, *self._cached(context)]
        whole = [*self.front, *self.plain(context + continuation)]
        return self._checked(Request(group, before, whole[len(before) :]), continuation)

    def hidden_request(self, group: int, context: str, continuation: str) -> Request:
        """The same for a masked model, which reads `front` and `back` around both.

        Raises:
            DataError: see `request`.
        """
        context, continuation = moved(context, continuation)
        whole, before = self.plain(context + continuation), self._cached(context) if context else []
        return self._checked(Request(group, list(before), whole[len(before) :]), continuation, around=len(self.front) + len(self.back))

    def windows(self, text: str, *, masked: bool) -> list[tuple[Tokens, Tokens]]:
        """A whole text in windows as long as the model's positions, as contexts and continuations: each token is asked for once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        if masked:
            ids, size = self.plain(text), self.max_length - len(self.front) - len(self.back)
            return [([], ids[start : start + size]) for start in range(0, len(ids), size)]
        ids = [*self.front, *self.plain(text)]
        pairs = get_rolling_token_windows(token_list=ids, prefix_token=self.beginning, max_seq_len=self.max_length, context_len=1)
        return [make_disjoint_window(pair) for pair in pairs]

    def context(self, text: str, room: int) -> tuple[Tokens, bool]:
        """The last tokens of a context that leave `room` for what is written, and whether its beginning was lost.

        Raises:
            DataError: the model has no such room.
        """
        if room >= self.max_length:
            raise DataError(f"the task writes {room} tokens and the model has only {self.max_length} positions", where=text[:40], todo="lower max_gen_toks in the task's definition")
        ids = [*self.front, *self.plain(text)]
        return ids[-(self.max_length - room) :], len(ids) > self.max_length - room

    def _checked(self, request: Request, text: str, around: int = 0) -> Request:
        n, most = len(request.continuation), self.max_length - around
        if not n or n > most:
            what = "no token that is asked for" if not n else f"{n} tokens that are asked for and the model only {most} positions"
            raise DataError(f"a continuation has {what}", where=repr(text[:40]))
        return request


def moved(context: str, continuation: str) -> tuple[str, str]:
    """Context and continuation with the spaces between them on the side of the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
