"""How large the page of `reformer score --html` is and how long it takes, for a novel and for a million tokens.

Also draws the documentation's screenshot of it. Needs Chromium.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

from benchmarks.harness import IMAGES, ROOT, markdown_table, save
from examples.demo import serving
from reformer_client import Client, ModelInfo, Scores
from reformer_client.scores import float32_view, uint32_view
from tests.e2e.chromium import PROGRAM, Visit, running_chromium

NOVEL = ROOT / "examples" / "emma.txt"
MILLION = 1_000_000
REPEATS = 5


def main() -> None:
    """Runs the benchmark."""
    if PROGRAM is None:
        sys.exit("there is no Chromium here; on Debian and Ubuntu: apt-get install chromium")
    with serving(None) as server, Client(f"{server['host']}:{server['port']}") as client:
        scores, model = client.score(NOVEL), client.model()
    with tempfile.TemporaryDirectory() as directory, running_chromium() as browser:
        pages = {
            "examples/emma.txt": measured(scores, NOVEL.name, model, browser, Path(directory) / "emma.html"),
            "its scores again and again": measured(
                a_million(scores), "a million", model, browser, Path(directory) / "million.html"
            ),
        }
        screenshot(browser, Path(directory) / "emma.html")
    save("score_report", {"browser": browser.version, "pages": pages})
    header = ["page of", "tokens", "size", "made in", "shown in", "of it busy"]
    rows = [
        [name, f"{page['tokens']:,}", f"{page['bytes'] / 1e6:.1f} MB"]
        + [f"{page[key]:.2f} s" for key in ("made_seconds", "shown_seconds", "busy_seconds")]
        for name, page in pages.items()
    ]
    print(markdown_table(header, rows))


def a_million(scores: Scores) -> Scores:
    """A million tokens: those of a novel, as often as it takes."""
    times = MILLION // scores.tokens + 1
    lengths = uint32_view((bytes(scores.text_lengths) * times)[: 4 * MILLION])
    return dataclasses.replace(
        scores,
        logprobs=float32_view((bytes(scores.logprobs) * times)[: 4 * MILLION]),
        token_ids=uint32_view((bytes(scores.token_ids) * times)[: 4 * MILLION]),
        text=(scores.text * times)[: sum(lengths)],
        text_lengths=lengths,
        total_logprob=scores.total_logprob * MILLION / scores.tokens,
    )


def measured(scores: Scores, title: str, model: ModelInfo, browser: Browser, file: Path) -> dict[str, Any]:
    """Writes the page to the file and opens it a few times; times are medians, in seconds."""
    made, shown, busy = [], [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        html = scores.to_html(title=title, model=model)
        made.append(time.perf_counter() - began)
        file.write_text(html, encoding="utf-8")
        began = time.perf_counter()
        visit = Visit(browser, file)
        shown.append(time.perf_counter() - began)
        busy.append(visit.busy_seconds)
        assert not visit.complaints, visit.complaints
        visit.page.close()
    return {
        "tokens": scores.tokens,
        "bytes": file.stat().st_size,
        "made_seconds": statistics.median(made),
        "shown_seconds": statistics.median(shown),
        "busy_seconds": statistics.median(busy),
    }


def screenshot(browser: Browser, file: Path) -> None:
    """As a reader sees it who has gone to one of the passages."""
    page = Visit(browser, file).page
    page.locator("#passage-list button").nth(2).click()
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / "score-report.png")
    page.close()


if __name__ == "__main__":
    main()
