"""The Reformer and its engine: token ids in, token ids and log-probabilities out. Knows no protobuf and no asyncio."""

from reformer_core.config import ReformerConfig
from reformer_core.model import ReformerModel
from reformer_core.sampling_params import SamplingParams

__all__ = ["ReformerConfig", "ReformerModel", "SamplingParams"]
