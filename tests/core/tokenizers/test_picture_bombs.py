"""Small files that would take minutes or gigabytes: refused by what they claim, before anything is decoded."""

import io
import re
import struct
import time
import zlib

import pytest
from PIL import Image

from benchmarks.harness import in_child, peak_rss_bytes
from reformer_core.errors import InvalidTextError
from reformer_core.tokenizers import PixelTokenizer
from reformer_core.tokenizers.picture_file import MAX_PIXELS
from tests.core.tokenizers.test_pixels import HEIGHT, PNG, TOKENIZER, WIDTH, chunk, header_of

MEGABYTE = zlib.compress(bytes(1_000_000), 9)  # a kilobyte
SECONDS = (
    5.0  # a hundred times what a refusal takes, for other processes may be busy; none of these files gets by in it
)
MOST_BYTES = 600 << 20


def picture(*chunks: bytes) -> bytes:
    """A PNG of the right size with these chunks before its pixels."""
    header_end = 8 + 25
    return PNG[:header_end] + b"".join(chunks) + PNG[header_end:]


def claiming(kind: str, width: int, height: int) -> bytes:
    """A JPEG that says it has this size."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    content = bytearray(file.getvalue())
    frame = content.index(b"\xff\xc0")
    struct.pack_into(">HH", content, frame + 5, height, width)
    return bytes(content)


def scans(copies: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last_table = [match.start() for match in re.finditer(b"\xff\xc4", content)][-1]
    return content[:-2] + content[last_table:-2] * copies + content[-2:]


BOMBS = {
    "PNG that claims a terapixel": (header_of(2**20, 2**20), "too large|the picture has"),
    "PNG just too large": (header_of(4096, MAX_PIXELS // 4096 + 1), "the picture has"),
    "profile of 50 MB": (picture(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(50_000_000), 9))), "too large"),
    "a thousand profiles": (picture(chunk(b"iCCP", b"p\0\0" + MEGABYTE) * 1000), "has 1,000 colour profiles"),
    "text of 50 MB": (picture(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 9))), "too large"),
    "a thousand texts": (picture(chunk(b"zTXt", b"k\0\0" + MEGABYTE) * 1000), "Too much memory"),
    "a thousand international texts": (picture(chunk(b"iTXt", b"k\0\1\0\0\0" + MEGABYTE) * 1000), "Too much memory"),
    "JPEG that claims 4 gigapixels": (claiming("JPEG", 65_500, 65_500), "too large|the picture has"),
    "JPEG of a thousand scans": (scans(1000, 4096), r"has 1,00\d scans, but at most 32 are decoded"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("resize", [False, True])
def test_is_refused_at_once(bomb: str, resize: bool) -> None:
    content, message = BOMBS[bomb]
    assert len(content) < 1_500_000
    began = time.perf_counter()
    with pytest.raises(InvalidTextError, match=message):
        TOKENIZER.read(content, resize=resize)
    assert time.perf_counter() - began < SECONDS


def test_an_animation_of_many_frames_is_one_picture() -> None:
    frames = struct.pack(">II", 2**31 - 1, 0)
    control = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0)
    read = TOKENIZER.read(picture(chunk(b"acTL", frames), chunk(b"fcTL", control)))
    assert read.notes == ("animated: only the first of 2147483647 frames is used",)
    assert len(read.token_ids) == TOKENIZER.picture_tokens


def test_usual_files_have_fewer_parts() -> None:
    assert len(PixelTokenizer(8, 8).encode(scans(20, 8))) == 8 * 8 * 3


def test_the_largest_picture_takes_some_hundred_megabytes() -> None:
    grown = in_child(grown_by_the_largest, timeout_seconds=60).value
    assert grown < MOST_BYTES


def grown_by_the_largest() -> int:
    """Bytes of memory at the peak, beyond what there was before."""
    file = io.BytesIO()
    Image.new("RGBA", (4096, MAX_PIXELS // 4096), (1, 2, 3, 100)).save(file, "PNG", compress_level=1)
    content = file.getvalue()
    del file
    before = peak_rss_bytes()
    assert len(TOKENIZER.read(content, resize=True).token_ids) == TOKENIZER.picture_tokens
    return peak_rss_bytes() - before
