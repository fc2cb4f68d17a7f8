"""torch's kernels for attention, by device: with an additive mask, forward and backward; and over rows of a table.

Shapes: N sequences, c chunks, L queries a chunk, W keys that they see, D head size.
"""

import torch
from torch import nn

_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_on_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_on_gpu = torch.ops.aten._scaled_dot_product_efficient_attention
_on_gpu_backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward

GPU_ALIGNMENT = 8  # of a window and of a head, in numbers
GPU_QUERIES = 32  # the GPU's kernel keeps log-sum-exps for a multiple of so many queries


def has_fused(query: torch.Tensor, window: int) -> bool:
    """Whether there is a kernel for queries [..., L, D] that see so many keys."""
    if query.device.type == "cpu":
        return True
    aligned = window % GPU_ALIGNMENT == 0 and query.shape[-1] % GPU_ALIGNMENT == 0
    return query.device.type == "cuda" and query.dtype != torch.float64 and aligned


def fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each chunk's queries to its window.

    Args:
        query: [N, c, L, D].
        key, value: [N, c, W, D], the keys scaled already; windows may overlap in memory.
        mask: what is added to the logits, [N or 1, c or 1, L, W].

    Returns:
        out [N, c, L, D] and the log-sum-exp of the logits, float32 [N, c, L].
    """
    if query.device.type == "cpu":
        out, log_sum_exp = _on_cpu(query, key, value, attn_mask=mask, scale=1.0)
        return out, log_sum_exp
    mask = mask.expand(*query.shape[:2], -1, -1)
    out, log_sum_exp, _, _ = _on_gpu(query, key, value, mask, compute_log_sumexp=True, scale=1.0)
    return out, log_sum_exp[..., : query.shape[-2]]


def fused_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    out: torch.Tensor,
    log_sum_exp: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, in their shapes, from the `out` and `log_sum_exp` that the weights have."""
    if query.device.type == "cpu":
        grads = _on_cpu_backward(grad_out, query, key, value, out, log_sum_exp, 0.0, False, attn_mask=mask, scale=1.0)
    else:
        mask = mask.expand(*query.shape[:2], -1, -1)
        out = out.transpose(1, 2).contiguous().transpose(1, 2)  # the layout in which the forward kernel leaves it
        log_sum_exp = nn.functional.pad(log_sum_exp, (0, -query.shape[-2] % GPU_QUERIES), value=torch.inf)
        no_dropout = torch.empty(0, dtype=torch.long, device=query.device)  # the state of its random numbers
        *grads, _ = _on_gpu_backward(
            grad_out, query, key, value, mask, out, log_sum_exp, no_dropout, no_dropout, 0.0,
            [True, True, True, False], scale=1.0,
        )  # fmt: skip
    grad_query, grad_key, grad_value = grads
    return grad_query, grad_key, grad_value


def fastest(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`fused`, where no backward pass follows: bfloat16 on CPUs takes separate products, and overwrites the mask.

    The fused kernel multiplies in float32 on all CPUs but Intel's. Between products logits and weights are rounded, as
    they are when a token is decoded; `fused_backward` computes its weights from logits that aren't.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return fused(query, key, value, mask)
    shape = query.shape
    query, key, value, mask = (x.expand(*shape[:2], -1, -1).flatten(0, 1) for x in (query, key, value, mask))
    add_products = mask.baddbmm_ if mask.is_contiguous() else mask.baddbmm  # in place, unless chunks share it
    logits = add_products(query, key.transpose(-1, -2))
    weights = torch.softmax(logits, dim=-1)
    # The largest numbers, from the integers that their bits are: ten times faster. Below zero, their order is reversed.
    bits, weight = logits.view(torch.int16), weights.view(torch.int16).amax(dim=-1).view(weights.dtype)
    logit = torch.maximum(bits.amax(dim=-1).view(logits.dtype), bits.amin(dim=-1).view(logits.dtype))
    log_sum_exp = logit.float() - weight.float().log()
    return torch.bmm(weights, value).view(shape), log_sum_exp.view(shape[:-1])


def weighted_sums(rows: torch.Tensor, where: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sums of rows of a table, each with a weight: what attention gets from values that lie anywhere.

    Args:
        rows: [S, D].
        where: int64 [N, W], below S.
        weights: [N, W] in the rows' dtype.

    Returns:
        [N, D].
    """
    if rows.device.type == "cpu":  # reads them where they lie, and the next ones into the cache meanwhile
        return nn.functional.embedding_bag(where, rows, mode="sum", per_sample_weights=weights)
    values = rows.index_select(0, where.flatten()).view(*where.shape, -1)
    return torch.bmm(weights.unsqueeze(1), values).squeeze(1)
