"""What transformers calls the weights, and what we do."""

import re

# By beginnings, up to a dot; the first that fits is replaced.
_NAMES = {
    "embeddings.tokens": "reformer.embeddings.word_embeddings",
    "embeddings.positions.weights": "reformer.embeddings.position_embeddings.weights",
    "embeddings.positions.table": "reformer.embeddings.position_embeddings.embedding.weight",
    "final_norm": "reformer.encoder.layer_norm",
    "head.weight": "lm_head.decoder.weight",
    "head.bias": "lm_head.bias",
}
_NAMES_IN_LAYER = {
    "attention.norm": "attention.layer_norm",
    "attention.output": "attention.output.dense",
    "attention": "attention.self_attention",
    "feed_forward.norm": "feed_forward.layer_norm",
    "feed_forward.inner": "feed_forward.dense.dense",
    "feed_forward.outer": "feed_forward.output.dense",
}

SECOND_BIAS = "lm_head.decoder.bias"
"""The head's bias once more, as some versions of transformers store it."""

_CONSTANTS = re.compile(r"reformer\.encoder\.layers\.\d+\.attention\.self_attention\.(self_)?mask_value_float(16|32)")


def stored_name(name: str) -> str:
    """The name in a checkpoint of the weight that is `name` in `ReformerModel.state_dict()`."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if layer:
        return f"reformer.encoder.layers.{layer[1]}.{_replaced(layer[2], _NAMES_IN_LAYER)}"
    return _replaced(name, _NAMES)


def is_constant(stored: str) -> bool:
    """Whether a tensor of a checkpoint is no weight: transformers before 4.31 stored the masks' values."""
    return _CONSTANTS.fullmatch(stored) is not None


def _replaced(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)  # a weight that the table forgot
