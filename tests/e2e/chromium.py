"""The system's own Chromium, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PATIENCE_MS = 120_000
"""A browser is many processes: on a busy machine all of them wait for a core."""


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """A browser with a fresh profile. Its pages may not be used while an event loop runs on this thread."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=QUIET, chromium_sandbox=False)
        yield browser
        browser.close()


class Visit:
    """A page that was opened from a file, and all that it complained about or asked for."""

    def __init__(
        self, browser: Browser, file: Path, *, width: int = 1280, height: int = 800, dark: bool = False
    ) -> None:
        """Returns when the page has drawn itself; raises playwright's TimeoutError if it never does."""
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        performance = self.page.context.new_cdp_session(self.page)
        performance.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.page.goto(file.as_uri())
        # Asked from here: where the page itself looks again later, its security policy forbids to evaluate a string.
        while not self.page.evaluate("window.report !== undefined"):
            self.page.wait_for_timeout(200)
        self.page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        metrics = performance.send("Performance.getMetrics")["metrics"]
        self.busy_seconds: float = next(each["value"] for each in metrics if each["name"] == "TaskDuration")
        """CPU seconds of the page's thread, on which it is parsed, laid out and run, from nothing until it is shown."""
