"""Byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2): any text in any script without an unknown token."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from fmray.data.tokenizers._trained import BOS, EOS, MASK, PAD, Trained, begin_with_bos, too_little


class Bpe(Trained):
    """Byte-level BPE; spaces and line ends are kept exactly. It puts BOS in front of a text by itself."""

    type: Literal["bpe"] = "bpe"

    @property
    def smallest(self) -> int:
        """The bytes and the special tokens."""
        return 256 + 4 + self.sentinels

    def make(self, sample: Iterable[Sequence[str]], vocab_size: int, seq_len: int, folder: Path) -> None:
        """Merges the most frequent pairs; see `TokenizerModel.make`."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        self.room(vocab_size)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[PAD, BOS, EOS, MASK, *self.sentinel_texts],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(sample, trainer)
        reached = tokenizer.get_vocab_size()
        if reached < vocab_size:
            raise too_little(reached, vocab_size)
        begin_with_bos(tokenizer)
        names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "mask_token": MASK}
        self.save(tokenizer, names, seq_len, folder)
