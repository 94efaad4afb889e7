"""Plain forward passes over whole texts: the log-probabilities of their tokens, and their embeddings.

Legend: B rows, T positions, V vocabulary, D model.
"""

from collections.abc import Sequence
from typing import Any

from fmray.serve.engine import Embedding, TokenLogprob
from fmray.serve.engines.sampling import Drawn

# Logits of one pass: 2**25 of them are 128 MiB in float32.
MAX_LOGITS = 2**25
MAX_ROWS = 16
IMPOSSIBLE = -9999.0


def groups(rows: Sequence[Sequence[int]], max_cells: int) -> list[list[int]]:
    """Indices of rows that go through the model together: of like length, at most `max_cells` padded positions, at least one row."""
    found: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        # Rows come in order of length, so this one is the group's longest.
        if found and len(found[-1]) < MAX_ROWS and (len(found[-1]) + 1) * len(rows[index]) <= max_cells:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """ids_BT and mask_BT of rows, padded on the right, where a causal model's tokens cannot see it."""
    import torch

    width = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for place, row in enumerate(rows):
        ids_BT[place, : len(row)] = torch.tensor(row)
        mask_BT[place, : len(row)] = 1
    return ids_BT.to(device), mask_BT.to(device)


def token_logprobs(model: Any, rows: Sequence[list[int]], top: int) -> list[list[Drawn | None]]:
    """For each row, of each token what the model gave it and the `top` likeliest at its place; None for the first."""
    import torch

    ids_BT, mask_BT = padded(rows, 0, model.device)
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return [[None, *_looked(logits_BTV[b, : len(row) - 1], ids_BT[b, 1 : len(row)], top)] for b, row in enumerate(rows)]


def _looked(logits_TV: Any, ids_T: Any, top: int) -> list[Drawn]:
    import torch

    logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    own_T = logprobs_TV.gather(1, ids_T.unsqueeze(1)).squeeze(1)
    likeliest = torch.topk(logprobs_TV, min(top, logprobs_TV.shape[-1]))
    columns = zip(ids_T.tolist(), own_T.tolist(), likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [Drawn(token, own, tuple(zip(tokens, values, strict=True))) for token, own, tokens, values in columns]


def mean_pooled(body: Any, rows: Sequence[Sequence[int]], pad: int) -> list[Embedding]:
    """The mean of each row's last hidden states, scaled to length 1, as sentence-transformers pools them
    (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084)."""
    import torch

    ids_BT, mask_BT = padded(rows, pad, body.device)
    with torch.inference_mode():
        hidden_BTD = body(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
        weights_BT1 = mask_BT.unsqueeze(-1).float()
        mean_BD = (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)
        unit_BD = torch.nn.functional.normalize(mean_BD, dim=-1)
    return [Embedding(tuple(vector), len(row)) for vector, row in zip(unit_BD.tolist(), rows, strict=True)]


def shown(tokenizer: Any, token: int, drawn: Drawn | None) -> TokenLogprob:
    """A token's log-probabilities with the texts of the tokens instead of their ids.

    The impossible is told as -9999, as OpenAI does: JSON has no infinity.
    """
    if drawn is None:
        return TokenLogprob(_text(tokenizer, token), None)
    top = tuple((_text(tokenizer, i), max(value, IMPOSSIBLE)) for i, value in drawn.top)
    return TokenLogprob(_text(tokenizer, token), max(drawn.logprob, IMPOSSIBLE), top)


def _text(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
