"""Architectures by named sizes: their Hugging Face configs, parameter counts and FLOPs. One file each."""

import abc
from typing import TYPE_CHECKING

from fmray.core.config import Component

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

VOCAB_MULTIPLE = 64


def padded_vocab_size(n_tokens: int) -> int:
    """The rows of the embedding table: the tokenizer's vocabulary rounded up to a multiple of 64, which matrix units like."""
    return -(-n_tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Architecture(Component, package="fmray.model.architectures"):
    """The shape of a model before it has weights. `vocab_size` is the padded one everywhere."""

    @abc.abstractmethod
    def hf_config(self, vocab_size: int, max_positions: int) -> "PreTrainedConfig":
        """The Hugging Face config, from which `AutoModel...from_config` builds the model."""

    @abc.abstractmethod
    def count_params(self, vocab_size: int) -> int:
        """Parameters, shared ones counted once: equal to the built model's own count."""

    @abc.abstractmethod
    def flops_per_token(self, vocab_size: int, seq_len: int) -> float:
        """Floating-point operations of forward and backward for one trained position in a row of `seq_len`."""
