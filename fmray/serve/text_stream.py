"""From token ids that arrive one by one to text that can be sent: whole characters only, and nothing past a stop string."""

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"


class Decoder(Protocol):
    """The one method of a tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int], **kwargs: bool) -> str:
        """Text of token ids."""


class TextStream:
    """Decodes one answer incrementally.

    A token may end in the middle of a UTF-8 character, and a stop string may begin at the end of what is there: such
    text is held back until it is settled. Only a short window is decoded each time, so that long answers stay linear.
    """

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._window, self._decoded, self._n_ids = 0, 0, 0
        self._held = ""

    def feed(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text that may be sent now, given all ids so far; `last` releases what was held back."""
        if self.stopped or (len(ids) == self._n_ids and not last):
            return ""
        self._n_ids = len(ids)
        before = self._decode(ids[self._window : self._decoded])
        now = self._decode(ids[self._window :])
        if last or not now.endswith(UNFINISHED):
            self._held += now[len(before) :]
            self._window, self._decoded = self._decoded, len(ids)
        return self._settle(last)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _settle(self, last: bool) -> str:
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
