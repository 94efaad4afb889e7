"""WordPiece as BERT uses it (Devlin et al. 2019): words, and their continuations behind `##`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fmray.data.tokenizers._trained import Trained, too_little

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
CONTINUED = "##"


class WordPiece(Trained):
    """Whole words first; each Chinese character is a word. It puts [CLS] in front of a text and [SEP] behind it by itself.

    What stood between the words (line ends, repeated spaces) is lost, with `lowercase` capitals and accents too: made for
    encoders, not for models that write.

    Attributes:
        lowercase: whether capitals and accents are dropped.
    """

    type: Literal["wordpiece"] = "wordpiece"
    lowercase: bool = True

    @property
    def smallest(self) -> int:
        """The special tokens and one character."""
        return 5 + self.sentinels + 1

    def make(self, sample: Iterable[Sequence[str]], vocab_size: int, seq_len: int, folder: Path) -> None:
        """Trains in two passes; see `TokenizerModel.make`. The sample is held in memory.

        The library numbers continued characters in the order of a hash map and breaks ties by these numbers. So the first
        pass finds out which there are, and the second is given all characters in an order of our own.
        """
        room = self.room(vocab_size) + 1
        texts = [text for batch in sample for text in batch]
        characters = self._characters(texts)
        special = [PAD, UNK, CLS, SEP, MASK, *self.sentinel_texts]
        found = set(_train(self._empty(), texts, 0, [], characters))
        alphabet: list[str] = []
        for character in characters:
            added = [c for c in (character, CONTINUED + character) if c in found]
            if len(alphabet) + len(added) > room:
                break
            alphabet += added
        kept = [c for c in alphabet if len(c) == 1]
        vocabulary = _train(self._empty(), texts, vocab_size, [*special, *alphabet], kept)
        if len(vocabulary) < vocab_size:
            raise too_little(len(vocabulary), vocab_size)
        self._save(vocabulary, special, seq_len, folder)

    def _empty(self) -> "Tokenizer":
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    def _characters(self, texts: Sequence[str]) -> list[str]:
        """The characters of the normalised texts, most frequent first, ties by code point."""
        normalizer = self._empty().normalizer
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(normalizer.normalize_str(text))
        return [c for c in sorted(counts, key=lambda c: (-counts[c], c)) if not c.isspace()]

    def _save(self, vocabulary: dict[str, int], special: list[str], seq_len: int, folder: Path) -> None:
        from tokenizers import AddedToken, decoders, models
        from tokenizers.processors import TemplateProcessing

        tokenizer = self._empty()
        tokenizer.model = models.WordPiece(vocabulary, unk_token=UNK, continuing_subword_prefix=CONTINUED)
        tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED, cleanup=False)
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        tokenizer.post_processor = TemplateProcessing(
            single=f"{CLS} $A {SEP}",
            pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
            special_tokens=[(CLS, vocabulary[CLS]), (SEP, vocabulary[SEP])],
        )
        names = {
            "bos_token": CLS, "eos_token": SEP, "cls_token": CLS, "sep_token": SEP, "pad_token": PAD, "mask_token": MASK,
            "unk_token": UNK,
        }  # fmt: skip
        self.save(tokenizer, names, seq_len, folder)


def _train(
    tokenizer: "Tokenizer", texts: Sequence[str], vocab_size: int, first: Sequence[str], characters: Sequence[str]
) -> dict[str, int]:
    """The vocabulary by token: `first` in their order, then what was merged from `characters`."""
    from tokenizers import trainers

    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(first),
        initial_alphabet=list(characters),
        limit_alphabet=len(characters),
        continuing_subword_prefix=CONTINUED,
    )
    tokenizer.train_from_iterator([texts], trainer)
    return dict(tokenizer.get_vocab(with_added_tokens=True))
