"""The face of a causal language model for evaluation and audits. Shapes: B rows, T positions, V vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import ArtifactError, DataError
from fmray.model.checkpoint import read_hf_config

if TYPE_CHECKING:
    import torch


class LanguageModel:
    """A causal model with its tokenizer, in evaluation mode on one device."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | Path, device: str | None = None, dtype: "torch.dtype | str | None" = None) -> "LanguageModel":
        """Opens a Hugging Face directory. No code in it is run and no pickle is read.

        Args:
            device: None takes a GPU when there is one.
            dtype: None keeps the precision that the weights are stored in.

        Raises:
            ArtifactError: the directory is not a causal language model that transformers can open.
        """
        read_hf_config(Path(path))
        from transformers import AutoModelForCausalLM

        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype or "auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"cannot be opened as a causal language model ({_first_line(error)})", where=str(path)) from error
        return cls(model.to(_device(device)), _tokenizer(path))

    @classmethod
    def random_twin(cls, path: str | Path, seed: int, device: str | None = None) -> "LanguageModel":
        """A model of the same config and tokenizer with fresh weights drawn from `seed`: the control of an audit."""
        read_hf_config(Path(path))
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config)
        return cls(model.to(_device(device)), _tokenizer(path))

    @property
    def max_positions(self) -> int | None:
        """The longest row that the model was made for, or None where its config does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def token_nll(
        self, input_ids_BT: NDArray[Any], segment_ids_BT: NDArray[Any], position_ids_BT: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Nats of predicting each token from those before it in its own segment.

        Returns:
            nll_BT; NaN for the first token of each segment and for padding (segment 0), where nothing is predicted.
        """
        import torch
        import torch.nn.functional as F

        ids_BT = torch.as_tensor(np.asarray(input_ids_BT, dtype=np.int64), device=self.model.device)
        positions_BT = torch.as_tensor(np.asarray(position_ids_BT, dtype=np.int64), device=self.model.device)
        with torch.inference_mode():
            # No attention mask: transformers then keeps packed documents apart by their restarting positions.
            logits_BTV = self.model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
            nll = F.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
        nll_BT = np.full(ids_BT.shape, np.nan, dtype=np.float32)
        nll_BT[:, 1:] = nll.view(ids_BT.shape[0], -1).cpu().numpy()
        segments_BT = np.asarray(segment_ids_BT)
        nll_BT[:, 1:][(segments_BT[:, 1:] != segments_BT[:, :-1]) | (segments_BT[:, 1:] == 0)] = np.nan
        return nll_BT

    def loglikelihood(self, texts: Sequence[str], batch_size: int = 16) -> list[tuple[float, int]]:
        """The summed log-probability (nats) of each text and the number of tokens that it is summed over.

        A beginning-of-sequence token stands in front when the tokenizer has one, so that the first token counts as well.

        Raises:
            DataError: a text is longer than the model's positions.
        """
        rows = [self._row(text) for text in texts]
        # Rows of like length share a batch, so that little is padded.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        result: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(1, *(len(rows[i]) for i in chosen))
            ids_BT = np.zeros((len(chosen), width), dtype=np.int64)
            segments_BT = np.zeros_like(ids_BT)
            for place, i in enumerate(chosen):
                ids_BT[place, : len(rows[i])] = rows[i]
                segments_BT[place, : len(rows[i])] = 1
            # Padding stands behind a row, where a causal model's tokens cannot see it.
            positions_BT = np.tile(np.arange(width), (len(chosen), 1))
            nll_BT = self.token_nll(ids_BT, segments_BT, positions_BT).astype(np.float64)
            for place, i in enumerate(chosen):
                result[i] = (-float(np.nansum(nll_BT[place])), int((~np.isnan(nll_BT[place])).sum()))
        return result

    def _row(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id, *ids]
        if self.max_positions is not None and len(ids) > self.max_positions:
            raise DataError(f"a text has {len(ids)} tokens and the model only {self.max_positions} positions", where=text[:40])
        return ids


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _tokenizer(path: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"has no tokenizer that can be opened ({_first_line(error)})", where=str(path)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
