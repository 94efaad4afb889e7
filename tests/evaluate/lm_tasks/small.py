"""A small tokenizer, small random models and documents for the tasks."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "its", "house", "because", "it", "was", "late", "so", "she", "went", "home", "with", "her", "red", "ball"]
POSITIONS = 64


@cache
def tokenizer() -> Any:
    """Byte-level BPE over WORDS, with the special tokens of causal and masked models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", mask_token="<mask>")


def config(kind: str, positions: int = POSITIONS) -> Any:
    """The config of a small model: llama, gpt2, mistral (which sees only the last eight tokens), gpt_neo (half of which sees the last 48) or bert."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions}
    size = len(tokenizer())
    if kind == "llama":
        return transformers.LlamaConfig(vocab_size=size, **llama, **ids)
    if kind == "mistral":
        return transformers.MistralConfig(vocab_size=size, sliding_window=8, **llama, **ids)
    if kind == "gpt_neo":
        return transformers.GPTNeoConfig(
            vocab_size=size, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=48, max_position_embeddings=positions, **ids
        )
    if kind == "gpt2":
        return transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=positions, **ids)
    return transformers.BertConfig(vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=positions, **ids)


def save(folder: Path, kind: str, seed: int = 0, positions: int = POSITIONS) -> Path:
    """A random model with the tokenizer, its weights large enough that answers differ well."""
    torch.manual_seed(seed)
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_config(config(kind, positions))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(6.0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """Records as JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def sentence(i: int, n: int = 6) -> str:
    """A run of words, another for each number."""
    return " ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(n))


def documents(folder: Path, n: int = 12) -> dict[str, dict[str, Any]]:
    """Data of each shipped kind of task, as the configs of their entries."""
    folder.mkdir(exist_ok=True)
    choices = [{"query": f"Question: {sentence(i)}?", "choices": [sentence(i + k, 3 + k) for k in range(3)], "gold": i % 3} for i in range(n)]
    context = [{"context": sentence(i, 9), "continuation": WORDS[i % len(WORDS)]} for i in range(n)]
    options = [{"context_options": [f"{sentence(i)} cat", f"{sentence(i)} red ball"], "continuation": sentence(i + 3, 4), "gold": i % 2} for i in range(n)]
    pairs = [{"sentence_good": sentence(i), "sentence_bad": f"{sentence(i, 3)} {sentence(i + 1, 3)}"} for i in range(n)]
    texts = [{"text": sentence(i, 20 + 12 * (i % 9))} for i in range(n)]
    return {
        "arc_easy": {"path": write(folder / "choices.jsonl", choices)}, "lambada": {"path": write(folder / "context.jsonl", context)},
        "winogrande": {"path": write(folder / "options.jsonl", options)}, "blimp": {"path": write(folder / "pairs.jsonl", pairs)},
        "perplexity": {"path": write(folder / "texts.jsonl", texts)}, "lambada_generate": {"path": write(folder / "context.jsonl", context)},
    }  # fmt: skip
