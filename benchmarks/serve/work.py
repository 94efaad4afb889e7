"""The model and the requests of the benchmark: random weights from a config, ragged prompts, ragged answers, no end token."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 4096
MAX_POSITIONS = 256
PROMPT_TOKENS, ANSWER_TOKENS = (8, 64), (16, 96)
SIZES = {"20m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 5}, "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}}


@dataclass(frozen=True)
class Request:
    """One prompt, whose words are its tokens, and the number of tokens that are to follow."""

    ids: tuple[int, ...]
    max_tokens: int

    @property
    def text(self) -> str:
        """The prompt as a client sends it."""
        return " ".join(f"w{i}" for i in self.ids)


def requests(n: int, seed: int = 0, shrink: int = 1) -> list[Request]:
    """`n` mixed requests; `shrink` divides their lengths."""
    draw = random.Random(seed)
    return [
        Request(tuple(draw.randrange(VOCAB) for _ in range(draw.randint(*PROMPT_TOKENS) // shrink)), draw.randint(*ANSWER_TOKENS) // shrink)
        for _ in range(n)
    ]


def save(folder: Path, size: str) -> int:
    """Writes the model with a tokenizer of one token a word, so that texts tell ids; the number of its parameters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0", clean_up_tokenization_spaces=False).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = SIZES[size]
    # Nothing ends an answer early: every way makes the same number of tokens.
    config = LlamaConfig(
        vocab_size=VOCAB, num_attention_heads=8, max_position_embeddings=MAX_POSITIONS, initializer_range=0.1,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, tie_word_embeddings=True, **shape,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())
