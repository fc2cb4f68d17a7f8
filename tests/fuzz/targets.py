"""All targets. One more is a constant in a file of its own, and a line here."""

from typing import Any

from tests.fuzz import rpc
from tests.fuzz.target import Target

TARGETS: tuple[Target[Any], ...] = (
    rpc.BYTES,
    rpc.FIELDS,
    rpc.PICTURES,
    rpc.METADATA,
    rpc.ENGINE,
)
