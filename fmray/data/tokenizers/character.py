"""One token a character: for protein and DNA sequences, and for Chinese."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from fmray.core.errors import DataError
from fmray.data.tokenizers._trained import BOS, EOS, MASK, PAD, UNK, Trained, begin_with_bos


class Character(Trained):
    """The characters of the sample, most frequent first; the others are unknown. It puts BOS in front of a text by itself.

    `vocab_size` is an upper bound: a sample with fewer characters gives a smaller vocabulary, and models are sized by that.
    """

    type: Literal["character"] = "character"

    @property
    def smallest(self) -> int:
        """The special tokens and one character."""
        return 5 + self.sentinels + 1

    def make(self, sample: Iterable[Sequence[str]], vocab_size: int, seq_len: int, folder: Path) -> None:
        """Counts characters; see `TokenizerModel.make`."""
        from tokenizers import AddedToken, Tokenizer, decoders, models

        room = self.room(vocab_size) + 1
        counts: Counter[str] = Counter()
        for texts in sample:
            counts.update("".join(texts))
        if not counts:
            raise DataError("the sample of the corpus holds no character", where="tokenizer")
        # Ties by code point, so that the order of the sample does not matter.
        characters = sorted(counts, key=lambda c: (-counts[c], c))[:room]
        special = [PAD, BOS, EOS, MASK, UNK, *self.sentinel_texts]
        vocabulary = {text: i for i, text in enumerate([*special, *characters])}
        # BPE without merges is a walk over the characters, many times faster than splitting a text by an expression.
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK, fuse_unk=False))
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        begin_with_bos(tokenizer)
        names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "mask_token": MASK, "unk_token": UNK}
        self.save(tokenizer, names, seq_len, folder)
