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


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the seeds after up to MOST_EDITS edits; now and then bytes out of nothing."""
    edits = st.integers(0, MOST_EDITS).flatmap(lambda count: st.binary(min_size=8 * count, max_size=8 * count))
    seed = st.integers(0, len(seeds) - 1)
    edited = st.builds(lambda index, edits: edit(seeds[index], edits, seeds[index - 1]), seed, edits)
    return st.one_of([edited] * 9 + [st.binary(max_size=200)])


def edit(content: bytes, edits: bytes, other: bytes) -> bytes:
    """The content after the edits, each of which 8 bytes describe: the kind, the place, and what to do there.

    They are drawn as bytes, for one draw is much cheaper than several. `other` is what a splice takes its end from.
    """
    data = bytearray(content)
    for kind, place, number, value in struct.iter_unpack("<BHB4s", edits):
        at = place % (len(data) + 1)
        match kind % 8:
            case 0:
                data[at : at + 1] = value[:1]
            case 1:
                extreme = EXTREMES[number % len(EXTREMES)]
                data[at : at + len(extreme)] = extreme
            case 2:
                data[at:at] = value
            case 3:
                del data[at : at + 1 + number % 8]
            case 4:
                del data[at : at + number]
            case 5:
                data[at:at] = data[at : at + number]
            case 6:
                del data[at:]
            case 7:
                data[at:] = other[int.from_bytes(value) % (len(other) + 1) :]
    return bytes(data)
