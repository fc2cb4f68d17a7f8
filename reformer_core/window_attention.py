"""The one attention kernel: queries against windows of keys, causal, with its log-sum-exp.

Local, LSH, full and incremental attention are all this function on different windows.
"""

import torch

from reformer_core.dropout import dropout

FUTURE = -1e9  # logit of a key after the query, and of padding
SELF = -1e5  # logit of the query's own key in shared-QK attention: only if there is nothing else (paper, section 2)


def attend_windows(
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
    itself. Softmax and log-sum-exp are computed in float32 whatever the inputs are.

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
        out [..., q, D] in the values' dtype, and the log-sum-exp of the logits, float32 [..., q].
    """
    logits = (query @ key.transpose(-1, -2)).float()
    behind, ahead = query_position.unsqueeze(-1), key_position.unsqueeze(-2)
    logits = logits.masked_fill(ahead > behind, FUTURE)
    if shared_qk:
        logits = logits.masked_fill(ahead == behind, SELF)
    log_sum_exp = logits.logsumexp(dim=-1, keepdim=True)
    weights = dropout(torch.exp(logits - log_sum_exp), dropout_prob, generator)
    return weights.to(value.dtype) @ value, log_sum_exp.squeeze(-1)
