"""Scores as one base64 string that a page unpacks into typed arrays: about four bytes a token."""

from __future__ import annotations

import base64
import sys
import zlib
from array import array

from reformer_client.report.surprise import Surprise

STEPS_A_BIT = 1000
"""Surprise is kept in thousandths of a bit."""
UNSCORED = 0xFFFF
"""In place of the surprise of a token that has none."""


def pack(surprise: Surprise) -> str:
    """Base64 of a zlib stream: lengths as uint32 [n], surprise as uint16 [n], the text as UTF-8; little-endian."""
    steps = array("H", [int(bits * STEPS_A_BIT + 0.5) for bits in surprise.bits])
    if len(steps) and not surprise.is_scored:
        steps[0] = UNSCORED
    lengths = array("I", surprise.lengths)
    if sys.byteorder == "big":
        steps.byteswap()
        lengths.byteswap()
    return base64.b64encode(zlib.compress(lengths.tobytes() + steps.tobytes() + surprise.text)).decode()
