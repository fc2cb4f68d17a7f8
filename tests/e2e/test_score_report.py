"""The page of `reformer score --html` in a browser: it shows what was scored, also of a million tokens."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.serving import ServerProcess
from reformer_client import Client, Scores
from reformer_client.scores import float32_view, uint32_view
from reformer_core import embedded_model_path
from tests.client.scored import scores_of
from tests.e2e.chromium import PROGRAM, Visit, running_chromium

pytestmark = [
    pytest.mark.skipif(
        PROGRAM is None, reason="there is no Chromium here; on Debian and Ubuntu: apt-get install chromium"
    ),
    pytest.mark.timeout(300),  # as PATIENCE_MS
]

TEXT = (
    "CHAPTER I\r\n\r\nEmma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition,\r\n"
    "seemed to unite some of the best blessings of existence. <b>&amp;</script><script>window.stolen = 1</script>\n"
    "\ttabs, NUL \0 and \x1b, שלום עולם, Ünïcödé, e\u0301, 👩‍👩‍👧 🇫🇷, \u202eright to left\u202c, {{data}}\n\n"
) * 4
MILLION = 1_000_000
NEEDLE, NEEDLE_TOKEN = " Señor Quixote", 765_432


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    """Opens pages; afterwards none of them has complained, or asked for anything but itself."""
    visits = []

    def open_page(html: str, **options: Any) -> Visit:
        file = tmp_path / f"{len(visits)}.html"
        file.write_text(html, encoding="utf-8")
        visits.append(Visit(browser, file, **options))
        assert visits[-1].requests == [file.as_uri()]
        return visits[-1]

    yield open_page
    for each in visits:
        assert each.complaints == []
        assert len(each.requests) == 1
        each.page.close()


@pytest.fixture(scope="module")
def million() -> Scores:
    """A million tokens of two bits or so, among them a name that nobody expects, and one line that everybody does."""
    words = [b"The", b" day", b" was", b" pleas", b"ant", b",", b" and", b" so", b".", b"\n"] * 1000
    part = scores_of(words, [i * 7919 % 401 / 100 for i in range(len(words))], start=1)
    logprobs, ids = bytearray(bytes(part.logprobs) * 100), bytes(part.token_ids) * 100
    lengths, text = bytearray(bytes(part.text_lengths) * 100), bytearray(part.text * 100)
    at = sum(uint32_view(bytes(lengths[: 4 * NEEDLE_TOKEN])))
    text[at:at] = NEEDLE.encode()
    memoryview(lengths).cast("I")[NEEDLE_TOKEN] += len(NEEDLE.encode())
    memoryview(logprobs).cast("f")[NEEDLE_TOKEN - 20 : NEEDLE_TOKEN + 20] = float32_view(
        bytes(scores_of([b""] * 40, [20] * 40, start=1).logprobs)
    )
    memoryview(logprobs).cast("f")[0] = math.nan
    return dataclasses.replace(
        part,
        start_token=0,
        logprobs=float32_view(bytes(logprobs)),
        token_ids=uint32_view(ids),
        text=bytes(text),
        text_lengths=uint32_view(bytes(lengths)),
        total_logprob=math.fsum(float32_view(bytes(logprobs))[1:]),
    )


def shown_text(page: Page) -> str:
    """The text inside the reader's window."""
    text: str = page.evaluate(
        """() => {
          const box = document.querySelector("#reader").getBoundingClientRect();
          const inside = (span) => {
            const { top, bottom } = span.getBoundingClientRect();
            return bottom > box.top && top < box.bottom;
          };
          const spans = [...document.querySelectorAll("#reader .token")];
          return spans.filter(inside).map((span) => span.textContent).join("");
        }"""
    )
    return text


def span_of_view(page: Page) -> float:
    span: float = page.evaluate("report.state.to - report.state.from")
    return span


def test_what_a_server_scored(serve: Callable[..., ServerProcess], visit: Callable[..., Visit]) -> None:
    server = serve("--model", embedded_model_path(), "--memory", "1GiB")
    with Client(server.address, timeout=100) as client:
        scores, model = client.score(TEXT), client.model()
    server.stop()
    assert scores.text == TEXT.encode()
    assert sum(scores.text_lengths) == len(scores.text)
    assert max(scores.text_lengths) > 3  # words, not bytes

    page = visit(scores.to_html(title="<i>Emma</i>", model=model)).page
    assert page.inner_text("h1") == "<i>Emma</i>"
    assert f"“{model.name}”" in page.inner_text("#about")
    assert page.inner_text("#figures dd >> nth=0") == f"{scores.bits_per_byte:.3f}"
    told = page.evaluate("[...document.querySelectorAll('#reader .token')].map((span) => span.textContent).join('')")
    assert told == TEXT.replace("\r\n", "\n").replace("\0", "␀").replace("\x1b", "␛")
    assert page.evaluate("window.stolen") is None
    assert page.locator("#passage-list button").count() >= 5
    for query, found in (("<B>&amp;", 4), ("{{data}}", 4), ("E\u0301", 4), ("שלום", 4), ("(.*", 0), ("nul \0", 4)):
        page.fill("#search input", query)
        expect(page.locator("#search output")).to_have_text(f"1 of {found}" if found else "not found")
        assert page.inner_text("#where").startswith("token")
    bits = -scores.logprobs[50] / math.log(2)
    assert page.evaluate("report.series.bits(50)") == pytest.approx(bits, abs=0.001)


def test_a_part_of_a_document_and_tokens_that_are_no_text(client: Client, visit: Callable[..., Visit]) -> None:
    with client.documents.create(TEXT, keep_scores=True) as document:
        scores = document.scores(100, 300)
    assert scores.text == TEXT.encode()[100:300]
    page = visit(scores.to_html()).page
    assert "from token 100" in page.inner_text("#about")
    assert page.inner_text("#where").startswith("token 100")
    page = visit(
        dataclasses.replace(scores, text=b"", text_lengths=uint32_view(bytes(4 * scores.tokens))).to_html()
    ).page
    assert page.inner_text("#reading-title").startswith("Token ids")
    assert shown_text(page).startswith(" ".join(map(str, scores.token_ids[:20])))


def test_a_million_tokens(visit: Callable[..., Visit], million: Scores) -> None:
    visited = visit(million.to_html(title="million"))
    # On a machine that does nothing else they are the seconds it takes; on a busy one it isn't to blame for the rest.
    assert visited.busy_seconds < 3
    page = visited.page
    assert page.evaluate("document.querySelectorAll('*').length") < 20_000
    assert shown_text(page).startswith("The day was pleasant")

    page.fill("#search input", NEEDLE.upper())
    expect(page.locator("#search output")).to_have_text("1 of 1")
    assert NEEDLE in shown_text(page)
    assert page.inner_text("#reader .target") == NEEDLE + " was"  # its token
    page.keyboard.press("Escape")
    page.fill("#search input", "nowhere")
    expect(page.locator("#search output")).to_have_text("not found")

    page.evaluate("document.querySelector('#reader').scrollTop = 1e9")
    expect(page.locator("#where")).to_contain_text("100.0")
    page.wait_for_function("[...document.querySelectorAll('#reader .token')].at(-1).to === 1000000")
    page.locator("#passage-list button").first.click()
    assert NEEDLE in shown_text(page)
    assert page.evaluate("document.querySelectorAll('*').length") < 20_000


def test_zoom(visit: Callable[..., Visit], million: Scores) -> None:
    page = visit(million.to_html()).page
    chart = page.locator("#chart")
    assert span_of_view(page) == MILLION
    page.click("#zoom-in")
    assert span_of_view(page) == MILLION / 2
    box = chart.bounding_box()
    assert box is not None
    x, y, width = box["x"], box["y"] + 60, box["width"]
    page.mouse.move(x + width / 2, y)
    page.mouse.wheel(0, -500)
    page.wait_for_function(f"report.state.to - report.state.from < {MILLION / 2}")
    expect(page.locator("#chart .tip")).to_contain_text("bits per byte")
    chart.press("0")
    assert span_of_view(page) == MILLION

    page.mouse.move(x + width * 0.7, y)
    page.mouse.down()
    page.mouse.move(x + width * 0.8, y, steps=3)
    page.mouse.up()
    assert span_of_view(page) == pytest.approx(0.1 * MILLION, rel=0.15)
    assert page.evaluate("report.state.from < 765432 && report.state.to > 765432")
    for _ in range(20):
        chart.press("+")
    assert span_of_view(page) == 12  # tokens: bars with their text
    page.mouse.click(x + width / 2, y)
    middle = page.evaluate("Math.round((report.state.from + report.state.to) / 2)")
    assert abs(page.evaluate("report.state.reader.target[0]") - middle) <= 1


def test_smoothed_line_equals_naive_means(visit: Callable[..., Visit], million: Scores) -> None:
    page = visit(million.to_html()).page
    logprobs, lengths = million.logprobs, million.text_lengths
    for unit in ("byte", "token"):
        told = page.evaluate(f"[...report.series.smoothed(700000, 800000, 50, 3000, '{unit}')]")
        for column, value in enumerate(told):
            centre = 700_000 + (column + 0.5) * 2000
            part = slice(round(centre - 1500), round(centre + 1500))
            bits = -sum(logprobs[part]) / math.log(2)
            size = sum(lengths[part]) if unit == "byte" else part.stop - part.start
            assert value == pytest.approx(bits / size, abs=1e-3)


@pytest.mark.parametrize("dark", [False, True])
def test_narrow_windows_scroll_in_one_direction_only(visit: Callable[..., Visit], dark: bool) -> None:
    scores = scores_of([word.encode() for word in TEXT.split(" ")])
    page = visit(scores.to_html(title="x" * 100), width=360, height=640, dark=dark).page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)") is dark
    page.locator("#passage-list button").last.click()
    assert page.locator("#reader .target").count() > 0


def test_short_texts(visit: Callable[..., Visit]) -> None:
    for pieces in ([b"a"], [b"", b""], ["é".encode()[:1], "é".encode()[1:]]):
        page = visit(scores_of(pieces).to_html()).page
        assert page.is_visible("#reader")
    assert shown_text(page) == "é"
