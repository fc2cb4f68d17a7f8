"""Surprise, passages, and the summary that notebooks show."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_client.report.passages import find_passages
from reformer_client.report.surprise import MOST_BITS, Surprise, surprise_of
from tests.client.scored import scores_of

sizes_and_bits = st.lists(st.tuples(st.integers(0, 4), st.floats(0, 60, width=32)), min_size=1, max_size=300)

# -- surprise


def test_surprise_counts_bits() -> None:
    surprise = surprise_of(scores_of([b"It", b" is", b" ", b"a"], [9, 2, 0.5, 4]))
    assert surprise.bits == pytest.approx([0, 2, 0.5, 4])  # the first token has no score
    assert (surprise.text, surprise.lengths, surprise.is_text) == (b"It is a", [2, 3, 1, 1], True)
    assert surprise.mean(0, 4) == pytest.approx(6.5 / 7)
    assert surprise.mean(1, 3) == pytest.approx(2.5 / 4)
    assert math.isnan(surprise.mean(2, 2))


def test_the_first_token_of_a_range_counts() -> None:
    surprise = surprise_of(scores_of([b"a", b"b"], [3, 5], start=10))
    assert surprise.bits == pytest.approx([3, 5])
    assert surprise.mean(0, 2) == pytest.approx(4)


def test_impossible_tokens_and_rounding_are_bounded() -> None:
    surprise = surprise_of(scores_of([b"a"] * 4, [0, math.inf, 1e6, -1e-9], start=1))
    assert surprise.bits == [0, MOST_BITS, MOST_BITS, 0]


def test_tokens_that_are_no_text_show_their_ids() -> None:
    surprise = surprise_of(scores_of([b""] * 3, [0, 6, 8], ids=[7, 250, 0]))
    assert not surprise.is_text
    assert (surprise.text, surprise.lengths) == (b"7 250 0 ", [2, 4, 2])
    assert surprise.mean(0, 3) == pytest.approx(14 / 2)  # bits a scored token
    assert math.isnan(surprise.mean(0, 1))


@given(st.lists(st.binary(max_size=5)))
def test_bytes_that_are_no_utf8_are_replaced_one_by_one(pieces: list[bytes]) -> None:
    surprise = surprise_of(scores_of(pieces))
    text = b"".join(pieces)
    if text:
        assert len(surprise.text) == len(text)
        valid = text.decode("utf-8", "ignore")
        assert surprise.text.decode().replace("\x1a", "") == valid.replace("\x1a", "")


@given(sizes_and_bits, st.integers(1, 40))
def test_smoothing_equals_a_mean_of_each_stretch(tokens: list[tuple[int, float]], points: int) -> None:
    surprise = surprise_of(scores_of([b"x" * size for size, _ in tokens], [bits for _, bits in tokens], start=1))
    n = len(tokens)
    points = min(points, n)
    expected = []
    for i in range(points):
        part = tokens[i * n // points : (i + 1) * n // points]
        size = sum(size for size, _ in part) if surprise.is_text else len(part)
        expected.append(sum(bits for _, bits in part) / size if size else math.nan)
    assert surprise.smoothed(points) == pytest.approx(expected, nan_ok=True, abs=1e-4)


# -- passages


def naive_passages(surprise: Surprise, length: int, count: int, sign: int) -> list[tuple[int, float]]:
    """The best start that is far enough from all that were chosen, again and again."""
    apart = max(length, min(8 * length, len(surprise) // (2 * count)))
    first = 0 if surprise.is_scored else 1
    starts = range(first, len(surprise) - length + 1, max(1, length // 8))
    chosen: list[tuple[int, float]] = []
    while len(chosen) < count:
        free = [start for start in starts if all(abs(start - other) >= apart for other, _ in chosen)]
        means = [(surprise.mean(start, start + length), start) for start in free]
        means = [(sign * mean, sign * start) for mean, start in means if not math.isnan(mean)]
        if not means:
            break
        mean, start = max(means)
        chosen.append((sign * start, sign * mean))
    return chosen


@given(sizes_and_bits, st.booleans(), st.integers(1, 6))
def test_passages_equal_a_naive_search(tokens: list[tuple[int, float]], whole: bool, count: int) -> None:
    pieces, bits = [b"x" * size for size, _ in tokens], [bits for _, bits in tokens]
    surprise = surprise_of(scores_of(pieces, bits, start=0 if whole else 7))
    found = find_passages(surprise, count)
    wanted = round(200 * len(surprise) / len(surprise.text)) if surprise.is_text else 64
    length = max(1, min(wanted, len(surprise) // 10))
    for passages, sign in ((found.most, 1), (found.least, -1)):
        assert [(passage.start, passage.mean) for passage in passages] == naive_passages(surprise, length, count, sign)
        assert all(passage.end - passage.start == length for passage in passages)


def test_the_odd_passages_of_a_long_text_are_found() -> None:
    bits = [2.0] * 50_000
    bits[12_000:12_100] = [9.0] * 100
    bits[30_000:30_100] = [0.1] * 100
    found = find_passages(surprise_of(scores_of([b"word"] * 50_000, bits)))
    assert 12_000 <= found.most[0].start <= found.most[0].end <= 12_100
    assert 30_000 <= found.least[0].start <= found.least[0].end <= 30_100
    assert len(found.most) == len(found.least) == 12


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_short_texts_have_a_passage_for_each_token(n: int) -> None:
    found = find_passages(surprise_of(scores_of([b"ab"] * n)))
    assert len(found.most) == len(found.least) == n - 1


# -- notebooks


def test_notebooks_show_a_line_and_passages() -> None:
    bits = [1.0] * 500
    bits[200:230] = [8.0] * 30
    summary = scores_of([b"so <b>it</b> is "] * 500, bits)._repr_html_()
    assert "500 tokens" in summary
    assert "8,000 bytes" in summary
    assert "<script" not in summary
    assert "&lt;b&gt;it" in summary
    assert "<b>it" not in summary
    points = re.search(r'<polyline points="([^"]+)"', summary)
    assert points
    xy = [tuple(map(float, point.split(","))) for point in points[1].split()]
    assert len(xy) == 300
    assert (xy[0][0], xy[-1][0]) == (0, 600)
    assert 200 / 500 <= min(xy, key=lambda point: point[1])[0] / 600 <= 230 / 500  # up is surprising


def test_notebooks_show_scores_without_text_or_of_nothing() -> None:
    assert "bits per token" in scores_of([b""] * 50)._repr_html_()
    assert "0 tokens" in scores_of([])._repr_html_()
    assert "\ufffd" in scores_of([b"\0", b"\x1b", b"\xff", b"\x80"] * 10)._repr_html_()
