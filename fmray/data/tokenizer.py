"""Opening and applying the tokenizer of a dataset, whatever kind it is of."""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmray.core.errors import DataError
from fmray.data.text import by_length

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"

AT_ONCE_CHARACTERS = 16 * 1024
"""About how many characters the library is given at once."""


@dataclass(frozen=True)
class Special:
    """Ids of the tokens in front of a document, behind it, and in the empty rest of a row."""

    bos: int
    eos: int
    pad: int


def load(folder: Path) -> tuple["Tokenizer", Special]:
    """Opens a tokenizer directory with the ids of its special tokens.

    The texts of special tokens are ordinary text to it: a corpus that quotes `<|eos|>` ends no document.
    An encoder's cls and sep stand for bos and eos that it lacks. A tokenizer without bos uses its eos in front, without eos its
    bos behind; without pad, its eos fills the rows.

    Raises:
        DataError: it cannot be opened, or has neither bos nor eos.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / FILE))
        named = _special_names(folder)
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise DataError(f"cannot be opened as a tokenizer ({error})", where=str(folder)) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    ids = {name: tokenizer.token_to_id(text) for name, text in named.items()}
    bos, eos = _first(ids, "bos_token", "cls_token"), _first(ids, "eos_token", "sep_token")
    bos, eos = bos if bos is not None else eos, eos if eos is not None else bos
    if bos is None or eos is None:
        raise DataError(
            "has neither a bos_token nor an eos_token",
            where=str(folder / CONFIG),
            todo="name one to set documents apart",
        )
    pad = ids.get("pad_token")
    return tokenizer, Special(bos, eos, eos if pad is None else pad)


def vocabulary_size(tokenizer: "Tokenizer") -> int:
    """The number of token ids: one more than the largest, which is what a model is sized by."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _first(ids: dict[str, int | None], *names: str) -> int | None:
    return next((ids[name] for name in names if ids.get(name) is not None), None)


def _special_names(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", CONFIG):
        if (folder / file).is_file():
            values = json.loads((folder / file).read_text(encoding="utf-8"))
            for name in ("bos_token", "cls_token", "eos_token", "sep_token", "pad_token"):
                value = values.get(name)
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    found[name] = text
    return found


def encode(tokenizer: "Tokenizer", special: Special, texts: Sequence[str]) -> Iterator["array[int]"]:
    """Token ids of each text with bos in front and eos behind, as arrays of C ints (which a packer takes over without a look at each).

    The library is given a few texts at a time: what it makes of them (some 100 bytes a token) then stays in the processor's cache.
    """
    bos, eos = array("i", (special.bos,)), array("i", (special.eos,))
    for few in by_length(texts, AT_ONCE_CHARACTERS):
        for encoding in tokenizer.encode_batch_fast(few, add_special_tokens=False):
            ids = bos[:]
            ids.fromlist(encoding.ids)
            ids.extend(eos)
            yield ids
