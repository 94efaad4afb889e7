"""What an objective must know of a tokenizer: which ids are special, which one masks, and which tokens begin a word. Shapes: V vocabulary."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import DataError
from fmray.data.tokenizer import CONFIG, FILE

SENTINEL = re.compile(r"<extra_id_(\d+)>")
# How the tokens that stand behind white space begin: in byte-level BPE (also behind line ends and tabs), and in Metaspace.
BYTE_LEVEL_STARTS, METASPACE_START = ("Ġ", "Ċ", "ĉ", "č"), "▁"

# What ends a sentence, and what may stand behind it: quotation marks, brackets, white space.
SENTENCE_ENDS, CLOSING = tuple(".!?…。！？"), "\"'”’)]»」』 \n\r\t" + METASPACE_START


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's ids.

    Attributes:
        tokens: ids by text.
        special_V: the ids that stand for no text (begin, end, padding, mask, sentinels, unknown), and ids that name no token.
        mask_id: the id that stands for a hidden token; None where the tokenizer has none.
        sentinel_ids: <extra_id_0>, <extra_id_1>...
        word_start_V: whether a token begins a word; None where the tokenizer does not tell.
    """

    tokens: Mapping[str, int]
    special_V: NDArray[np.bool_]
    mask_id: int | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    sentinel_ids: tuple[int, ...]
    word_start_V: NDArray[np.bool_] | None

    @property
    def plain_ids(self) -> NDArray[np.int64]:
        """The ids that stand for text."""
        return np.flatnonzero(~self.special_V)

    @cached_property
    def sentence_end_V(self) -> NDArray[np.bool_]:
        """Which tokens end a sentence: with a full stop or its kin, perhaps with a quotation mark or white space behind it."""
        ends_V = np.zeros(len(self.special_V), dtype=bool)
        ends_V[[i for text, i in self.tokens.items() if _ends(text) or _ends(_from_byte_level(text))]] = True
        return ends_V & ~self.special_V


def _ends(text: str) -> bool:
    return text.rstrip(CLOSING).endswith(SENTENCE_ENDS)


def _from_byte_level(text: str) -> str:
    """The text that a token of a byte-level vocabulary stands for, as far as its bytes are whole characters; else nothing."""
    try:
        return bytes(_BYTES[character] for character in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return ""


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (Radford et al. 2019): themselves where they can be seen, else from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}


_BYTES = _byte_alphabet()


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a tokenizer directory.

    Raises:
        DataError: it has no readable tokenizer.json.
    """
    try:
        whole = json.loads((folder / FILE).read_text(encoding="utf-8"))
        tokens = _tokens(whole["model"]["vocab"])
        added = {token["content"]: (token["id"], bool(token["special"])) for token in whole.get("added_tokens") or ()}
        named = _named(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot be read as a tokenizer ({type(error).__name__}: {error})", where=str(folder)) from None
    ids = tokens | {text: i for text, (i, _) in added.items()}
    size = 1 + max(ids.values(), default=-1)
    special_V = np.ones(size, dtype=bool)
    special_V[list(ids.values())] = False
    special_V[[i for i, special in added.values() if special]] = True
    special_V[[ids[text] for text in named.values() if text in ids]] = True
    sentinels = sorted((int(found[1]), i) for text, i in ids.items() if (found := SENTINEL.fullmatch(text)))
    special = {name: ids.get(text) for name, text in named.items()}
    return Vocabulary(
        tokens=ids, special_V=special_V, mask_id=special.get("mask_token"), bos_id=special.get("bos_token", special.get("cls_token")),
        eos_id=special.get("eos_token", special.get("sep_token")), pad_id=special.get("pad_token"),
        sentinel_ids=tuple(i for _, i in sentinels), word_start_V=_word_starts(whole, tokens, size),
    )  # fmt: skip


def _tokens(vocab: Any) -> dict[str, int]:
    """Ids by text; Unigram lists (piece, score) in the order of the ids."""
    return dict(vocab) if isinstance(vocab, dict) else {str(piece): i for i, (piece, _) in enumerate(vocab)}


def _named(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", CONFIG):
        if (folder / file).is_file():
            for name, value in json.loads((folder / file).read_text(encoding="utf-8")).items():
                text = value.get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(text, str):
                    found[name] = text
    return found


def _word_starts(whole: dict[str, Any], tokens: dict[str, int], size: int) -> NDArray[np.bool_] | None:
    kinds = json.dumps([whole.get("pre_tokenizer"), whole.get("decoder")])
    starts_V = np.zeros(size, dtype=bool)
    if whole["model"].get("type") == "WordPiece":
        prefix = whole["model"].get("continuing_subword_prefix", "##")
        chosen = [i for text, i in tokens.items() if not text.startswith(prefix)]
    elif '"ByteLevel"' in kinds:
        chosen = [i for text, i in tokens.items() if text.startswith(BYTE_LEVEL_STARTS)]
    elif '"Metaspace"' in kinds:
        # A line end or tab that stands alone (see the unigram tokenizer) begins what follows it, as a space does.
        chosen = [i for text, i in tokens.items() if text.startswith(METASPACE_START) or text in ("\n", "\t")]
    else:
        return None
    starts_V[chosen] = True
    return starts_V
