"""How long a token takes after contexts of 4K to 520K tokens: ours, transformers' Reformer, full attention.

    python -m benchmarks.decode_context            # some minutes, and 12 GB of memory
    python -m benchmarks.decode_context --quick    # short contexts, for a look

One stream of the embedded text model, through the engine, sampling included, in float16, the fastest for one stream.
Each peer takes turns with ours on the same context. transformers has the same weights; its cache is computed by our
layers (`peers.transformers_cache`), since its own pass over 520K tokens needs more memory than most machines have. What
the keys and values of full attention are makes no difference to its speed, so they are random.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import click
import torch

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, embedded_engine, read_tokens, token_seconds
from benchmarks.harness import Timing, in_turns, markdown_table, plot, save
from benchmarks.peers import (
    Step,
    full_attention_model,
    full_attention_step,
    load_transformers,
    transformers_cache,
    transformers_step,
)
from benchmarks.transformer_peer import KeyValueCache
from reformer_core import Document, Engine, embedded_model_path, load_config, load_model
from reformer_core.placement import choose_dtype

CONTEXTS, QUICK_CONTEXTS = (4096, 16384, 65536, 262144, 520192), (4096, 16384)
PEER_CONTEXTS = (4096, 65536, 520192)
TURNS, TOKENS, PEER_TURNS, PEER_TOKENS = 7, 48, 3, 2
SPARE_TOKENS = (PEER_TURNS + 1) * PEER_TOKENS + 1  # that a peer appends
MERGING_TOKENS = 2100  # long enough for two merges of the tail
FULL_ATTENTION = "full attention"


@dataclass(frozen=True)
class Comparison:
    """A peer and ours on one context."""

    peer: str
    context: int
    ours: Timing
    """Of a token."""
    theirs: Timing
    logit_difference: float | None
    """The largest, after one token; None: the peer has other weights."""

    @property
    def ratio(self) -> float:
        """How many times ours is faster."""
        return self.theirs.median_seconds / self.ours.median_seconds


def measure_contexts(engine: Engine, documents: dict[int, Document]) -> dict[int, Timing]:
    """Ours, all contexts in turns."""
    contenders = {str(context): partial(token_seconds, engine, each, TOKENS) for context, each in documents.items()}
    return {int(context): timing for context, timing in in_turns(contenders, repeats=TURNS).items()}


def measure_merging(engine: Engine, documents: dict[int, Document]) -> dict[int, float]:
    """Mean seconds a token of a stream so long that its tail is merged twice, on the shortest and the longest."""
    ends = (min(documents), max(documents))
    return {
        context: sum(token_seconds(engine, documents[context], MERGING_TOKENS)) / MERGING_TOKENS for context in ends
    }


def peers(token_ids: torch.Tensor, full_attention_dtype: torch.dtype) -> dict[str, Callable[[], Step]]:
    """What builds each peer, token ids int64 [n] read: one at a time, for each takes gigabytes."""
    found: dict[str, Callable[[], Step]] = {
        f"transformers, {name}": partial(_transformers, token_ids, getattr(torch, name))
        for name in ("float32", "bfloat16")
    }
    return found | {FULL_ATTENTION: partial(_full_attention, len(token_ids), full_attention_dtype)}


def _transformers(token_ids: torch.Tensor, dtype: torch.dtype) -> Step:
    directory = embedded_model_path()
    cache = transformers_cache(load_model(directory, device="cpu", dtype="float32"), token_ids, dtype)
    return transformers_step(load_transformers(directory, dtype), cache)


def _full_attention(context: int, dtype: torch.dtype) -> Step:
    tokens = context + SPARE_TOKENS
    peer = full_attention_model(load_config(embedded_model_path()).vocab_size, tokens, dtype)
    cache = KeyValueCache(peer.config, tokens, dtype)
    cache.fill(context)
    return full_attention_step(peer, cache)


def compare(engine: Engine, document: Document, peer: str, step: Step, next_ids: Sequence[int]) -> Comparison:
    """A peer in turns with ours; it appends the text's next tokens, ours those that it samples."""
    ids = iter(next_ids)
    difference = None
    first = next(ids)
    logits = step(first)
    if peer != FULL_ATTENTION:
        with engine.open(document) as session:
            difference = (session.extend(torch.tensor([first]))[0] - logits).abs().max().item()
    contenders: dict[str, Callable[[], list[float]]] = {
        "ours": partial(token_seconds, engine, document, TOKENS),
        "theirs": lambda: [_timed(step, next(ids)) for _ in range(PEER_TOKENS)],
    }
    timings = in_turns(contenders, repeats=PEER_TURNS)
    return Comparison(peer, document.tokens, timings["ours"], timings["theirs"], difference)


def _timed(step: Step, token_id: int) -> float:
    began = perf_counter()
    step(token_id)
    return perf_counter() - began


def bars(ours: dict[int, Timing], comparisons: Sequence[Comparison]) -> list[Bar]:
    """Of design and issue."""
    growth = ours[max(ours)].median_seconds / ours[min(ours)].median_seconds
    found = [Bar(f"a token at {max(ours):,} ÷ at {min(ours):,} tokens of context", growth, most=1.15)]
    for context, least in ((65536, 40), (520192, 300)):
        ratios = [each.ratio for each in comparisons if each.context == context and each.peer != FULL_ATTENTION]
        if ratios:
            what = f"tokens/s ÷ transformers' in its faster dtype, {context:,} tokens of context"
            found.append(Bar(what, min(ratios), least=least))
    return found


def show(
    name: str, ours: dict[int, Timing], merging: dict[int, float], comparisons: Sequence[Comparison], found: list[Bar]
) -> None:
    """Prints the tables and draws the plot."""
    peer_names = list(dict.fromkeys(each.peer for each in comparisons))
    rows = []
    for context, timing in ours.items():
        spread = f"{_ms(timing.median_seconds)} ({_ms(timing.min_seconds)}–{_ms(timing.max_seconds)})"
        cells = []
        for peer in peer_names:
            at = [each for each in comparisons if (each.peer, each.context) == (peer, context)]
            cells.append(f"{_ms(at[0].theirs.median_seconds)}, {at[0].ratio:.0f} ×" if at else "–")
        rows.append([f"{context:,}", spread, _ms(merging[context]) if context in merging else "–", *cells])
    print(markdown_table(["context", "ms a token (range)", "mean with merges", *peer_names], rows))
    print(bar_table(found))
    with plot(name) as (axes,):
        points = {"reformer-serve": {context: timing.median_seconds for context, timing in ours.items()}}
        for each in comparisons:
            points.setdefault(each.peer, {})[each.context] = each.theirs.median_seconds
        for label, line in points.items():
            axes.loglog(list(line), [1e3 * seconds for seconds in line.values()], marker="o", label=label)
        axes.set(xlabel="tokens of context", ylabel="ms a token", title="Decoding one token")
        axes.legend()


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


@click.command()
@click.option("--quick", is_flag=True, help="Short contexts only.")
def main(quick: bool) -> None:
    """Measures; writes benchmarks/results/decode_context.json and docs/images/decode_context.png."""
    contexts = QUICK_CONTEXTS if quick else CONTEXTS
    engine = embedded_engine(dtype="float16", max_running=1)
    token_ids = read_tokens(NOVEL, max(contexts) + SPARE_TOKENS)
    documents = {context: engine.prefill(token_ids[:context]) for context in contexts}
    ours = measure_contexts(engine, documents)
    merging = measure_merging(engine, documents)
    comparisons = []
    full_attention_dtype = choose_dtype("auto", engine.model.device)
    for context in contexts if quick else PEER_CONTEXTS:
        next_ids = token_ids[context : context + SPARE_TOKENS].tolist()
        for peer, built in peers(token_ids[:context], full_attention_dtype).items():
            comparisons.append(compare(engine, documents[context], peer, built(), next_ids))
            print(peer, f"{context:,}", f"{comparisons[-1].ratio:.1f} ×", flush=True)
    name = "decode_context_quick" if quick else "decode_context"
    found = bars(ours, comparisons)
    record: dict[str, Any] = {"dtype": str(engine.model.dtype), "ours": ours, "mean_seconds_with_merges": merging}
    record["peers"] = [{**asdict(each), "ratio": each.ratio} for each in comparisons]
    save(name, {**record, "bars": [{**asdict(bar), "met": bar.met} for bar in found]})
    show(name, ours, merging, comparisons, found)


if __name__ == "__main__":
    main()
