"""Pictures: pixels come back as they were, other files are converted and said to be, what can't be read is refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reformer_core.errors import CheckpointError, InvalidTextError, InvalidTokensError
from reformer_core.tokenizers import PixelTokenizer, load_tokenizer
from reformer_core.tokenizers.picture_file import MAX_PIXELS

HEIGHT, WIDTH = 4, 6
TOKENIZER = PixelTokenizer(HEIGHT, WIDTH)


def pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = file_of(Image.fromarray(pixels()))


class TestPictures:
    def test_tokens_are_rows_of_pixels_of_channels(self) -> None:
        picture = TOKENIZER.read(PNG)
        assert picture.token_ids.dtype == torch.int64
        assert picture.token_ids.tolist() == pixels().reshape(-1).tolist()
        assert picture.token_ids.tolist()[WIDTH * 3 + 3 + 2] == pixels()[1, 1, 2]
        assert picture.notes == ()
        assert torch.equal(TOKENIZER.encode(PNG), picture.token_ids)
        assert len(picture.token_ids) == TOKENIZER.picture_tokens

    def test_the_same_pixels_come_back(self) -> None:
        back = Image.open(io.BytesIO(TOKENIZER.to_png(TOKENIZER.encode(PNG).tolist())))
        assert (back.format, back.mode, back.size) == ("PNG", "RGB", (WIDTH, HEIGHT))
        assert np.array_equal(np.asarray(back), pixels())

    def test_a_part_of_the_rows_is_a_lower_picture(self) -> None:
        half = TOKENIZER.encode(PNG).tolist()[: 2 * TOKENIZER.row_tokens]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(TOKENIZER.to_png(half)))), pixels()[:2])

    def test_a_jpeg_is_read_as_it_decodes(self) -> None:
        jpeg = file_of(Image.fromarray(pixels()), "JPEG", quality=95)
        expected = np.asarray(Image.open(io.BytesIO(jpeg)))
        assert TOKENIZER.encode(jpeg).tolist() == expected.reshape(-1).tolist()

    def test_several_pictures_side_by_side(self) -> None:
        pictures = [pixels(seed) for seed in range(3)]
        ids = [id for picture in pictures for id in picture.reshape(-1).tolist()]
        grid = np.asarray(Image.open(io.BytesIO(TOKENIZER.to_png(ids, columns=2))))
        assert np.array_equal(grid[:HEIGHT], np.concatenate(pictures[:2], axis=1))
        assert np.array_equal(grid[HEIGHT:, :WIDTH], pictures[2])
        assert (grid[HEIGHT:, WIDTH:] == 255).all()
        below = np.asarray(Image.open(io.BytesIO(TOKENIZER.to_png(ids))))
        assert np.array_equal(below, np.concatenate(pictures))
        assert np.asarray(Image.open(io.BytesIO(TOKENIZER.to_png(ids, columns=9)))).shape == (HEIGHT, 3 * WIDTH, 3)
        with pytest.raises(InvalidTokensError, match="7 rows are no whole pictures: a picture has 4 rows"):
            TOKENIZER.to_png(ids[: 7 * TOKENIZER.row_tokens], columns=2)

    @pytest.mark.parametrize("ids", [[], [0] * (WIDTH * 3 - 1), [0] * (WIDTH * 3 - 1) + [256], [-1] * WIDTH * 3])
    def test_tokens_that_are_no_picture_are_refused(self, ids: list[int]) -> None:
        with pytest.raises(InvalidTokensError, match=r"no rows of a picture|outside the tokenizer's vocabulary"):
            TOKENIZER.to_png(ids)

    def test_tokens_have_no_text(self) -> None:
        assert TOKENIZER.decode([0, 65, 255]) == ""
        decoder = TOKENIZER.decoder(continues=True)
        assert decoder.push(65) + decoder.flush() == ""


class TestConversions:
    def test_grey(self) -> None:
        grey = pixels()[..., 0]
        picture = TOKENIZER.read(file_of(Image.fromarray(grey)))
        assert picture.token_ids.view(-1, 3).tolist() == [[value] * 3 for value in grey.reshape(-1).tolist()]
        assert picture.notes == ("converted from grey to RGB",)

    def test_grey_of_16_bits_keeps_its_high_byte(self) -> None:
        grey = pixels()[..., 0].astype(np.uint16) * 256 + 255
        picture = TOKENIZER.read(file_of(Image.fromarray(grey)))
        assert picture.token_ids[::3].tolist() == (grey >> 8).reshape(-1).tolist()
        assert picture.notes == ("converted from grey of 16 bits to RGB",)

    def test_transparency_is_laid_over_white(self) -> None:
        alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
        alpha[0] = 255
        picture = TOKENIZER.read(file_of(Image.fromarray(np.concatenate([pixels(), alpha], axis=2))))
        values = picture.token_ids.view(HEIGHT, -1)
        assert values[0].tolist() == pixels()[0].reshape(-1).tolist()
        assert (values[1:] == 255).all()
        assert picture.notes == ("converted from RGBA to RGB, transparent parts over white",)

    def test_a_palette_with_a_transparent_colour(self) -> None:
        image = Image.new("P", (WIDTH, HEIGHT))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        picture = TOKENIZER.read(file_of(image, transparency=0))
        assert picture.token_ids[:6].tolist() == [255, 255, 255, 40, 50, 60]
        assert picture.notes == ("converted from a palette to RGB, transparent parts over white",)

    def test_cmyk(self) -> None:
        picture = TOKENIZER.read(file_of(Image.new("CMYK", (WIDTH, HEIGHT), (0, 0, 0, 255)), "JPEG"))
        assert picture.token_ids.unique().tolist() == [0]
        assert picture.notes == ("converted from CMYK to RGB",)

    def test_the_first_frame_of_an_animation(self) -> None:
        frames = [Image.fromarray(pixels(seed)) for seed in (0, 1)]
        picture = TOKENIZER.read(file_of(frames[0], save_all=True, append_images=frames[1:]))
        assert picture.token_ids.tolist() == pixels(0).reshape(-1).tolist()
        assert picture.notes == ("animated: only the first of 2 frames is used",)

    def test_the_orientation_of_exif_is_followed(self) -> None:
        lying = Image.fromarray(pixels(height=WIDTH, width=HEIGHT))  # as high as ours is wide
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90° clockwise
        picture = TOKENIZER.read(file_of(lying, exif=exif))
        assert picture.token_ids.tolist() == np.rot90(np.asarray(lying), -1).reshape(-1).tolist()
        assert picture.notes == ("turned upright, as its EXIF orientation says",)

    def test_resizing_where_it_is_asked_for(self) -> None:
        large = Image.new("RGB", (60, 80), (7, 8, 9))
        picture = TOKENIZER.read(file_of(large), resize=True)
        assert picture.token_ids.view(-1, 3).unique(dim=0).tolist() == [[7, 8, 9]]
        assert picture.notes == ("resized from 60 × 80 to 6 × 4 pixels",)
        assert TOKENIZER.read(PNG, resize=True).notes == ()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds one byte of it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG[:8] + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


class TestBadFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "neither a PNG nor a JPEG"),
            (b"hello", "neither a PNG nor a JPEG"),
            (file_of(Image.fromarray(pixels()), "GIF"), "neither a PNG nor a JPEG"),
            (PNG[:8], "the PNG is damaged"),
            (PNG[:40], "the PNG is damaged"),
            (PNG[: len(PNG) // 2], "the PNG is damaged"),
            (PNG[:60] + b"\0\0\0\0" + PNG[64:], "the PNG is damaged"),
            (file_of(Image.fromarray(pixels()), "JPEG")[:300], "the JPEG is damaged"),
            (b"\xff\xd8\xff\xe0 no more", "the JPEG is damaged"),
            (header_of(WIDTH, HEIGHT), "the PNG is damaged"),
            (header_of(0, HEIGHT), "the PNG is damaged"),
        ],
    )
    @pytest.mark.parametrize("resize", [False, True])
    def test_is_refused(self, content: bytes, message: str, resize: bool) -> None:
        with pytest.raises(InvalidTextError, match=message):
            TOKENIZER.read(content, resize=resize)

    @pytest.mark.parametrize(("height", "width"), [(5, 7), (WIDTH, HEIGHT), (HEIGHT, 7)])
    def test_another_size_is_refused_with_both(self, height: int, width: int) -> None:
        message = rf"has {width} × {height} pixels, but this model reads 6 × 4 \(width × height\); resize it"
        with pytest.raises(InvalidTextError, match=message):
            TOKENIZER.read(file_of(Image.fromarray(pixels(height=height, width=width))))

    @pytest.mark.parametrize(("width", "height"), [(5000, 5000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
    @pytest.mark.parametrize("resize", [False, True])
    def test_a_bomb_is_refused_before_it_is_decoded(self, width: int, height: int, resize: bool) -> None:
        with pytest.raises(InvalidTextError, match=r"too large|the picture has [\d,]+ × [\d,]+ pixels"):
            TOKENIZER.read(header_of(width, height), resize=resize)
        assert width * height > MAX_PIXELS


class TestFiles:
    def test_a_model_directory_says_the_size(self, tmp_path: Path) -> None:
        TOKENIZER.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert isinstance(loaded, PixelTokenizer)
        assert (loaded.height, loaded.width, loaded.kind, loaded.vocab_size) == (HEIGHT, WIDTH, "pixels", 256)

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", '{"height": 4}', '{"height": 4, "width": "6"}', '{"height": 0, "width": 6}']
    )
    def test_a_damaged_one_names_the_file(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "pixels.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"pixels\.json has to hold a picture's height and width"):
            load_tokenizer(tmp_path)
