"""Pictures: the rows that are kept, as a document; completions, as generations on it; and what comes of them.

Nothing here reads or writes an image format: the server turns files into tokens, and tokens into PNG files.
"""

import asyncio
import os
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

from google.protobuf.duration_pb2 import Duration

from reformer.v1 import document_pb2
from reformer_client.errors import InternalError
from reformer_client.messages import Drawing
from reformer_client.progress import OnProgress, report

if TYPE_CHECKING:
    from reformer_client.async_client import AsyncClient
    from reformer_client.document import AsyncDocument

ImageSource = os.PathLike[str] | bytes | bytearray | memoryview
"""The path, or the content, of a PNG or JPEG file."""

CHANNELS = 3
MAX_IDS = 131_072  # of a Detokenize call
MAX_SEED = 2**64

T = TypeVar("T")


@dataclass(frozen=True)
class TokenizedImage:
    """A picture's tokens."""

    ids: tuple[int, ...]
    """0 to 255: row by row, pixel by pixel, red, green and blue."""
    notes: tuple[str, ...]
    """What the server had to change to read it, e.g. "converted from grey to RGB"."""


@dataclass(frozen=True)
class CompletedImage:
    """A picture whose lower rows the model drew."""

    png: bytes
    """A PNG file."""
    ids: tuple[int, ...]
    """Its tokens, those of the kept rows first."""
    seed: int
    """Draws the same picture again."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the PNG file."""
        Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        """What notebooks show."""
        return self.png


@dataclass(frozen=True)
class ImageCompletions(Sequence[CompletedImage]):
    """The completions of one picture."""

    images: tuple[CompletedImage, ...]
    png: bytes
    """A PNG file with all of them side by side."""
    height: int
    width: int
    """Of each, in pixels."""
    keep_rows: int
    """Rows from the top that are the original's."""
    notes: tuple[str, ...]
    """What the server had to change in the original to read it, e.g. "converted from grey to RGB"."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the PNG file with all completions side by side."""
        Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        """What notebooks show."""
        return self.png

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> CompletedImage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CompletedImage, ...]: ...
    def __getitem__(self, index: int | slice) -> CompletedImage | tuple[CompletedImage, ...]:
        return self.images[index]

    def __iter__(self) -> Iterator[CompletedImage]:
        return iter(self.images)


async def image_bytes(source: ImageSource) -> bytes:
    """Raises TypeError for what is no source, OSError for a file that can't be read."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return await asyncio.to_thread(Path(source).read_bytes)
    raise TypeError(f"a picture is the Path or the bytes of a PNG or JPEG file, not {type(source).__name__}")


async def complete_image(
    client: "AsyncClient",
    source: ImageSource,
    keep_rows: int | None,
    samples: int,
    resize: bool,
    on_progress: OnProgress | None,
    timeout: float | None,
    drawing: Drawing,
) -> ImageCompletions:
    """`AsyncClient.complete_image`."""
    if unknown := drawing.keys() - Drawing.__annotations__.keys():
        known = ", ".join(Drawing.__annotations__)
        raise TypeError(f"complete_image has no argument {', '.join(sorted(unknown))}; how it draws: {known}")
    original = await client.tokenize_image(source, resize=resize, timeout=timeout)
    model = await client.model(timeout=timeout)
    height, width = model.picture_height, model.picture_width
    keep_rows = max(1, height // 2) if keep_rows is None else keep_rows
    if not 1 <= keep_rows < height:
        raise ValueError(f"keep_rows must be 1 to {height - 1}, for pictures of {height} rows, but is {keep_rows}")
    most = max(1, MAX_IDS // len(original.ids))
    if not 1 <= samples <= most:
        raise ValueError(f"samples must be 1 to {most} for pictures of this size, but is {samples}")
    kept = original.ids[: keep_rows * width * CHANNELS]
    progress = _Progress(samples * (len(original.ids) - len(kept)), width * CHANNELS, on_progress)
    async with client.documents.create(kept, timeout=timeout) as document:
        drawn = await _all(
            _draw(document, len(original.ids) - len(kept), each, progress, timeout)
            for each in _seeded(drawing, samples)
        )
    ids = [kept + more for more, _ in drawn]
    pngs = [await client.detokenize_image(each, timeout=timeout) for each in ids]
    images = tuple(CompletedImage(png, each, seed) for png, each, (_, seed) in zip(pngs, ids, drawn, strict=True))
    everything = list(chain.from_iterable(ids))
    png = await client.detokenize_image(everything, columns=samples, timeout=timeout) if samples > 1 else pngs[0]
    return ImageCompletions(images, png, height, width, keep_rows, original.notes)


def _seeded(drawing: Drawing, samples: int) -> Iterator[Drawing]:
    """The parameters of each sample: the first has the seed that was given, each further one the next."""
    for index in range(samples):
        sample = drawing.copy()
        if "seed" in sample:
            sample["seed"] = (sample["seed"] + index) % MAX_SEED
        yield sample


async def _draw(
    document: "AsyncDocument", count: int, drawing: Drawing, progress: "_Progress", timeout: float | None
) -> tuple[tuple[int, ...], int]:
    """As many tokens after the document, and the seed that they were drawn with."""
    ids = []
    async with document.generate(max_tokens=count, timeout=timeout, **drawing) as stream:
        async for token in stream:
            ids.append(token.id)
            await progress.add()
        started = stream.started
    if started is None or len(ids) != count:
        raise InternalError(f"the server drew {len(ids):,} tokens of a picture, {count:,} were asked for")
    return tuple(ids), started.seed


async def _all(coroutines: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """The results of all, in their order; if one fails, the others are cancelled, and its error is raised."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Progress:
    """Counts the tokens that all samples have drawn, and tells the user once a row."""

    def __init__(self, total: int, row: int, on_progress: OnProgress | None) -> None:
        self._total = total
        self._row = row
        self._on_progress = on_progress
        self._drawn = 0
        self._began = time.monotonic()

    async def add(self) -> None:
        """One more."""
        self._drawn += 1
        if self._drawn % self._row == 0:
            elapsed = Duration()
            elapsed.FromNanoseconds(int((time.monotonic() - self._began) * 1e9))
            message = document_pb2.Progress(processed_tokens=self._drawn, total_tokens=self._total, elapsed=elapsed)
            await report(self._on_progress, message)
