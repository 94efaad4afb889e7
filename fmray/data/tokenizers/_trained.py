"""What every trained tokenizer shares: the names of its special tokens, what it puts around a text, and how it is saved."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from fmray.core.errors import ConfigError, DataError
from fmray.data.tokenizers import TokenizerModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BOS, EOS, MASK, UNK = "<|pad|>", "<|bos|>", "<|eos|>", "<|mask|>", "<|unk|>"


class Trained(TokenizerModel):
    """A tokenizer that is trained on a sample of the corpus.

    Attributes:
        sentinels: how many tokens <extra_id_0>, <extra_id_1>... to add, which span corruption puts in the place of spans
            (Raffel et al. 2020, section 3.1.4).
    """

    sentinels: int = Field(0, ge=0, le=10_000)

    @property
    def sentinel_texts(self) -> list[str]:
        """The texts of the sentinels."""
        return [f"<extra_id_{i}>" for i in range(self.sentinels)]

    def room(self, vocab_size: int) -> int:
        """How many tokens of the vocabulary are left to be learnt.

        Raises:
            ConfigError: fewer than none.
        """
        if vocab_size < self.smallest:
            raise ConfigError(
                f"is {vocab_size}, but the special tokens and what stands in any vocabulary of this kind are {self.smallest}",
                where="vocab_size",
                todo=f"set vocab_size to at least {self.smallest}",
            )
        return vocab_size - self.smallest

    def save(self, tokenizer: "Tokenizer", names: Mapping[str, str], seq_len: int, folder: Path) -> None:
        """Writes the directory: tokenizer.json, and a config that names the special tokens (`names`: bos_token and so on)."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "padding_side": "right",
            "model_max_length": seq_len,
            "clean_up_tokenization_spaces": False,
        }
        if self.sentinels:
            config["extra_special_tokens"] = self.sentinel_texts
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def begin_with_bos(tokenizer: "Tokenizer") -> None:
    """Lets a tokenizer put BOS in front of a text by itself, as documents were trained.

    EOS is left out: a prompt is to be continued. Whoever feeds whole documents adds it.
    """
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, bos)]
    )


def too_little(reached: int, vocab_size: int) -> DataError:
    """What is said when the sample holds too little for a vocabulary of that size."""
    return DataError(
        f"the corpus supports a vocabulary of {reached}, not {vocab_size}",
        where="vocab_size",
        todo=f"set vocab_size to at most {reached} or give more text",
    )
