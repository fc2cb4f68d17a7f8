"""How many tokens a second one stream gets, and how many 2, 4, 8 and 16 streams get together.

    python -m benchmarks.streams            # a few minutes
    python -m benchmarks.streams --quick    # short documents, up to 4 streams

The embedded text model, sampling included: through the engine, on one document and on a different document for each
stream; and whole calls through `reformer serve` with the SDK, a thread a stream. One stream in each number format.
"""

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import click

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, TEMPERATURE, embedded_engine, read_tokens, streams_seconds
from benchmarks.harness import Timing, in_turns, markdown_table, plot, save
from benchmarks.serving import serving
from reformer_client import Client, Document
from reformer_core import Document as EngineDocument
from reformer_core import Engine, embedded_model_path
from reformer_core.placement import DTYPES

STREAMS, QUICK_STREAMS = (1, 2, 4, 8, 16), (1, 2, 4)
DOCUMENT_TOKENS, QUICK_DOCUMENT_TOKENS = 16384, 2048
TURNS, TOKENS, SERVER_TOKENS = 7, 64, 256
ONE, DIFFERENT, SERVER = "one document", "different documents", "server and SDK"

Rates = dict[str, dict[int, float]]
"""Tokens a second, by what was measured and the number of streams."""


def measure_engine(engine: Engine, streams: Sequence[int], document_tokens: int) -> dict[str, dict[int, Timing]]:
    """One document for all, and one for each: seconds for `TOKENS` tokens a stream."""
    text = read_tokens(NOVEL, max(streams) * document_tokens)
    documents = [engine.prefill(part) for part in text.split(document_tokens)]
    contenders = {}
    for count in streams:
        for kind, read in ((ONE, documents[:1] * count), (DIFFERENT, documents[:count])):
            contenders[f"{kind} {count}"] = partial(_decode_together, engine, read)
    timings = in_turns(contenders, repeats=TURNS)
    return {kind: {count: timings[f"{kind} {count}"] for count in streams} for kind in (ONE, DIFFERENT)}


def measure_formats(document_tokens: int) -> dict[str, Timing]:
    """One stream through engines of each number format: seconds for `TOKENS` tokens."""
    text, contenders = read_tokens(NOVEL, document_tokens), {}
    for dtype in DTYPES:
        engine = embedded_engine(dtype=dtype)
        contenders[dtype] = partial(_decode_together, engine, [engine.prefill(text)])
    return in_turns(contenders, repeats=TURNS)


def _decode_together(engine: Engine, documents: Sequence[EngineDocument]) -> list[float]:
    return [streams_seconds(engine, documents, TOKENS)]


def measure_server(streams: Sequence[int], document_tokens: int) -> dict[int, Timing]:
    """One document for all: seconds for whole calls of `SERVER_TOKENS` tokens each."""
    token_ids = read_tokens(NOVEL, document_tokens).tolist()
    with (
        TemporaryDirectory() as directory,
        serving("--model", endless_model(Path(directory))) as server,
        Client(server.address) as client,
        client.documents.create(token_ids) as document,
    ):
        contenders = {str(count): partial(_call_together, document, count) for count in streams}
        return {int(count): timing for count, timing in in_turns(contenders, repeats=3).items()}


def endless_model(directory: Path) -> Path:
    """A copy of the embedded model without an end-of-sequence token: a call gets as many tokens as it asks for."""
    copy = Path(shutil.copytree(embedded_model_path(), directory / "model"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "eos_token_id": None}), encoding="utf-8")
    return copy


def _call_together(document: Document, count: int) -> list[float]:
    received = [0] * count

    def read(number: int) -> None:
        stream = document.generate(max_tokens=SERVER_TOKENS, temperature=TEMPERATURE, seed=number)
        received[number] = sum(1 for _ in stream)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
    began = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = perf_counter() - began
    assert received == [SERVER_TOKENS] * count
    return [seconds]


def rates(timings: dict[str, dict[int, Timing]]) -> Rates:
    """Tokens a second of all streams together, from the median."""
    tokens = {ONE: TOKENS, DIFFERENT: TOKENS, SERVER: SERVER_TOKENS}
    return {
        kind: {count: count * tokens[kind] / timing.median_seconds for count, timing in of_kind.items()}
        for kind, of_kind in timings.items()
    }


def bars(found: Rates, formats: dict[str, float]) -> list[Bar]:
    """Of design and issue. `formats`: tokens a second of one stream in each."""
    fastest = max(formats, key=formats.__getitem__)
    single = Bar(f"tokens/s of one stream, engine, {fastest}", formats[fastest], least=300)
    most = max(found[ONE])
    together = [
        Bar(f"tokens/s of {most} streams ÷ one stream's, {kind}", found[kind][most] / found[kind][1], least=6)
        for kind in (ONE, DIFFERENT)
    ]
    return [single, *together]


def show(name: str, found: Rates, formats: dict[str, float]) -> None:
    """Prints the tables and draws the plot."""
    rows = []
    for count in found[ONE]:
        cells = [
            f"{of_kind[count]:,.0f} ({of_kind[count] / of_kind[1]:.1f} ×)" if count in of_kind else "–"
            for of_kind in found.values()
        ]
        rows.append([count, *cells])
    print(markdown_table(["streams", *(f"tokens/s, {kind}" for kind in found)], rows))
    print(markdown_table(["one stream in", "tokens/s"], [[dtype, f"{rate:,.0f}"] for dtype, rate in formats.items()]))
    print(bar_table(bars(found, formats)))
    with plot(name) as (axes,):
        for kind, of_kind in found.items():
            axes.plot(list(of_kind), list(of_kind.values()), marker="o", label=kind)
        axes.set(xlabel="streams", ylabel="tokens a second, all together", title="Streams that decode together")
        axes.set_ylim(bottom=0)
        axes.set_xticks(list(found[ONE]))
        axes.legend()


@click.command()
@click.option("--quick", is_flag=True, help="Short documents, few streams.")
def main(quick: bool) -> None:
    """Measures; writes benchmarks/results/streams.json and docs/images/streams.png."""
    streams = QUICK_STREAMS if quick else STREAMS
    document_tokens = QUICK_DOCUMENT_TOKENS if quick else DOCUMENT_TOKENS
    engine = embedded_engine(max_running=max(streams))
    timings = measure_engine(engine, streams, document_tokens)
    dtype = str(engine.model.dtype)
    del engine  # the others need memory, too
    formats = {dtype: TOKENS / timing.median_seconds for dtype, timing in measure_formats(document_tokens).items()}
    timings[SERVER] = measure_server((1, max(streams)), document_tokens)
    found = rates(timings)
    name = "streams_quick" if quick else "streams"
    judged = [{**asdict(bar), "met": bar.met} for bar in bars(found, formats)]
    record = {"dtype": dtype, "document_tokens": document_tokens, "timings": timings, "tokens_a_second": found}
    record["tokens_a_second_by_format"] = formats
    save(name, {**record, "bars": judged})
    show(name, found, formats)


if __name__ == "__main__":
    main()
