"""The one attention kernel: queries against windows of keys, causal, with its log-sum-exp; forward and backward.

Local, LSH, full and incremental attention are all this on different windows. Slots are tokens in the order in which
they are chunked: by position in local attention, by bucket in LSH attention. Each chunk of queries sees its own and the
chunks before.

Shapes: c chunks, L chunk length, b chunks before, W = (1 + b) L, D head size; `...` is one or more leading dimensions.
"""

import math

import torch

from reformer_core.attention_kernels import fastest, fused, fused_backward, has_fused
from reformer_core.dropout import dropout
from reformer_core.linear import for_products

FUTURE = -1e9  # logit of a key after the query, and of padding
SELF = -1e5  # logit of the query's own key in shared-QK attention: only if there is nothing else (paper, section 2)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_position: torch.Tensor,
    key_position: torch.Tensor,
    *,
    shared_qk: bool,
    dropout_prob: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each query to the keys of its window that aren't after it.

    The masks replace the logits rather than add to them, as in training: a query that sees only itself has to attend to
    itself. Softmax and log-sum-exp are computed in float32 (float64 for float64) whatever the inputs are.

    Args:
        query: [..., q, D].
        key: [..., w, D], scaled already.
        value: [..., w, D].
        query_position: int [..., q], broadcastable.
        key_position: int [..., w], broadcastable; padding has a position after every query's.
        shared_qk: whether keys are the normalised queries (LSH), so that the query's own key is masked.
        dropout_prob: dropout of the attention weights.
        generator: randomness of that dropout.

    Returns:
        out [..., q, D] in the values' dtype, and the log-sum-exp of the logits [..., q].
    """
    logits = _masked_logits(query, key, query_position, key_position, shared_qk)
    log_sum_exp = logits.logsumexp(dim=-1, keepdim=True)
    weights = dropout(torch.exp(logits - log_sum_exp), dropout_prob, generator)
    return weights.to(value.dtype) @ value, log_sum_exp.squeeze(-1)


def attend_slots(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    position: torch.Tensor,
    *,
    length: int,
    before: int,
    shared_qk: bool,
    dropout_prob: float = 0.0,
    generator: torch.Generator | None = None,
    has_backward: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of all chunks of a sequence of slots.

    Args:
        query: [..., c L, D], the slots but the first b chunks, which are only seen.
        key: [..., (b + c) L, D].
        value: [..., (b + c) L, D].
        position: int [..., (b + c) L], the tokens' positions, broadcastable; or [..., (b + 1) L], those of one chunk
            and the chunks before it, if in all others tokens lie in the same order (not with shared_qk).
        length: L.
        before: b.
        has_backward: whether `attend_slots_backward` may follow, with the results of this.

    Returns:
        out [..., c L, D] and the log-sum-exp [..., c L].
    """
    stored = value.dtype
    query, key, value = for_products(query, key, value)
    query, key_windows, value_windows, behind, ahead = _chunked(query, key, value, position, length, before)
    if dropout_prob == 0 and has_fused(query, key_windows.shape[-2]):
        mask = _additive_mask(behind, ahead, shared_qk, query.dtype)
        kernel = fused if has_backward else fastest
        out, log_sum_exp = kernel(*_merged(query, key_windows, value_windows), mask)
        out, log_sum_exp = out.reshape(query.shape), log_sum_exp.reshape(query.shape[:-1])
        if shared_qk:
            _look_at_themselves(out, log_sum_exp, behind, ahead, before)
    else:
        windows = (query, key_windows, value_windows, behind, ahead)
        out, log_sum_exp = attend(*windows, shared_qk=shared_qk, dropout_prob=dropout_prob, generator=generator)
    return out.flatten(-3, -2).to(stored), log_sum_exp.flatten(-2)


def attend_slots_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    position: torch.Tensor,
    out: torch.Tensor,
    log_sum_exp: torch.Tensor,
    *,
    length: int,
    before: int,
    shared_qk: bool,
    dropout_prob: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, in the shapes of `attend_slots`.

    Given the `out` and `log_sum_exp` of all hash rounds together, this is one round's share of the gradients: a weight
    is exp(logit - log_sum_exp), and its gradient needs of the other rounds only these two. So rounds can be
    taken one after the other, here as in the forward pass.
    """
    stored, flat_query = query.dtype, query
    grad_out, query, key, value, out = for_products(grad_out, query, key, value, out)
    query, key_windows, value_windows, behind, ahead = _chunked(query, key, value, position, length, before)
    grad_out, out = (x.unflatten(-2, (-1, length)) for x in (grad_out, out))
    log_sum_exp = log_sum_exp.unflatten(-1, (-1, length))
    if dropout_prob == 0 and has_fused(query, key_windows.shape[-2]):
        mask = _additive_mask(behind, ahead, shared_qk, query.dtype)
        merged = _merged(query, key_windows, value_windows)
        own_grad = None
        if shared_qk:
            alone = _alone(behind, ahead)
            own_weight = torch.exp(SELF - log_sum_exp) * _own_keys(behind, ahead, before) * alone
            own_grad = (grad_out * own_weight.unsqueeze(-1)).to(grad_out.dtype)
            grad_out = grad_out * ~alone.unsqueeze(-1)
            log_sum_exp = log_sum_exp.masked_fill(alone, torch.inf)  # no weights, whatever the mask adds
        grads = fused_backward(
            grad_out.reshape(merged[0].shape),
            *merged,
            mask,
            out.reshape(merged[0].shape),
            log_sum_exp.reshape(merged[0].shape[:-1]),
        )
        shapes = (query.shape, key_windows.shape, value_windows.shape)
        grad_query, grad_key, grad_value = (grad.reshape(shape) for grad, shape in zip(grads, shapes, strict=True))
        if own_grad is not None:
            grad_value[..., before * length :, :] += own_grad
    else:
        logits = _masked_logits(query, key_windows, behind, ahead, shared_qk)
        weights = torch.exp(logits - log_sum_exp.unsqueeze(-1))
        kept = dropout(torch.ones_like(weights), dropout_prob, generator)  # 0, or what the rest was scaled by
        grad_value = (weights * kept).to(value.dtype).transpose(-1, -2) @ grad_out
        grad_weights = (grad_out @ value_windows.transpose(-1, -2)).to(weights.dtype) * kept
        delta = (grad_out * out).to(weights.dtype).sum(dim=-1, keepdim=True)
        grad_logits = (weights * (grad_weights - delta)).masked_fill(logits <= SELF, 0).to(query.dtype)
        grad_query = grad_logits @ key_windows
        grad_key = grad_logits.transpose(-1, -2) @ query
    grad_key, grad_value = (_fold(x, length, before).to(stored) for x in (grad_key, grad_value))
    return grad_query.reshape(flat_query.shape).to(stored), grad_key, grad_value


def _masked_logits(
    query: torch.Tensor, key: torch.Tensor, query_position: torch.Tensor, key_position: torch.Tensor, shared_qk: bool
) -> torch.Tensor:
    logits = query @ key.transpose(-1, -2)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    behind, ahead = query_position.unsqueeze(-1), key_position.unsqueeze(-2)
    logits = logits.masked_fill(ahead > behind, FUTURE)
    return logits.masked_fill(ahead == behind, SELF) if shared_qk else logits


def _additive_mask(behind: torch.Tensor, ahead: torch.Tensor, shared_qk: bool, dtype: torch.dtype) -> torch.Tensor:
    """What a query doesn't see as a summand, [..., c, L, W] with the leading dimensions merged.

    A query's own key, in shared-QK attention, is half as far away as later ones are: without any other it sees itself.
    """
    behind, ahead = behind.to(torch.int32), ahead.to(torch.int32)  # half of what is read and written
    steps = 1 + int(shared_qk)
    distance = (behind + 1 - steps).unsqueeze(-1) - ahead.unsqueeze(-2)
    mask = distance.clamp_(-steps, 0).mul_(_far_away(dtype) // steps).to(dtype)
    return mask.flatten(0, -4) if mask.dim() > 3 else mask.unsqueeze(0)


def _far_away(dtype: torch.dtype) -> int:
    """Much more than logits can make up for, and finite."""
    return 60_000 if dtype == torch.float16 else 200_000


def _look_at_themselves(
    out: torch.Tensor, log_sum_exp: torch.Tensor, behind: torch.Tensor, ahead: torch.Tensor, before: int
) -> None:
    """For queries that see no key but their own: what they get if its logit is exactly `SELF`, in place.

    Published models replace logits, and near -1e5 float32 is coarse: two such weights of 1/2 don't add up to 1. Others
    have larger log-sum-exps, since no logit is farther from 0 than its query is long.
    """
    alone, own = log_sum_exp < -_far_away(out.dtype) / 4, _own_keys(behind, ahead, before)
    own_log_sum_exp = (SELF + own.log()).to(log_sum_exp.dtype)
    log_sum_exp.copy_(torch.where(alone, own_log_sum_exp, log_sum_exp))
    weight = torch.where(alone, own * torch.exp(SELF - own_log_sum_exp), 1)[..., :before, :]  # 1 in all other chunks
    out[..., :before, :, :] *= weight.unsqueeze(-1).to(out.dtype)


def _alone(behind: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor:
    """Whether a query sees no key but its own, [..., c, L]."""
    return ahead.amin(dim=-1, keepdim=True) >= behind


def _own_keys(behind: torch.Tensor, ahead: torch.Tensor, before: int) -> torch.Tensor:
    """How often a query's own key is in its window, [..., c, L]: twice if the chunks before are of another round."""
    own = torch.ones(behind.shape, device=behind.device)
    first = slice(0, before)  # only there do two rounds meet
    twice = ahead[..., first, :].unsqueeze(-2) == behind[..., first, :].unsqueeze(-1)
    own[..., first, :] = twice.sum(dim=-1).to(own.dtype)
    return own


def _chunked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor, length: int, before: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [..., c, L, D], views of key and value windows [..., c, W, D], positions [..., c, L], [..., c, W]."""
    window = (1 + before) * length
    return (
        query.unflatten(-2, (-1, length)),
        key.unfold(-2, window, length).transpose(-1, -2),
        value.unfold(-2, window, length).transpose(-1, -2),
        position[..., before * length :].unflatten(-1, (-1, length)),
        position.unfold(-1, window, length),
    )


def _merged(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[..., c, w, D] -> [prod(...), c, w, D] each, without copying overlapping windows."""
    return _with_leading_merged(query), _with_leading_merged(key), _with_leading_merged(value)


def _with_leading_merged(x: torch.Tensor) -> torch.Tensor:
    if not _leading_are_dense(x):
        return x.flatten(0, -4)
    return x.as_strided((math.prod(x.shape[:-3]), *x.shape[-3:]), (x.stride(-4), *x.stride()[-3:]))


def _leading_are_dense(x: torch.Tensor) -> bool:
    leading = x.dim() - 3
    return all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(leading - 1))


def _fold(windows: torch.Tensor, length: int, before: int) -> torch.Tensor:
    """Adds up overlapping windows: [..., c, W, D] -> [..., (b + c) L, D]."""
    chunks = windows.shape[-3]
    parts = windows.unflatten(-2, (1 + before, length))  # [..., c, 1 + b, L, D]
    total: torch.Tensor = parts.new_zeros(*parts.shape[:-4], before + chunks, length, parts.shape[-1])
    for offset in range(1 + before):
        total[..., offset : offset + chunks, :, :] += parts[..., offset, :, :]
    return total.flatten(-3, -2)
