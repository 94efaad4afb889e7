"""Tiny random models of every head behind one tokenizer of words, saved as Hugging Face directories."""

from pathlib import Path
from typing import Any

WORDS = ["the", "a", "of", "value", "option", "error", "file", "quick", "brown", "fox", "dog", "Ada", "lives", "in", "London", "and", "writes", "books", "about", "engines"]
TAGS = ("O", "B-PER", "I-PER", "B-LOC")


def save_word_tokenizer(folder: Path) -> int:
    """A fast tokenizer with one token a word, framed as BERT frames texts; its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*specials, *WORDS])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=48, **named).save_pretrained(folder)
    return len(specials) + len(WORDS)


def save_head(folder: Path, name: str) -> Any:
    """A random model of the class `name`, large enough in its weights that its answers vary; the model itself."""
    import torch
    import transformers

    size = save_word_tokenizer(folder)
    torch.manual_seed(3)
    if name == "BartForConditionalGeneration":
        config: Any = transformers.BartConfig(
            vocab_size=size, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=48, init_std=0.6, pad_token_id=0, bos_token_id=2,
            eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=None,
        )  # fmt: skip
    else:
        kind = transformers.RobertaConfig if name.startswith("Roberta") else transformers.BertConfig
        config = kind(
            vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=48, initializer_range=0.6, pad_token_id=0,
        )  # fmt: skip
        if name.endswith("ForTokenClassification"):
            config.id2label = dict(enumerate(TAGS))
            config.label2id = {tag: i for i, tag in enumerate(TAGS)}
    model = getattr(transformers, name)(config).eval()
    model.save_pretrained(folder)
    return model
