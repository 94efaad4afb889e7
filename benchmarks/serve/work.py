"""The models and the requests of the benchmark: ragged prompts, ragged answers, the same in every process."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 4096
MAX_POSITIONS = 256
PROMPT_TOKENS, ANSWER_TOKENS = (8, 64), (16, 96)
SIZES = {"20m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 5}, "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}}
SMOLLM2 = "smollm2"
NAMES = (*sorted(SIZES), SMOLLM2)
# English that lies in the repository: what SmolLM2 is asked to continue.
ENGLISH = Path(__file__).parents[2] / "LICENSE"


@dataclass(frozen=True)
class Request:
    """One prompt and the number of tokens that are to follow."""

    text: str
    max_tokens: int


def requests(size: str, n: int, seed: int = 0, shrink: int = 1) -> list[Request]:
    """`n` mixed requests for the model of a size; `shrink` divides their lengths."""
    draw = random.Random(seed)
    words = ENGLISH.read_text(encoding="utf-8").split() if size == SMOLLM2 else []

    def text(length: int) -> str:
        if not words:
            return " ".join(f"w{draw.randrange(VOCAB)}" for _ in range(length))
        begin = draw.randrange(len(words) - length)
        return " ".join(words[begin : begin + length])

    # A word of a random model is a token; one of SmolLM2's is about one and a third.
    return [
        Request(text(max(1, draw.randint(*PROMPT_TOKENS) // shrink)), max(1, draw.randint(*ANSWER_TOKENS) // shrink)) for _ in range(n)
    ]


def save(folder: Path, size: str) -> int:
    """Writes the model of a size with its tokenizer; the number of its parameters."""
    if size == SMOLLM2:
        from transformers import AutoModelForCausalLM

        from tests.models import smollm2

        shutil.copytree(smollm2(), folder)
        return int(AutoModelForCausalLM.from_pretrained(folder).num_parameters())
    return _random(folder, SIZES[size])


def _random(folder: Path, shape: dict[str, Any]) -> int:
    """Random weights, a tokenizer of one token a word, so that texts tell ids, and no end token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0", clean_up_tokenization_spaces=False, model_input_names=inputs).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, num_attention_heads=8, max_position_embeddings=MAX_POSITIONS, initializer_range=0.1,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, tie_word_embeddings=True, **shape,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())
