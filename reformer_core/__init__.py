"""The Reformer and its engine: token ids in, token ids and log-probabilities out. Knows no protobuf and no asyncio."""

import reformer_core.openmp  # noqa: F401  # before anything that imports torch
from reformer_core.checkpoint import load_config, load_model, save_model
from reformer_core.config import ReformerConfig
from reformer_core.document import Document, document_bytes
from reformer_core.embedded_model import embedded_model_path
from reformer_core.engine import Engine, EngineLoad
from reformer_core.memory_plan import MemoryPlan
from reformer_core.model import ReformerModel
from reformer_core.requests import Request
from reformer_core.sampling_params import SamplingParams
from reformer_core.tokenizers import Picture, PixelTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "Document",
    "Engine",
    "EngineLoad",
    "MemoryPlan",
    "Picture",
    "PixelTokenizer",
    "ReformerConfig",
    "ReformerModel",
    "Request",
    "SamplingParams",
    "Tokenizer",
    "document_bytes",
    "embedded_model_path",
    "load_config",
    "load_model",
    "load_tokenizer",
    "save_model",
]
