"""Images as data: whole ones, from arrays or files, all of one size."""

import io
from pathlib import Path

import numpy
import pytest
from PIL import Image

from reformer_core.tokenizers.pixels import PixelTokenizer
from reformer_core.train.images import Pixels, WholeImages, read_images
from tests.core.train.small import pixels


def save(path: Path, image: Pixels, mode: str = "RGB") -> None:
    Image.fromarray(image).convert(mode).save(path)


class TestReading:
    def test_arrays(self, tmp_path: Path) -> None:
        train, held_out = pixels(3), pixels(2)
        numpy.savez(tmp_path / "two.npz", train=train, validation=held_out)
        numpy.savez(tmp_path / "one.npz", anything=train)
        assert (read_images(tmp_path / "two.npz", "train").pixels == train).all()
        assert (read_images(tmp_path / "two.npz", "validation").pixels == held_out).all()
        assert (read_images(tmp_path / "one.npz", "train").pixels == train).all()

    def test_a_folder(self, tmp_path: Path) -> None:
        images = pixels(2)
        save(tmp_path / "a.png", images[0])
        save(tmp_path / "b.PNG", images[1])
        save(tmp_path / "c.jpg", images[0])
        (tmp_path / "notes.txt").write_text("no image")
        found = read_images(tmp_path, "train")
        assert found.pixels.shape == (3, 4, 5, 3)
        assert (found.pixels[:2] == images).all()
        assert found.file.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".txt")
        assert found.notes == ()

    def test_what_was_converted_is_said(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", pixels(1)[0])
        save(tmp_path / "b.png", pixels(1)[0], "L")
        save(tmp_path / "c.png", pixels(1)[0], "L")
        (note,) = read_images(tmp_path, "train").notes
        assert "2 of 3 images converted from grey to RGB" in note

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"a": pixels(1), "b": pixels(1)}, r"images\.npz has no array 'train'; it has a, b"),
            ({}, r"images\.npz has no array 'train'; it has none"),
            ({"train": pixels(1)[0]}, r"'train' of .* is uint8 \[4, 5, 3\], but must be uint8 \[images, rows, columns"),
            ({"train": pixels(1).astype("float32")}, r"is float32 \[1, 4, 5, 3\], but must be uint8"),
            ({"train": pixels(1)[..., :1]}, r"is uint8 \[1, 4, 5, 1\]"),
            ({"train": pixels(1)[:0]}, r"is uint8 \[0, 4, 5, 3\]"),
        ],
    )
    def test_arrays_of_another_kind_are_errors(
        self, tmp_path: Path, arrays: dict[str, numpy.ndarray], message: str
    ) -> None:
        numpy.savez(tmp_path / "images.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub has a keyword there
        with pytest.raises(ValueError, match=message):
            read_images(tmp_path / "images.npz", "train")

    def test_damaged_and_missing_files_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"none\.npz can't be read: No such file"):
            read_images(tmp_path / "none.npz", "train")
        file = io.BytesIO()
        numpy.savez_compressed(file, train=pixels(50))
        whole = file.getvalue()
        for content in (b"", b"nonsense", whole[:500], whole[:300] + bytes(200) + whole[500:]):
            (tmp_path / "images.npz").write_bytes(content)
            with pytest.raises(ValueError, match=r"images\.npz is damaged, or no \.npz file"):
                read_images(tmp_path / "images.npz", "train")

    def test_no_code_is_run_from_arrays(self, tmp_path: Path) -> None:
        numpy.savez(tmp_path / "images.npz", train=numpy.array([Path()], dtype=object))
        with pytest.raises(ValueError, match=r"no \.npz file of arrays"):
            read_images(tmp_path / "images.npz", "train")

    def test_files_that_do_not_fit_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no \.png, \.jpg, \.jpeg file"):
            read_images(tmp_path, "train")
        save(tmp_path / "a.png", pixels(1)[0])
        save(tmp_path / "b.png", pixels(1, rows=6)[0])
        with pytest.raises(ValueError, match=r"b\.png: .*5 × 6"):
            read_images(tmp_path, "train")
        (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
        with pytest.raises(ValueError, match=r"b\.png: .*damaged"):
            read_images(tmp_path, "train")
        (tmp_path / "a.png").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=r"a\.png is no image that can be read"):
            read_images(tmp_path, "train")


class TestExamples:
    def test_are_whole_images_in_the_tokenizers_order(self, tmp_path: Path) -> None:
        images = pixels(6)
        save(tmp_path / "a.png", images[0])
        token_ids = PixelTokenizer(4, 5).encode((tmp_path / "a.png").read_bytes())
        batch = WholeImages(images).draw(numpy.random.default_rng(0), 60, 6)
        rows = {(*ids, last) for ids, last in zip(batch.token_ids.tolist(), batch.targets[:, -1].tolist(), strict=True)}
        assert rows == {tuple(image.flatten().tolist()) for image in images}  # each once
        assert tuple(token_ids.tolist()) in rows
        assert batch.targets[:, :-1].equal(batch.token_ids[:, 1:])
        assert batch.start_positions.tolist() == [0] * 6

    def test_more_than_there_are(self) -> None:
        assert len(WholeImages(pixels(2)).draw(numpy.random.default_rng(0), 60, 5)) == 5

    def test_flipped_images_are_mirrored_left_to_right(self) -> None:
        image = pixels(1)
        plain, mirrored = image.flatten().tolist(), image[:, :, ::-1].flatten().tolist()
        examples, generator = WholeImages(image, flip=True), numpy.random.default_rng(0)
        found = [examples.draw(generator, 60, 1).token_ids[0].tolist() for _ in range(100)]
        assert {tuple(each) for each in found} == {tuple(plain[:-1]), tuple(mirrored[:-1])}
        assert 30 < found.count(plain[:-1]) < 70
