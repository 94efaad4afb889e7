"""Unigram language model (Kudo 2018), trained by SentencePiece and saved as a fast tokenizer.

The trainer of the tokenizers library sums in the order of a hash map, so that two runs over one text differ in the last
digits of the scores and now and then in a piece; SentencePiece's own gives the same pieces every time.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from fmray.core.errors import ConfigError, DataError
from fmray.data.tokenizers._trained import BOS, EOS, MASK, PAD, UNK, Trained, begin_with_bos, too_little

SPACE = "\u2581"
APART = ("\n", "\t")
"""Tokens of their own, which stand in no piece."""
# The number of threads decides in which order sums are taken, and so the last digits of the scores: it must not follow the machine.
THREADS = 2
LONGEST_LINE = 1 << 16


class Unigram(Trained):
    """Pieces chosen for their likelihood; spaces are part of the pieces. It puts BOS in front of a text by itself.

    Attributes:
        byte_fallback: spell characters outside the vocabulary in bytes (256 tokens); without it they are one unknown token.
        character_coverage: the share of the sample's characters that have a piece of their own; the rest are rare ones.
    """

    type: Literal["unigram"] = "unigram"
    byte_fallback: bool = True
    character_coverage: float = Field(0.9995, gt=0.9, le=1.0)

    @property
    def smallest(self) -> int:
        """The special tokens, line end and tab, perhaps the bytes, and one piece."""
        return 5 + self.sentinels + len(APART) + (256 if self.byte_fallback else 0) + 1

    def make(self, sample: Iterable[Sequence[str]], vocab_size: int, seq_len: int, folder: Path) -> None:
        """Trains the pieces; see `TokenizerModel.make`."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        self.room(vocab_size)
        special = [PAD, BOS, EOS, MASK, *self.sentinel_texts]
        pieces = self._pieces(sample, vocab_size, special)
        # What stands for a byte must lose against spelling its name out where a text quotes it; no piece competes with APART.
        least = min(score for _, score in pieces) - 1000.0
        names_of_bytes = [f"<0x{byte:02X}>" for byte in range(256 if self.byte_fallback else 0)]
        vocabulary = [(UNK, least), *((text, 0.0) for text in APART), *((text, least) for text in names_of_bytes), *pieces]
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=self.byte_fallback))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(replacement=SPACE, prepend_scheme="first")]
        )
        # Added behind the pieces and not among them, for a piece is found in any text.
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in [UNK, *special]])
        begin_with_bos(tokenizer)
        names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "mask_token": MASK, "unk_token": UNK}
        self.save(tokenizer, names, seq_len, folder)

    def _pieces(self, sample: Iterable[Sequence[str]], vocab_size: int, special: Sequence[str]) -> list[tuple[str, float]]:
        """The pieces with their log-probabilities, likeliest first, as many as make up the vocabulary with all else."""
        try:
            import sentencepiece
        except ImportError:
            raise ConfigError("needs the package sentencepiece", where="tokenizer", todo="install sentencepiece, or use type: bpe") from None

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(sample), model_writer=model, model_type="unigram", vocab_size=vocab_size - len(APART),
                character_coverage=self.character_coverage, required_chars="<>0123456789xABCDEF" if self.byte_fallback else "",
                byte_fallback=self.byte_fallback, control_symbols=list(special), normalization_rule_name="identity",
                remove_extra_whitespaces=False, max_sentence_length=4 * LONGEST_LINE, num_threads=THREADS,
                unk_id=0, unk_piece=UNK, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise _refusal(str(error), vocab_size) from None
        made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        ordinary = (i for i in range(1, made.get_piece_size()) if not (made.is_control(i) or made.is_byte(i)))
        return [(made.id_to_piece(i), made.get_score(i)) for i in ordinary]


def _refusal(message: str, vocab_size: int) -> DataError:
    """SentencePiece's reason in the words of the config."""
    if most := re.search(r"too high \(\d+\).*<= (\d+)", message):
        return too_little(int(most[1]) + len(APART), vocab_size)
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        least = int(needed[1]) + len(APART)
        return DataError(
            f"{vocab_size} tokens leave no room for pieces beside the single characters of the corpus, which need {least}",
            where="vocab_size",
            todo=f"set vocab_size to more than {least} or lower tokenizer.character_coverage",
        )
    return DataError(f"the pieces cannot be trained ({message.strip().splitlines()[-1][:200]})", where="tokenizer")


def _lines(sample: Iterable[Sequence[str]]) -> Iterator[str]:
    """The texts between line ends and tabs, which no piece may hold; those longer than any sentence come in parts."""
    for texts in sample:
        for text in texts:
            for line in text.replace("\t", "\n").split("\n"):
                yield from (line[at : at + LONGEST_LINE] for at in range(0, len(line), LONGEST_LINE))
