"""Pictures as tokens: H·W·3 ids from 0 to 255, row by row, pixel by pixel, red, green and blue, and back to PNG.

A picture model has three axial axes of positions, (height, width, 3): they tell a token its row, column and channel.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from reformer_core.errors import CheckpointError, InvalidTokensError
from reformer_core.tokenizers.incremental import IncrementalDecoder, decode_all
from reformer_core.tokenizers.picture_file import SIGNATURES, read_picture

SIZE_FILE = "pixels.json"
FORMATS = tuple(SIGNATURES)
"""What is read, as Pillow calls it."""

CHANNELS = 3


@dataclass(frozen=True)
class Picture:
    """What was read from a file."""

    token_ids: torch.Tensor
    """int64 [height * width * 3], CPU."""
    notes: tuple[str, ...]
    """What had to be changed to make these tokens of it, for people to read."""


class PixelTokenizer:
    """Pictures of one size. Their tokens have no text: decoding gives an empty one, `to_png` the picture."""

    kind = "pixels"
    vocab_size = 256
    eos_id = None
    pad_id = None

    def __init__(self, height: int, width: int) -> None:
        """In pixels. Raises ValueError below 1."""
        if height < 1 or width < 1:
            raise ValueError(f"a picture is at least 1 pixel high and wide, not {height} × {width}")
        self.height = height
        self.width = width

    @classmethod
    def from_file(cls, path: Path) -> "PixelTokenizer":
        """From what `save` wrote. Raises CheckpointError, with the path."""
        try:
            values = json.loads(path.read_bytes())
            height, width = values["height"], values["width"]
            if type(height) is not int or type(width) is not int:
                raise TypeError(f"height is {height!r}, width is {width!r}")
            return cls(height, width)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} has to hold a picture's height and width in pixels: {error!r}") from error

    @property
    def digest(self) -> bytes:
        """SHA-256, 32 bytes."""
        return hashlib.sha256(f"{self.kind} {self.height} {self.width}".encode()).digest()

    @property
    def row_tokens(self) -> int:
        """Tokens a row of pixels."""
        return self.width * CHANNELS

    @property
    def picture_tokens(self) -> int:
        """Tokens a whole picture."""
        return self.height * self.row_tokens

    def read(self, content: bytes, *, resize: bool = False) -> Picture:
        """The tokens of a PNG or JPEG file.

        Args:
            content: the file. Other modes than RGB are converted, transparency is laid over white.
            resize: bring a picture of another size to this one (Lanczos); its proportions may change.

        Raises:
            InvalidTextError: it is neither PNG nor JPEG, damaged, or of another size; the message says which.
        """
        rgb, notes = read_picture(content, (self.width, self.height), resize=resize)
        return Picture(torch.from_numpy(np.asarray(rgb).reshape(-1).astype(np.int64)), tuple(notes))

    def encode(self, content: bytes) -> torch.Tensor:
        """As `read`, the tokens alone: int64 [height * width * 3]."""
        return self.read(content).token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """An empty text. Raises InvalidTokensError for an id of 256 or more."""
        return decode_all(self.decoder(), token_ids)

    def decoder(self, *, continues: bool = False) -> IncrementalDecoder:
        return IncrementalDecoder((b"",) * self.vocab_size)

    def to_png(self, token_ids: Sequence[int], *, columns: int = 1) -> bytes:
        """Whole rows of pixels as a PNG file, as wide as the model's pictures and as high as there are rows.

        Args:
            token_ids: int [rows * width * 3].
            columns: with more than one, the ids are those of whole pictures, which are put side by side.

        Raises:
            InvalidTokensError: there are none, the last row (or picture) isn't whole, or an id isn't from 0 to 255.
        """
        if not token_ids or len(token_ids) % self.row_tokens:
            raise InvalidTokensError(
                f"{len(token_ids):,} tokens are no rows of a picture: {self.width} pixels are {self.row_tokens} tokens"
            )
        self.decode(token_ids)  # for the error alone
        pixels = np.array(token_ids, dtype=np.uint8).reshape(-1, self.width, CHANNELS)
        if columns > 1:
            pixels = self._side_by_side(pixels, columns)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        return file.getvalue()

    def _side_by_side(self, pixels: npt.NDArray[np.uint8], columns: int) -> npt.NDArray[np.uint8]:
        """Rows of pictures [pictures * height, width, 3] to a grid of them, with white where there is none."""
        if len(pixels) % self.height:
            raise InvalidTokensError(f"{len(pixels)} rows are no whole pictures: a picture has {self.height} rows")
        pictures = len(pixels) // self.height
        columns = min(columns, pictures)
        missing = -pictures % columns * self.height
        pixels = np.pad(pixels, ((0, missing), (0, 0), (0, 0)), constant_values=255)
        grid = pixels.reshape(-1, columns, self.height, self.width, CHANNELS).swapaxes(1, 2)
        return grid.reshape(-1, columns * self.width, CHANNELS)

    def save(self, directory: Path) -> None:
        size = {"height": self.height, "width": self.width}
        (directory / SIZE_FILE).write_text(json.dumps(size, indent=2) + "\n")
