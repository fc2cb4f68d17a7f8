"""Valid bytes, damaged: what reaches further into a reader than random bytes do."""

import struct
from collections.abc import Sequence

from hypothesis import strategies as st

MOST_EDITS = 6

_NUMBERS = (0, 1, -1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
_WIDTHS = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")
EXTREMES = sorted({struct.pack(w, n % 2 ** (8 * struct.calcsize(w))) for n in _NUMBERS for w in _WIDTHS})
"""Numbers at the edges of their range, as files write them."""

HOSTILE_TEXTS = (
    "",
    "\0",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "file:///etc/passwd",
    "s3://bucket/key",
    "%2e%2e%2f",
    "~",
    "~root",
    "-rf",
    ".git",
    "a\n",
    "a b",
    "\x1b[31m",
    "\u202eabc",
    "\u2581",
    "\ufeff",
    "\ud7ff\ue000",
    "é",
    "e\u0301",
    "漢字",
    "😀" * 200,
    "\U0010ffff",
    "\x7f",
    "a" * 128,
    "a" * 129,
    "a" * 20_000,
    "漢" * 20_000,
    "{}",
    "%s%n",
    "nan",
    "1e999",
    "9" * 5000,
    "[" * 5000,
)
"""Texts that other programs took for something else, or fell over."""


def hostile_texts() -> st.SearchStrategy[str]:
    """Texts without surrogates, so that they can be sent."""
    return st.sampled_from(HOSTILE_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds after up to MOST_EDITS edits; now and then bytes out of nothing."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, MOST_EDITS))):
        kind = draw(st.integers(0, 6))
        where = draw(st.integers(0, 2**16)) % (len(content) + 1)
        if kind == 0:
            content[where : where + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            extreme = draw(st.sampled_from(EXTREMES))
            content[where : where + len(extreme)] = extreme
        elif kind == 2:
            content[where:where] = draw(st.binary(min_size=1, max_size=8))
        elif kind == 3:
            del content[where : where + draw(st.sampled_from([1, 2, 4, 16, 256]))]
        elif kind == 4:
            content[where:where] = content[where : where + draw(st.sampled_from([1, 4, 16, 64]))]
        elif kind == 5:
            del content[where:]
        else:
            other = draw(st.sampled_from(seeds))
            cut = draw(st.integers(0, 2**16)) % (len(other) + 1)
            content[where:] = other[cut:]
    return bytes(content)
