"""Nobody waits behind a novel: what others notice while the server reads a document of a million tokens.

    python -m benchmarks.neighbours [--tokens 1048576]
    python -m benchmarks.neighbours --quick

On the embedded text model: the gaps between the tokens of somebody else's stream, alone and while the document is read;
how much of its speed the reading keeps beside the stream; and when short documents that are uploaded meanwhile are
ready. The short ones and the stream are there together, so each has the other to put up with, too.
"""

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, read_tokens
from benchmarks.harness import markdown_table, plot, save
from benchmarks.listener import listening
from benchmarks.serving import length_options, quantile, serving_embedded
from reformer_client import Client

NAME = "neighbours"
LONG_TOKENS, SHORT_TOKENS = 1 << 20, 4096
SHORTS = 5  # short documents, each time
QUICK_TOKENS, QUICK_SHORT_TOKENS = 8192, 512
IDLE_SECONDS, QUICK_IDLE_SECONDS = 20.0, 2.0


@dataclass(frozen=True)
class Lengths:
    """What is sent and how long the stream is listened to alone."""

    long_tokens: int
    short_tokens: int
    idle_seconds: float


class Texts:
    """Token ids of a novel. Each piece is another one, so that the server finds none that it has read before."""

    def __init__(self, lengths: Lengths) -> None:
        self._lengths, self._taken = lengths, 0
        shorts = 2 * (SHORTS + 1) * lengths.short_tokens
        self._ids = read_tokens(NOVEL, lengths.long_tokens + shorts).tolist()

    def long(self) -> list[int]:
        """A long document."""
        return self._next(self._lengths.short_tokens, self._lengths.long_tokens)

    def short(self) -> list[int]:
        """A short one."""
        return self._next(self._lengths.short_tokens, self._lengths.short_tokens)

    def _next(self, step: int, tokens: int) -> list[int]:
        self._taken += step
        return list(self._ids[self._taken - step :][:tokens])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    what = "Others beside a long document."
    name, tokens, quick = length_options(NAME, what, arguments, tokens=LONG_TOKENS, quick_tokens=QUICK_TOKENS)
    short_tokens, idle_seconds = (QUICK_SHORT_TOKENS, QUICK_IDLE_SECONDS) if quick else (SHORT_TOKENS, IDLE_SECONDS)
    lengths = Lengths(tokens, short_tokens, idle_seconds)
    with serving_embedded(lengths.long_tokens) as server:
        result = measured(server.address, lengths)
    draw(name, result["idle"]["gaps"], result["beside"]["gaps"])
    for phase in ("idle", "beside"):
        del result[phase]["gaps"]
    save(name, {**result, "bars": [{**asdict(bar), "met": bar.met} for bar in bars(result)]})
    print(tables(result))


def measured(address: str, lengths: Lengths) -> dict[str, Any]:
    """Everything alone, then everything at once."""
    texts = Texts(lengths)
    with Client(address) as client:
        upload_seconds(client, texts.short())  # warms up
        short_alone = [upload_seconds(client, texts.short()) for _ in range(SHORTS)]
        long_alone = upload_seconds(client, texts.long())
        with listening(address) as arrivals:
            began = time.monotonic()
            time.sleep(lengths.idle_seconds)
            idle = (began, time.monotonic())
            short_beside: list[float] = []
            reader = threading.Thread(target=shorts_beside, args=(client, texts, long_alone, short_beside))
            began = time.monotonic()
            reader.start()
            long_beside = upload_seconds(client, texts.long())
            beside = (began, time.monotonic())
            reader.join()
    return {
        "tokens": lengths.long_tokens,
        "short_tokens": lengths.short_tokens,
        "idle": {"long_seconds": long_alone, "short_seconds": short_alone, **gaps(arrivals.gaps(*idle))},
        "beside": {"long_seconds": long_beside, "short_seconds": short_beside, **gaps(arrivals.gaps(*beside))},
    }


def upload_seconds(client: Client, token_ids: list[int]) -> float:
    """From the call until the document is ready; it is deleted then."""
    began = time.monotonic()
    document = client.documents.create(token_ids)
    seconds = time.monotonic() - began
    document.delete()
    return seconds


def shorts_beside(client: Client, texts: Texts, long_seconds: float, taken: list[float]) -> None:
    """Uploads short documents, spread over the time that the long one takes alone: then it is still being read."""
    for _ in range(SHORTS):
        time.sleep(long_seconds / (SHORTS + 1))
        taken.append(upload_seconds(client, texts.short()))


def gaps(seconds: list[float]) -> dict[str, Any]:
    """Between tokens."""
    return {
        "p50_seconds": statistics.median(seconds),
        "p99_seconds": quantile(seconds, 0.99),
        "most_seconds": max(seconds),
        "gaps": seconds,
    }


def draw(name: str, idle: Sequence[float], beside: Sequence[float]) -> None:
    """The share of gaps that are longer than so much."""
    with plot(name) as (axes,):
        for label, seconds in (("alone", idle), ("while the document is read", beside)):
            shares = [1 - number / len(seconds) for number in range(len(seconds))]
            axes.loglog([1000 * gap for gap in sorted(seconds)], shares, label=label)
        axes.axhline(0.01, color="gray", linewidth=0.8)
        axes.set(xlabel="gap between two tokens, ms", ylabel="share of gaps that are longer")
        axes.legend()


def bars(result: dict[str, Any]) -> list[Bar]:
    """What is promised."""
    idle, beside = result["idle"], result["beside"]
    short = statistics.median(beside["short_seconds"]) / statistics.median(idle["short_seconds"])
    return [
        Bar("p99 gap beside the reading ÷ alone", beside["p99_seconds"] / idle["p99_seconds"], most=4),
        Bar("speed of the reading beside the stream ÷ alone", idle["long_seconds"] / beside["long_seconds"], least=0.6),
        Bar("short document ready beside the reading ÷ alone", short, most=3),
    ]


def tables(result: dict[str, Any]) -> str:
    """What was measured, and the bars."""
    header = ["", "gap p50", "p99", "longest", "long document", "short document"]
    rows = [
        [
            name,
            *(f"{1000 * phase[key]:.1f} ms" for key in ("p50_seconds", "p99_seconds", "most_seconds")),
            f"{phase['long_seconds']:.1f} s",
            f"{statistics.median(phase['short_seconds']):.2f} s",
        ]
        for name, phase in (("alone", result["idle"]), ("all at once", result["beside"]))
    ]
    return f"{markdown_table(header, rows)}\n\n{bar_table(bars(result))}"


if __name__ == "__main__":
    main()
