"""The page: what it carries, that no text gets out of its place, and `reformer score --html`."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import os
import re
import struct
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_client import ModelInfo
from reformer_client.report import page as make_page
from reformer_client.report.packing import pack
from reformer_client.report.surprise import surprise_of
from reformer_client.scores import float32_view, uint32_view
from tests.client.fake_server import FakeServer
from tests.client.scored import LN2, scores_of
from tests.client.test_cli import Command

AWKWARD = [
    "</script><script>alert(1)</script>",
    "<!-- <b>&amp;\"'",
    "\0\x1b[31m\x7f",
    "line\r\nline\rline\n\n",
    "שלום עולם \u202eevil\u202c",
    "e\u0301 👩‍👩‍👧 🇫🇷 \ufeff",
    "{{title}} {{data}} \\u003c",
]
MODEL = ModelInfo("tiny </title>", "1.2.3", 4096, 258, 1000, "cpu", "float32", 2, b"", 1, 1, "bytes", 0, 0)


def unpacked(page: str) -> tuple[dict[str, Any], list[int], list[int], bytes]:
    """What a page carries: facts, lengths, surprise in steps, text."""
    facts: dict[str, Any] = json.loads(element(page, "facts"))
    return facts, *arrays(element(page, "data"), facts["tokens"])


def arrays(packed: str, n: int) -> tuple[list[int], list[int], bytes]:
    data = zlib.decompress(base64.b64decode(packed))
    lengths, steps = struct.unpack_from(f"<{n}I", data), struct.unpack_from(f"<{n}H", data, 4 * n)
    return list(lengths), list(steps), data[6 * n :]


class Elements(html.parser.HTMLParser):
    """The scripts of a page by their ids, and its title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self._current = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._current = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.texts[self._current] = self.texts.get(self._current, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._current = ""


def element(page: str, name: str) -> str:
    return Elements(page).texts[name]


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 60, width=32)), min_size=1), st.booleans())
def test_packing_loses_half_a_thousandth_of_a_bit_at_most(tokens: list[tuple[int, float]], whole: bool) -> None:
    pieces = [b"x" * size for size, _ in tokens]
    surprise = surprise_of(scores_of(pieces, [bits for _, bits in tokens], start=0 if whole else 3))
    lengths, steps, text = arrays(pack(surprise), len(tokens))
    assert (lengths, text) == (list(surprise.lengths), surprise.text)
    if whole:
        assert steps[0] == 0xFFFF
    scored = range(int(whole), len(tokens))
    assert all(abs(steps[i] / 1000 - surprise.bits[i]) <= 0.0005 + 1e-9 for i in scored)


def test_page_tells_what_was_scored() -> None:
    scores = scores_of([b"a", b"b", b"c"], [0, 3, 5])
    created = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
    facts, lengths, steps, text = unpacked(make_page(scores, title="a b", model=MODEL, created=created))
    assert facts["title"] == "a b"
    assert facts["created"] == "2026-11-24T12:30:00+00:00"
    assert facts["model"]["name"] == "tiny </title>"
    assert facts["model"]["parameters"] == 1000
    assert (facts["tokens"], facts["firstToken"], facts["seconds"]) == (3, 0, 2.5)
    assert facts["bits"] == pytest.approx(8)
    assert facts["perplexity"] == pytest.approx(16)
    assert (lengths, steps, text) == ([1, 1, 1], [0xFFFF, 3000, 5000], b"abc")
    assert unpacked(scores_of([b"a"]).to_html())[0]["perplexity"] is None  # one token has no score
    with pytest.raises(ValueError, match="0 tokens"):
        scores_of([]).to_html()


@pytest.mark.parametrize("text", AWKWARD)
def test_no_text_gets_out_of_its_place(text: str) -> None:
    """Neither as a text nor as a title nor as a model's name; what arrives is what was put in."""
    plain, page = (
        scores_of([piece.encode() for piece in content]).to_html(title=title, model=MODEL)
        for title, content in (("plain", "plain"), (text, text))
    )
    assert Elements(page).tags == Elements(plain).tags
    facts, _, _, arrived = unpacked(page)
    assert facts["title"] == text
    assert arrived == text.encode()
    assert element(page, "title") == f"{text} – surprise"


def test_page_runs_its_own_script_and_asks_nobody() -> None:
    page = scores_of([b"a", b"b"]).to_html(title="\udcff.txt")
    assert not re.search(r"""(src|href|url|import|fetch|XMLHttpRequest)\s*[=(]\s*["']?(https?:)?//""", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    for tag, directive in (("style", "style-src"), ('script type="module"', "script-src")):
        source = page.split(f"<{tag}>")[1].split("</")[0] if tag == "style" else page.rpartition(f"<{tag}>")[2]
        source = source.split(f"</{tag.split()[0]}>")[0]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none';")


def test_a_million_tokens_are_quick_and_small() -> None:
    words = [b" the", b" of", b"ing", b"\n", b" Knightley", b"e"] * 100
    part = scores_of(words, [i * 7919 % 601 / 40 for i in range(len(words))], start=1)
    times = 1_000_000 // len(words) + 1
    scores = dataclasses.replace(
        part,
        logprobs=float32_view(bytes(part.logprobs) * times),
        token_ids=uint32_view(bytes(part.token_ids) * times),
        text=part.text * times,
        text_lengths=uint32_view(bytes(part.text_lengths) * times),
        total_logprob=part.total_logprob * times,
    )
    assert scores.tokens >= 1_000_000
    began = time.process_time()
    page = scores.to_html()
    assert time.process_time() - began < 6  # 1.3 on an idle core
    assert len(page) < 8_000_000
    began = time.process_time()
    summary = scores._repr_html_()
    assert time.process_time() - began < 3  # 0.6 on an idle core
    assert len(summary) < 20_000


# -- the command


@pytest.fixture
def reformer(server: FakeServer) -> Command:
    return Command(server)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "war & peace.txt"
    path.write_text("Natasha")
    return path


def test_score_html(reformer: Command, text: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    printed = reformer("score", text, "--html", page).stdout
    assert printed == reformer("score", text).stdout
    facts, lengths, steps, arrived = unpacked(page.read_text("utf-8"))
    assert facts["title"] == "war & peace.txt"
    assert facts["model"]["name"] == "fake"
    assert (lengths, arrived) == ([1] * 7, b"Natasha")
    assert steps[1:] == [round(byte / 64 / LN2 * 1000) for byte in b"atasha"]
    page.write_text("old")
    (values,) = reformer.json("score", text, "--html", page)
    assert values["tokens"] == 7
    assert unpacked(page.read_text("utf-8"))[0]["tokens"] == 7
    reformer("score", "-", "--html", page, input="Pierre")
    assert unpacked(page.read_text("utf-8"))[0]["title"] == "standard input"


def test_score_html_refuses_before_it_scores(
    reformer: Command, server: FakeServer, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no folder" in reformer("score", text, "--html", tmp_path / "none" / "page.html", exit_code=2).stderr
    assert "is a directory" in reformer("score", text, "--html", tmp_path, exit_code=2).stderr
    assert "the text itself" in reformer("score", text, "--html", text, exit_code=2).stderr
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))  # root always may
    assert "no file may be made" in reformer("score", text, "--html", tmp_path / "page.html", exit_code=2).stderr
    assert server.count("Score") == 0
    assert text.read_text() == "Natasha"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_score_html_on_a_full_disk_still_prints_the_figures(reformer: Command, text: Path) -> None:
    result = reformer("score", text, "--html", "/dev/full", exit_code=1)
    assert result.stderr == "Error: /dev/full can't be written: No space left on device\n"
    assert "bits per byte" in result.stdout
