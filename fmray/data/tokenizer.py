"""Tokenizers: byte-level BPE trained on a sample of the corpus, or one loaded from a Hugging Face directory."""

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmray.core.artifact import tree_digest
from fmray.core.config import Config
from fmray.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SMALLEST = 256 + 3
"""Vocabulary of the bytes and the special tokens alone."""

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_OPTIONAL = (
    _CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)


class TokenizerFiles(Config):
    """A tokenizer to load: a Hugging Face directory with tokenizer.json, known in the fingerprint by its content."""

    path: str

    def identity(self) -> dict[str, Any]:
        """The digest of the tokenizer's files."""
        return {"sha256": tree_digest(self.folder, self.files())}

    @property
    def folder(self) -> Path:
        """The absolute directory."""
        return Path(self.path).expanduser().absolute()

    def files(self) -> list[str]:
        """The names of the tokenizer's files in its directory.

        Raises:
            DataError: it has no tokenizer.json.
        """
        if not (self.folder / _FILE).is_file():
            there = sorted(p.name for p in self.folder.iterdir())[:8] if self.folder.is_dir() else []
            raise DataError(
                f"has no {_FILE}; it holds: {', '.join(there) or 'nothing'}",
                where=str(self.folder),
                todo="save it with a fast tokenizer's save_pretrained",
            )
        return [_FILE, *(name for name in _OPTIONAL if (self.folder / name).is_file())]


@dataclass(frozen=True)
class Special:
    """Ids of the tokens in front of a document, behind it, and in the empty rest of a row."""

    bos: int
    eos: int
    pad: int


def train(texts: Iterable[Sequence[str]], vocab_size: int, seq_len: int, folder: Path) -> None:
    """Trains byte-level BPE on batches of texts and saves it so that `AutoTokenizer` opens it.

    Args:
        vocab_size: bytes, merges and the three special tokens together.
        seq_len: written as the tokenizer's longest input.

    Raises:
        DataError: the texts hold too few repeated pairs for that many tokens; says how many were reached.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise DataError(
            f"the corpus supports a vocabulary of {reached}, not {vocab_size}",
            where="vocab_size",
            todo=f"set vocab_size to at most {reached} or give more text",
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / _FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "padding_side": "right",
        "model_max_length": seq_len,
        "clean_up_tokenization_spaces": False,
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def copy(files: TokenizerFiles, vocab_size: int, folder: Path) -> None:
    """Copies a tokenizer's files beside the dataset.

    Raises:
        DataError: it cannot be opened or has no token that could end a document.
        ConfigError: its vocabulary is not the configured one, which models are sized by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in files.files():
        shutil.copyfile(files.folder / name, folder / name)
    tokenizer, _ = load(folder)
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if size != vocab_size:
        raise ConfigError(
            f"is {vocab_size}, but the tokenizer in {files.path} has {size}",
            where="vocab_size",
            todo=f"set vocab_size: {size}",
        )


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
        tokenizer = Tokenizer.from_file(str(folder / _FILE))
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
            where=str(folder / _CONFIG),
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
    for file in ("special_tokens_map.json", _CONFIG):
        if (folder / file).is_file():
            values = json.loads((folder / file).read_text(encoding="utf-8"))
            for name in ("bos_token", "cls_token", "eos_token", "sep_token", "pad_token"):
                value = values.get(name)
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    found[name] = text
    return found


def encode(tokenizer: "Tokenizer", special: Special, texts: Sequence[str]) -> Iterator["array[int]"]:
    """Token ids of each text with bos in front and eos behind, as arrays of C ints (which a packer takes over without a look at each)."""
    bos, eos = array("i", (special.bos,)), array("i", (special.eos,))
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        ids = bos[:]
        ids.fromlist(encoding.ids)
        ids.extend(eos)
        yield ids
