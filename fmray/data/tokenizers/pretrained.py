"""A tokenizer that exists already: any Hugging Face directory with a tokenizer.json."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from fmray.core.artifact import tree_digest
from fmray.core.errors import ConfigError, DataError
from fmray.data.tokenizer import FILE, load, vocabulary_size
from fmray.data.tokenizers import TokenizerModel

OPTIONAL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)


class Pretrained(TokenizerModel):
    """Takes a tokenizer over as it is; known in the fingerprint by the content of its files.

    Attributes:
        path: its directory.
    """

    type: Literal["pretrained"] = "pretrained"
    path: str

    @property
    def is_trained(self) -> bool:
        """No."""
        return False

    def identity(self) -> dict[str, Any]:
        """The digest of the tokenizer's files."""
        return {"type": self.type, "sha256": tree_digest(self.folder, self.files())}

    @property
    def folder(self) -> Path:
        """The absolute directory."""
        return Path(self.path).expanduser().absolute()

    def files(self) -> list[str]:
        """The names of the tokenizer's files in its directory.

        Raises:
            DataError: it has no tokenizer.json.
        """
        if not (self.folder / FILE).is_file():
            there = sorted(p.name for p in self.folder.iterdir())[:8] if self.folder.is_dir() else []
            raise DataError(
                f"has no {FILE}; it holds: {', '.join(there) or 'nothing'}",
                where=str(self.folder),
                todo="save it with a fast tokenizer's save_pretrained",
            )
        return [FILE, *(name for name in OPTIONAL if (self.folder / name).is_file())]

    def make(self, sample: Iterable[Sequence[str]], vocab_size: int, seq_len: int, folder: Path) -> None:
        """Copies the files; `sample` is not read.

        Raises:
            DataError: it cannot be opened or has no token that could end a document.
            ConfigError: its vocabulary is not the configured one, which models are sized by.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.files():
            shutil.copyfile(self.folder / name, folder / name)
        size = vocabulary_size(load(folder)[0])
        if size != vocab_size:
            raise ConfigError(
                f"is {vocab_size}, but the tokenizer in {self.path} has {size}",
                where="vocab_size",
                todo=f"set vocab_size: {size}",
            )
