"""The per-pixel model of counts is a probability, and uses what it says that it uses."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.pixel_baselines import PixelCounts, Pixels, file_bits, median_prediction


def noise(seed: int, pictures: int = 4, size: int = 8) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (pictures, size, size, 3), dtype=np.uint8)


def test_the_prediction_is_the_median_of_left_above_and_their_plane() -> None:
    picture = np.zeros((1, 2, 2, 3), np.uint8)
    picture[0, 0], picture[0, 1, 0] = [[10], [60]], 20  # corner 10, above 60, left 20
    assert median_prediction(picture)[0, 1, 1].tolist() == [60, 60, 60]  # the plane says 70
    picture[0, 0] = [[20], [30]]
    picture[0, 1, 0] = 25
    assert median_prediction(picture)[0, 1, 1].tolist() == [30, 30, 30]  # 35, no more than either
    picture[0, 1, 0] = 15
    assert median_prediction(picture)[0, 1, 1].tolist() == [25, 25, 25]
    assert median_prediction(picture)[0, 0, 0].tolist() == [255, 255, 255]  # white lies around


@pytest.mark.parametrize("colours", [False, True])
def test_all_values_together_have_probability_one(colours: bool) -> None:
    counts = PixelCounts(noise(0), colours=colours)
    picture = noise(1, pictures=1)
    total = 0.0
    for value in range(256):
        picture[0, 5, 5, 2] = value
        total += 2 ** -counts.bits(picture)[0, 5, 5, 2]
    assert total == pytest.approx(1)


def test_what_is_told_by_neighbours_takes_no_bits_and_noise_takes_all() -> None:
    flat = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, (40, 16, 16, 3)).copy()
    assert PixelCounts(flat, colours=False).bits(flat)[:, 1:, 1:].mean() < 0.1
    assert 7.9 < PixelCounts(noise(0, 400), colours=False).bits(noise(1, 20)).mean() < 8.3


def test_the_colours_before_tell_more_where_they_go_together() -> None:
    grey = noise(0, 200)[..., :1].repeat(3, axis=-1)
    alone, together = (PixelCounts(grey, colours=colours).bits(grey).mean() for colours in (False, True))
    assert together < alone - 1


def test_bits_of_files() -> None:
    pictures = noise(0, 2)
    sizes = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", optimize=True)
        sizes.append(len(file.getvalue()))
    assert file_bits(pictures, "PNG", optimize=True) == pytest.approx(8 * sum(sizes) / pictures.size)
