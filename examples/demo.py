"""What reformer-serve is for, in one run: a novel is read once, then scored and continued. `make demo` runs this file.

Everything here is the public SDK (`reformer_client`) and the command `reformer`.
"""

import argparse
import json
import lzma
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from reformer_client import Client, Document, ReformerError

NOVEL = Path(__file__).with_name("emma.txt")
PROMPT = "\n\n\nCHAPTER XX\n\n\nMr. Knightley"
SERIES = (
    "reformer_prefill_tokens_total",
    "reformer_time_to_first_token_seconds_sum",
    "reformer_generated_tokens_total",
    "reformer_document_cache_bytes",
)
console = Console(highlight=False)


def run(novel: Path, model: Path | None) -> None:
    """The demo."""
    with serving(model) as server, Client(f"{server['host']}:{server['port']}") as client:
        served = client.model()
        weights = f"{served.parameters:,} parameters in {served.dtype} on {served.device}"
        say("Serving", f"{weights}, up to {served.max_tokens:,} tokens")

        first = time.perf_counter()
        document = upload(client, novel)
        read_seconds = time.perf_counter() - first
        speed = f"{read_seconds:.1f} s, {document.tokens / read_seconds:,.0f} tokens a second"
        say("Read", f"{novel.name}: {document.content_bytes:,} bytes, {document.tokens:,} tokens in {speed}")

        say("Scored", f"{bits_per_byte(document):.3f} bits per byte; xz -9 needs {bits_per_byte_of_xz(novel):.3f}")

        say("Continued", "by a small model: expect period English, but no sense\n")
        first_seconds = read_seconds + continuation(document, max_tokens=100)

        second = time.perf_counter()
        again = upload(client, novel)
        second_seconds = time.perf_counter() - second
        found = "the server has it, nothing is sent or read" if again.cached else "the server reads it again"
        say("Again", f"the same upload: {found}; the same seed gives the same words:\n")
        second_seconds += continuation(again, max_tokens=20)
        waited = f"{first_seconds:.2f} s with upload and reading, then {second_seconds:.3f} s"
        say("Waited", f"for the first word: {waited}")

        say("Measured", "a few of the server's metrics:")
        for line in metrics(server):
            console.print(" " * 11 + line, markup=False, soft_wrap=True)
        document.delete()
    say("Stopped", "by SIGTERM, with exit code 0")


@contextmanager
def serving(model: Path | None) -> Iterator[dict[str, Any]]:
    """Runs `reformer serve` on free ports; yields what it says as soon as it is ready, and stops it at the end."""
    command = [str(Path(sys.executable).with_name("reformer")), "serve", "--port", "0", "--metrics-port", "0"]
    command += ["--json", "--log-level", "warning"]
    command += ["--store", "none"]  # it ends with the server
    if model is not None:
        command += ["--model", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with console.status("starting the server"):
                ready = process.stdout.readline()
            if not ready:
                sys.exit(f"The server didn't start; above it says why. Its exit code is {process.wait()}.")
            yield json.loads(ready)
        finally:
            process.terminate()
    if process.returncode != 0:
        sys.exit(f"The server didn't stop cleanly: after SIGTERM its exit code is {process.returncode}.")


def upload(client: Client, novel: Path) -> Document:
    """The novel as a document that keeps the log-probability of each of its tokens."""
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.completed:,} tokens"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        return client.documents.create(
            novel,
            document_id=novel.stem,
            keep_scores=True,
            on_progress=lambda done: bar.update(task, completed=done.processed_tokens, total=done.total_tokens),
        )


def bits_per_byte(document: Document) -> float:
    """From the scores, as they are streamed. The first token of a text has none: it is NaN."""
    nats = 0.0
    for block in document.stream_scores():
        nats -= math.fsum(logprob for logprob in block.logprobs if not math.isnan(logprob))
    return nats / math.log(2) / document.content_bytes


def bits_per_byte_of_xz(novel: Path) -> float:
    """What a good general compressor makes of it, for comparison."""
    return 8 * len(lzma.compress(novel.read_bytes(), preset=9)) / novel.stat().st_size


def continuation(document: Document, max_tokens: int) -> float:
    """Streams a continuation to the terminal; returns the seconds until its first token."""
    start, first_token = time.perf_counter(), math.nan
    console.out(PROMPT.strip(), style="dim", end="", highlight=False)
    for token in document.generate(PROMPT, max_tokens=max_tokens, temperature=0.7, min_p=0.1, seed=8):
        if math.isnan(first_token):
            first_token = time.perf_counter()
        console.out(token.text, style="green", end="", highlight=False)
    console.print(" ...\n")
    return first_token - start


def metrics(server: dict[str, Any]) -> list[str]:
    """The lines of a few series, as Prometheus reads them."""
    with urlopen(f"http://{server['host']}:{server['metrics_port']}/metrics") as response:
        return [line for line in response.read().decode().splitlines() if line.startswith(SERIES)]


def say(what: str, how: str) -> None:
    """One step of the demo."""
    console.print(f"[bold]{what:<10}[/bold] {how}", soft_wrap=True)


def main() -> None:
    """The command line; errors take one line."""
    parser = argparse.ArgumentParser(description="A novel is read once, then scored and continued.")
    parser.add_argument("--novel", type=Path, default=NOVEL, help="another text, in UTF-8")
    parser.add_argument("--model", type=Path, help="another model's folder; without it, the embedded model")
    options = parser.parse_args()
    if not options.novel.is_file():
        parser.error(f"there is no file {options.novel}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    try:
        run(options.novel, options.model)
    except (ReformerError, OSError) as error:
        sys.exit(f"The demo failed: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
