"""Pictures through a real server, on a tiny random model of them: completed, scored, and refused where they must be."""

import io
import math
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.serving import ServerProcess, reformer
from reformer_client import AsyncClient, Client, ContentType, ImageCompletions, InvalidArgumentError, Progress
from reformer_core import PixelTokenizer, ReformerConfig, ReformerModel, save_model
from tests.e2e.conftest import until

HEIGHT, WIDTH = 6, 4
ROW = WIDTH * 3
EXAMPLES = Path(__file__).parents[2] / "examples" / "pictures"

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def server(serve: Callable[..., ServerProcess], tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """Of a model that reads pictures of 6 × 4 pixels."""
    config = ReformerConfig(
        attn_layers=("local", "lsh"),
        hidden_size=16,
        feed_forward_size=32,
        num_attention_heads=2,
        attention_head_size=8,
        vocab_size=256,
        eos_token_id=None,
        pad_token_id=None,
        local_attn_chunk_length=12,
        lsh_attn_chunk_length=8,
        num_hashes=2,
        num_buckets=8,
        axial_pos_shape=(HEIGHT, WIDTH, 3),
        axial_pos_embds_dim=(4, 4, 8),
        max_position_embeddings=HEIGHT * ROW,
    )
    directory = tmp_path_factory.mktemp("models") / "pictures"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_model(ReformerModel(config), directory)
    PixelTokenizer(HEIGHT, WIDTH).save(directory)
    return serve("--memory", "1GiB", "--model", directory)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address, timeout=100) as client:
        yield client
        until(lambda: client.load().used_page_bytes == 0)


def pixels(height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_of(values: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def pixels_of(png: bytes) -> Pixels:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def check(completions: ImageCompletions, keep_rows: int, samples: int) -> None:
    assert len(completions) == len(completions.images) == samples
    assert (completions.height, completions.width, completions.keep_rows) == (HEIGHT, WIDTH, keep_rows)
    drawn = [pixels_of(image.png) for image in completions]
    for image, values in zip(completions, drawn, strict=True):
        assert values.shape == (HEIGHT, WIDTH, 3)
        assert list(image.ids) == values.reshape(-1).tolist()
        assert np.array_equal(values[:keep_rows], pixels()[:keep_rows])
        assert not np.array_equal(values[keep_rows], pixels()[keep_rows])
    assert np.array_equal(pixels_of(completions.png), np.concatenate(drawn, axis=1))
    assert len({values.tobytes() for values in drawn}) == samples


class TestCompleting:
    def test_the_upper_rows_stay_and_the_samples_differ(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "in.png").write_bytes(png_of(pixels()))
        seen: list[Progress] = []
        completions = client.complete_image(
            tmp_path / "in.png", keep_rows=4, samples=3, seed=2**64 - 1, on_progress=seen.append
        )
        check(completions, 4, 3)
        assert completions.notes == ()
        assert [image.seed for image in completions] == [2**64 - 1, 0, 1]
        assert [each.processed_tokens for each in seen] == [ROW * each for each in range(1, 7)]
        assert seen[-1].fraction == 1

        [again] = client.complete_image(png_of(pixels()), keep_rows=4, seed=0)
        assert again.ids == completions[1].ids
        again.save(tmp_path / "one.png")
        completions.save(tmp_path / "all.png")
        assert (tmp_path / "one.png").read_bytes() == again.png == again._repr_png_()
        assert (tmp_path / "all.png").read_bytes() == completions.png == completions._repr_png_()

    def test_half_of_the_rows_stay_by_default(self, client: Client) -> None:
        check(client.complete_image(png_of(pixels())), 3, 1)

    async def test_async(self, server: ServerProcess) -> None:
        async with AsyncClient(server.address, timeout=100) as client:
            check(await client.complete_image(png_of(pixels()), keep_rows=1, samples=2), 1, 2)

    def test_the_likeliest_values(self, client: Client) -> None:
        one, other = client.complete_image(png_of(pixels()), samples=2, temperature=0.0)
        assert one.ids == other.ids

    def test_tokens_that_are_drawn_are_those_that_are_scored(self, client: Client) -> None:
        image = client.complete_image(png_of(pixels()), keep_rows=5, temperature=0.0)[0]
        with client.documents.create(image.ids[: 5 * ROW]) as document:
            drawn = document.generate(max_tokens=ROW, temperature=0.0).collect()
        assert drawn.logprobs == pytest.approx(list(client.score(image.png).logprobs[-ROW:]), abs=1e-4)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"keep_rows": 0}, ValueError, "keep_rows must be 1 to 5, for pictures of 6 rows, but is 0"),
            ({"keep_rows": 6}, ValueError, "but is 6"),
            ({"samples": 0}, ValueError, "samples must be 1 to 1820"),
            ({"samples": 1821}, ValueError, "but is 1821"),
            ({"max_tokens": 5}, TypeError, "no argument max_tokens; how it draws: temperature, "),
            ({"temperature": -1.0}, InvalidArgumentError, "temperature"),
        ],
    )
    def test_bad_arguments(
        self, client: Client, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            client.complete_image(png_of(pixels()), **arguments)

    def test_a_text_is_no_source(self, client: Client) -> None:
        with pytest.raises(TypeError, match="Path or the bytes of a PNG or JPEG file, not str"):
            client.complete_image("in.png")  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            client.complete_image(Path("nowhere.png"))


class TestFiles:
    def test_grey_is_converted_and_said_to_be(self, client: Client) -> None:
        grey = png_of(pixels()[..., 0])
        completions = client.complete_image(grey)
        assert completions.notes == ("converted from grey to RGB",)
        assert np.array_equal(pixels_of(completions.png)[:3], pixels()[:3, :, :1].repeat(3, axis=2))
        assert client.score(grey).notes == completions.notes
        with client.documents.create(grey) as document:
            assert document.info.notes == completions.notes

    def test_another_size_is_refused_or_resized(self, client: Client) -> None:
        large = png_of(pixels(20, 10))
        with pytest.raises(
            InvalidArgumentError, match="the picture has 10 × 20 pixels, but this model reads 4 × 6"
        ) as e:
            client.complete_image(large)
        assert [violation.field for violation in e.value.field_violations] == ["image.data"]
        completions = client.complete_image(large, resize=True)
        assert completions.notes == ("resized from 10 × 20 to 4 × 6 pixels",)
        assert pixels_of(completions.png).shape == (HEIGHT, WIDTH, 3)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (png_of(pixels())[:60], "the PNG is damaged"),
            (b"hello", "neither a PNG nor a JPEG file"),
            (b"", "neither a PNG nor a JPEG file"),
            (b"\x89PNG\r\n\x1a\n" + bytes(1_000_000), "must be at most 1,000,000 bytes, but is 1,000,008"),
        ],
    )
    def test_what_is_no_picture_is_refused_by_the_field(self, client: Client, content: bytes, message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=message) as error:
            client.complete_image(content)
        assert [violation.field for violation in error.value.field_violations] == ["image.data"]

    def test_a_damaged_picture_can_be_neither_scored_nor_read(self, client: Client) -> None:
        damaged = png_of(pixels())[:60]
        for call in (client.score, client.documents.create):
            with pytest.raises(InvalidArgumentError, match=r"chunk\.data: the PNG is damaged"):
                call(damaged)


class TestScoring:
    def test_bits_per_byte_are_bits_per_dimension(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "in.png").write_bytes(png_of(pixels()))
        scores = client.score(tmp_path / "in.png")
        assert scores.token_ids.tolist() == pixels().reshape(-1).tolist()
        assert scores.content_bytes == HEIGHT * ROW
        assert scores.bits_per_byte == pytest.approx(-scores.total_logprob / math.log(2) / (HEIGHT * ROW))
        assert 7 < scores.bits_per_byte < 10  # nothing is known about random values
        with client.documents.create(tmp_path / "in.png", keep_scores=True) as document:
            assert document.content_type is ContentType.IMAGE
            assert document.content_bytes == (tmp_path / "in.png").stat().st_size
            kept = document.scores()
        assert kept.logprobs[1:].tolist() == pytest.approx(scores.logprobs[1:].tolist(), abs=1e-4)
        assert kept.bits_per_byte == pytest.approx(scores.bits_per_byte, rel=1e-5)


class TestKindsOfModels:
    def test_the_model_says_what_it_reads(self, client: Client) -> None:
        model = client.model()
        assert (model.tokenizer, model.picture_height, model.picture_width) == ("pixels", HEIGHT, WIDTH)
        tokenized = client.tokenize_image(png_of(pixels()))
        assert list(tokenized.ids) == pixels().reshape(-1).tolist()
        assert np.array_equal(pixels_of(client.detokenize_image(tokenized.ids[: 2 * ROW])), pixels()[:2])

    def test_one_that_reads_pictures_refuses_texts(self, client: Client) -> None:
        for call, field in (
            (lambda: client.score("a text"), "header.content_type"),
            (lambda: client.documents.create("a text"), "header.content_type"),
            (lambda: client.generate("a text").collect(), "text"),
            (lambda: client.tokenize("a text"), "text"),
            (lambda: client.generate([1, 2], stop="a").collect(), "sampling.stop"),
            (lambda: client.detokenize_image([1, 2, 3]), "token_ids.ids"),
            (lambda: client.detokenize_image([1] * ROW, columns=0), "columns"),
        ):
            with pytest.raises(InvalidArgumentError) as error:
                call()
            assert [violation.field for violation in error.value.field_violations] == [field]

    def test_one_that_reads_texts_refuses_pictures(self, serve: Callable[..., ServerProcess]) -> None:
        with Client(serve("--memory", "1GiB").address, timeout=100) as client:
            assert client.model().picture_height == 0
            for call, field in (
                (lambda: client.complete_image(png_of(pixels())), "image.data"),
                (lambda: client.score(png_of(pixels())), "header.content_type"),
            ):
                with pytest.raises(InvalidArgumentError, match=r"reads text") as error:
                    call()
                assert [violation.field for violation in error.value.field_violations] == [field]


class TestEmbeddedModel:
    def test_completes_a_picture_that_it_never_saw(self, serve: Callable[..., ServerProcess]) -> None:
        briefcase = (EXAMPLES / "briefcase.png").read_bytes()
        with Client(serve("--memory", "1GiB", "--model", "embedded:image").address, timeout=100) as client:
            assert client.model().name == "embedded:image"
            completions = client.complete_image(briefcase, keep_rows=30, samples=2, temperature=0.7, seed=1)
        original = pixels_of(briefcase).astype(int)
        for image in completions:
            values = pixels_of(image.png).astype(int)
            assert np.array_equal(values[:30], original[:30])
            assert np.abs(values[30:] - original[30:]).mean() < 60  # 85 is what noise has to noise


class TestCommand:
    def run(self, server: ServerProcess, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            reformer("--server", server.address, *arguments), capture_output=True, text=True, timeout=60
        )

    def test_complete_image(self, server: ServerProcess, tmp_path: Path) -> None:
        original, out = tmp_path / "in.png", tmp_path / "out.png"
        original.write_bytes(png_of(pixels()))
        options = ("--keep-rows", "2", "--samples", "4", "--temperature", "0.9", "--top-p", "0.9", "--seed", "7")
        done = self.run(server, "complete-image", original, out, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            f"{out}: 4 completions side by side, 4 × 6 pixels each, the upper 2 rows kept; "
            "--seed 7 draws the same again\n"
        )
        drawn = pixels_of(out.read_bytes())
        assert drawn.shape == (HEIGHT, 4 * WIDTH, 3)
        assert np.array_equal(drawn[:2], np.tile(pixels()[:2], (1, 4, 1)))

    def test_notes_and_scores(self, server: ServerProcess, tmp_path: Path) -> None:
        original, out = tmp_path / "in.png", tmp_path / "out.png"
        original.write_bytes(png_of(pixels(8, 8)[..., 0]))
        done = self.run(server, "complete-image", original, out)
        assert done.returncode == 1
        assert "the picture has 8 × 8 pixels, but this model reads 4 × 6" in done.stderr
        assert not out.exists()
        done = self.run(server, "complete-image", original, out, "--resize")
        assert done.returncode == 0
        assert done.stderr.splitlines() == [
            f"note: {original}: converted from grey to RGB",
            f"note: {original}: resized from 8 × 8 to 4 × 6 pixels",
        ]
        assert "a completion, 4 × 6 pixels, the upper 3 rows kept" in done.stdout
        done = self.run(server, "score", out)
        assert done.returncode == 0
        assert f"bytes          {HEIGHT * ROW}\n" in done.stdout

    def test_a_folder_that_is_not_there_is_said_before_the_work(self, server: ServerProcess, tmp_path: Path) -> None:
        (tmp_path / "in.png").write_bytes(png_of(pixels()))
        done = self.run(server, "complete-image", tmp_path / "in.png", tmp_path / "nowhere" / "out.png")
        assert done.returncode == 2
        assert "there is no folder" in done.stderr
