"""Tokenizers: how text becomes tokens. One file a member; a new one needs `make`."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from fmray.core.config import Component


class TokenizerModel(Component, package="fmray.data.tokenizers"):
    """A kind of tokenizer, trained on a sample of the corpus unless it brings its own files.

    Attributes of all members that are trained: `vocab_size` is given by prepare, for models are sized by it.
    """

    @property
    def is_trained(self) -> bool:
        """Whether `make` reads a sample of the corpus."""
        return True

    @property
    def smallest(self) -> int:
        """The fewest tokens that a vocabulary of this kind can have."""
        return 1

    @abstractmethod
    def make(self, sample: Iterable[Sequence[str]], vocab_size: int, seq_len: int, folder: Path) -> None:
        """Writes a tokenizer directory that `AutoTokenizer` opens.

        Args:
            sample: batches of texts; not read where `is_trained` is False.
            vocab_size: tokens of the vocabulary, special tokens included.
            seq_len: written as the tokenizer's longest input.

        Raises:
            DataError: the sample holds too little for that many tokens; says how many were reached.
            ConfigError: a loaded tokenizer has another size than `vocab_size`.
        """
