"""Picture files: valid ones with bytes changed, and PNGs put together from chunks that lie about their sizes."""

import io
import resource
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from reformer_core.errors import InvalidTextError
from reformer_core.tokenizers import PixelTokenizer
from tests.fuzz.target import Judge, Target, of_bytes

HEIGHT, WIDTH = 4, 6
TOKENIZER = PixelTokenizer(HEIGHT, WIDTH)
MOST_BYTES = 1 << 30
"""Of memory that all cases together may need beyond what there was: less than one bomb would take."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"acTL", b"fcTL"]
KINDS += [b"fdAT", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"sBIT"]
PACKED = [zlib.compress(bytes(size), 9) for size in (0, 10, 10_000, 3_000_000)]


def seeds() -> list[bytes]:
    """Small files of all modes, plain, interlaced, progressive, animated, turned, with a profile and texts."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = rgb.convert("RGBA")
    alpha.putalpha(100)
    grey16 = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH))
    images: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgb, "PNG", {}),
        (rgb.convert("L"), "PNG", {}),
        (rgb.convert("1"), "PNG", {}),
        (rgb.convert("LA"), "PNG", {}),
        (rgb.quantize(4), "PNG", {"transparency": 0}),
        (alpha, "PNG", {"exif": exif}),
        (grey16, "PNG", {}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "PNG", {"icc_profile": b"profile" * 9}),
        (rgb.resize((9, 7)), "PNG", {}),
        (rgb, "JPEG", {}),
        (rgb.convert("L"), "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True, "icc_profile": b"profile" * 9}),
        (rgb.convert("CMYK"), "JPEG", {}),
    ]
    files = []
    for image, kind, options in images:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    return files


@contextmanager
def reading() -> Iterator[Judge[bytes]]:
    """Each file is read at the model's size and brought to it: as ids, or refused with InvalidTextError."""
    before = _peak_bytes()

    def judge(content: bytes) -> None:
        for resize in (False, True):
            try:
                ids = TOKENIZER.read(content, resize=resize).token_ids
            except InvalidTextError:
                pass
            else:
                assert ids.shape == (TOKENIZER.picture_tokens,)
                assert 0 <= int(ids.min()) <= int(ids.max()) <= 255

    yield judge
    assert _peak_bytes() - before < MOST_BYTES, "a file took more memory than any picture that may be decoded"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """A chunk of a PNG file, its checksum right."""
    return (
        struct.pack(">I", len(data) if length is None else length)
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    """A PNG with valid checksums, so that what the chunks say is looked at."""
    sizes = st.sampled_from([WIDTH, HEIGHT, 0, 1, 5000, 20_000, 2**31 - 1, 2**32 - 1]) | st.integers(1, 100)
    depth, colour = draw(st.sampled_from([(8, 2), (8, 6), (16, 0), (1, 0), (8, 3), (16, 6), (4, 3), (3, 2), (8, 9)]))
    fields = (draw(sizes), draw(sizes), depth, colour, 0, 0, draw(st.sampled_from([0, 0, 1, 2])))
    packed = draw(st.sampled_from(PACKED))
    contents = st.sampled_from([packed, b"name\0\0" + packed, b"name\0\x01\0\0\0" + packed, bytes(26), b"\xff" * 30])
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))]
    for _ in range(draw(st.integers(0, 4))):
        again = draw(st.sampled_from([1, 1, 1, 1, 3, 1000]))
        length = draw(st.sampled_from([None, None, None, 0, 2**31 - 1, 2**32 - 1]))
        chunks += [chunk(draw(st.sampled_from(KINDS)), draw(contents | st.binary(max_size=40)), length)] * again
    return SIGNATURE + b"".join([*chunks, chunk(b"IDAT", packed), chunk(b"IEND", b"")])


FILES = of_bytes("pictures", "PNG and JPEG files with bytes changed", 50_000, seeds, reading)
CHUNKS = Target(
    "picture-chunks", "PNG files made of chunks that lie, decompression bombs among them", 5_000, chunked, reading
)
