"""What makes continuous batching fast on a CPU: weights laid out for small batches, and attention a request at a time.

transformers' continuous batching puts the tokens of all requests behind each other and attends with one mask over all of them, so each
token is multiplied with every other request's keys as well, which a GPU's flash kernels do not. And a matrix product of a few rows with a
weight that lies as it was saved spends much of its time on bringing the weight into the order that the kernel reads. Of 32 requests to a
model of 18 M the two together make 1.5 times the tokens a CPU-second (benchmarks/results/serve_20m_2cpu_202611.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The number of rows for which oneDNN chooses a weight's layout; any number may then be computed. It makes and keeps a kernel for each number that
# it meets, so more rows than these are filled up to the next multiple.
ROWS = 32


class Packed:
    """A linear layer's product with its weight in the layout of oneDNN's kernels."""

    def __init__(self, layer: Any) -> None:
        import torch

        with torch.no_grad():
            self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self._bias = layer.bias

    def __call__(self, inputs: "torch.Tensor") -> "torch.Tensor":
        """What `torch.nn.Linear.forward` gives, within rounding."""
        n_rows = inputs.numel() // inputs.shape[-1]
        if n_rows <= ROWS or n_rows % ROWS == 0:
            return self._product(inputs)
        from torch.nn.functional import pad

        filled = pad(inputs.reshape(n_rows, -1), (0, 0, 0, -n_rows % ROWS))
        return self._product(filled)[:n_rows].view(*inputs.shape[:-1], -1)

    def _product(self, inputs: "torch.Tensor") -> "torch.Tensor":
        import torch

        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return product


def prepare(model: Any) -> None:
    """Makes a model on a CPU faster for inference; on any other device it stays as it is.

    In float32 the weights of its linear layers are held a second time, laid out anew: others share the first.
    """
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if model.device.type != "cpu":
        return
    # Where it is not asked with pages of a cache, this is transformers' own.
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    if model.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        for layer in model.modules():
            if type(layer) is torch.nn.Linear:
                layer.forward = Packed(layer)  # type: ignore[method-assign, assignment]


def attend(
    module: Any, query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", attention_mask: "torch.Tensor | None", *,
    scaling: float | None = None, cache: Any = None, **kwargs: Any,
) -> "tuple[torch.Tensor, None]":  # fmt: skip
    """transformers' `sdpa_attention_forward`, which with a paged cache on a CPU attends to each request by itself.

    Args:
        query: [1, heads, tokens of all requests, features of a head]; `key` and `value` alike, of this pass alone.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if cache is None or query.device.type != "cpu" or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, cache=cache, **kwargs)
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    queries, keys = kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist()
    grouped = key.shape[1] != query.shape[1]
    # A new token sees all that came before it, but for layers that look no further back than a window.
    sees_all = getattr(module, "sliding_window", None) is None
    parts = []
    for i in range(len(queries) - 1):
        rows, columns = slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])
        mask = None if sees_all and rows.stop - rows.start == 1 else attention_mask[..., rows, columns]
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, rows], key[:, :, columns], value[:, :, columns], attn_mask=mask, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
