"""All targets. One more is a constant in a file of its own, and a line here."""

from typing import Any

from tests.fuzz import (
    checkpoints,
    pickles,
    pictures,
    rpc,
    sampling,
    settings,
    stored,
    texts,
    tokenizer_files,
    uploads,
    validation,
)
from tests.fuzz.target import Target

TARGETS: tuple[Target[Any], ...] = (
    rpc.BYTES,
    rpc.FIELDS,
    rpc.PICTURES,
    rpc.METADATA,
    rpc.ENGINE,
    uploads.SEQUENCES,
    validation.REQUESTS,
    sampling.SAMPLING,
    texts.TEXTS,
    pictures.FILES,
    pictures.CHUNKS,
    checkpoints.CONFIGS,
    checkpoints.CONFIG_FILES,
    checkpoints.SAFETENSORS,
    checkpoints.SAFETENSORS_FILES,
    pickles.PICKLES,
    tokenizer_files.PIECES,
    tokenizer_files.SIZES,
    stored.STORED,
    settings.FILES,
    settings.TENANTS,
    settings.ENVIRONMENT,
)
