"""Images as data: every example is a whole one, its values row by row, pixel by pixel, red, green, blue.

Shapes: N images, h rows, w columns.
"""

import hashlib
import io
import math
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from reformer_core.errors import InvalidTextError
from reformer_core.tokenizers.pixels import FORMATS, PixelTokenizer
from reformer_core.train.data import Batch, DataFile

_SUFFIXES = (".png", ".jpg", ".jpeg")

Pixels = NDArray[numpy.uint8]


@dataclass(frozen=True)
class Images:
    """Images of one size, as they were read."""

    file: DataFile
    pixels: Pixels
    """uint8 [N, h, w, 3]."""
    notes: tuple[str, ...] = ()
    """What had to be converted, for people."""


def read_images(path: Path, array: str) -> Images:
    """The images of an `.npz` file or of a folder of PNG and JPEG files.

    Args:
        path: the file or folder.
        array: the array of an `.npz` file that has several.

    Raises:
        ValueError: there are none, a file is damaged, or they are not all of one size.
    """
    return _read_folder(path) if path.is_dir() else _read_arrays(path, array)


def _read_arrays(path: Path, array: str) -> Images:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    try:
        with numpy.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = arrays.files
            name = names[0] if len(names) == 1 else array
            pixels = arrays[name] if name in names else None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or no .npz file of arrays") from error
    if pixels is None:
        raise ValueError(f"{path} has no array {array!r}; it has {', '.join(names) or 'none'}")
    if pixels.dtype != numpy.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"array {name!r} of {path} is {pixels.dtype} {list(pixels.shape)}, "
            "but must be uint8 [images, rows, columns, 3]"
        )
    return Images(DataFile(path, len(content), hashlib.sha256(content).hexdigest()), pixels)


def _read_folder(path: Path) -> Images:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"{path} has no {', '.join(_SUFFIXES)} file")
    tokenizer = _tokenizer_for(files[0])
    images, notes, digest, size = [], Counter[str](), hashlib.sha256(), 0
    for file in files:
        content = file.read_bytes()
        try:
            picture = tokenizer.read(content)
        except InvalidTextError as error:
            raise ValueError(f"{file}: {error}") from error
        images.append(picture.token_ids.numpy().astype(numpy.uint8))
        notes.update(picture.notes)
        digest.update(hashlib.sha256(content).digest())
        size += len(content)
    return Images(
        DataFile(path, size, digest.hexdigest()),
        numpy.stack(images).reshape(-1, tokenizer.height, tokenizer.width, 3),
        tuple(f"{path}: {count:,} of {len(files):,} images {note}" for note, count in notes.items()),
    )


def _tokenizer_for(file: Path) -> PixelTokenizer:
    """For images of the size of this one."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = ImageOps.exif_transpose(image).size
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} is no image that can be read: {error}") from error
    return PixelTokenizer(height, width)


class WholeImages:
    """Random images, each equally likely, none twice in a batch unless there are too few."""

    def __init__(self, images: Pixels, *, flip: bool = False) -> None:
        """Args:
        images: uint8 [N, h, w, 3].
        flip: mirror each half of the times.
        """
        self._images = images
        self._flip = flip

    @property
    def length(self) -> int:
        return math.prod(self._images.shape[1:])

    @property
    def total_tokens(self) -> int:
        return self._images.size

    @property
    def bits_per_nat(self) -> float:
        """Nats a token -> bits a dimension."""
        return 1 / math.log(2)

    def draw(self, generator: numpy.random.Generator, length: int, count: int) -> Batch:
        images = self._images[generator.choice(len(self._images), count, replace=count > len(self._images))]
        if self._flip:
            mirrored = generator.random(count) < 0.5
            images = numpy.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        rows = torch.from_numpy(images.reshape(count, length).astype(numpy.int64))
        return Batch(rows[:, :-1], rows[:, 1:], torch.zeros(count, dtype=torch.long))
