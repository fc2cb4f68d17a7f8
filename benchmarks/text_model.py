"""How well a text model predicts novels that it hasn't seen, and whether it uses their length.

    python -m benchmarks.text_model MODEL_DIR --held-out EMMA.txt PERSUASION.txt
        [--training BOOK.txt … --kenlm FOLDER] [--peer FOLDER]

The 5-gram model needs KenLM's programs (see `ngram.py`) and the training texts; the Transformer is trained by
`train_peer.py`. Each is left out where its option is.
"""

import argparse
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention_maps import BANDS as DISTANCES
from benchmarks.attention_maps import ROUNDS, HeadReport, head_reports
from benchmarks.bits import Text, bands_of, bits_of, bits_per_byte, difference, read_text
from benchmarks.contexts import logits_at, lsh_layers, silenced, windowed_log_probabilities
from benchmarks.harness import markdown_table, plot, save
from benchmarks.ngram import ngram_log_probabilities
from benchmarks.train_peer import load_peer
from reformer_core import Engine, ReformerModel, load_model
from reformer_core.tokenizers import Tokenizer, load_tokenizer

WINDOW_TOKENS = 1024
WHOLE, WINDOW, WITHOUT_LSH = "whole text", f"last {WINDOW_TOKENS:,} tokens", "without LSH layers"
MEMORY_BYTES = 3 << 30
HEAD_TOKENS, HEAD_QUERIES = 16384, 256  # of the text whose attention is looked at

Bits = list[torch.Tensor]  # float64 [n] a text


def contexts(model: ReformerModel, texts: Sequence[Text]) -> dict[str, Bits]:
    """Bits of each token, by how much of the model and of the text before it was used."""
    found = {WHOLE: whole(model, texts)}
    print(f"{WHOLE}: {bits_per_byte(texts, found[WHOLE]):.4f}", flush=True)
    vocab_size, layers = model.config.vocab_size, list(lsh_layers(model))
    found[WINDOW] = [
        bits_of(
            windowed_log_probabilities(lambda rows, at: logits_at(model, rows, at), text.token_ids, WINDOW_TOKENS),
            vocab_size,
        )
        for text in texts
    ]
    ablations = {WITHOUT_LSH: layers} | {f"without LSH layer {layer}": [layer] for layer in layers}
    for name, off in ablations.items():
        with silenced(model, off):
            found[name] = whole(model, texts)
        print(f"{name}: {bits_per_byte(texts, found[name]):.4f}", flush=True)
    return found


def whole(model: ReformerModel, texts: Sequence[Text]) -> Bits:
    """Bits of each token, each text read whole, as a server reads it."""
    engine = Engine(model, memory_bytes=MEMORY_BYTES, max_running=1)
    return [bits_of(engine.score(text.token_ids), model.config.vocab_size) for text in texts]


def contenders(options: argparse.Namespace, tokenizer: Tokenizer, texts: Sequence[Text]) -> dict[str, Bits]:
    """Bits of each token by the other models that were asked for."""
    found: dict[str, Bits] = {}
    if options.kenlm:
        training = [tokenizer.encode(path.read_bytes()) for path in options.training]
        scores = ngram_log_probabilities(
            options.kenlm, training, tokenizer.vocab_size, [text.token_ids for text in texts]
        )
        found["5-gram"] = [bits_of(each, tokenizer.vocab_size) for each in scores]
    if options.peer:
        peer, _ = load_peer(options.peer)
        window = peer.config.window_tokens
        found["Transformer"] = [
            bits_of(
                windowed_log_probabilities(lambda rows, _: peer(rows), text.token_ids, window), tokenizer.vocab_size
            )
            for text in texts
        ]
    return found


def quality_table(texts: Sequence[Text], models: Mapping[str, Bits]) -> str:
    """Bits per byte of each text and of all."""
    rows: list[list[object]] = [["xz -9", *map(_xz, texts), "–"]]
    for name, bits in models.items():
        each = [bits_per_byte([text], [own]) for text, own in zip(texts, bits, strict=True)]
        rows.append([name, *(f"{value:.3f}" for value in each), f"{bits_per_byte(texts, bits):.3f}"])
    return markdown_table(["bits per byte", *(text.name for text in texts), "both"], rows)


def context_table(texts: Sequence[Text], found: Mapping[str, Bits]) -> str:
    """Bits per byte of the whole text, by position, and what a smaller context adds, with its 95 % interval."""
    bands = bands_of(texts)
    rows: list[list[object]] = []
    for name, bits in found.items():
        cells: list[object] = [name]
        for band in bands.values():
            base = bits_per_byte(texts, found[WHOLE], band)
            if name == WHOLE:
                cells.append(f"{base:.3f}")
                continue
            more = difference(texts, bits, found[WHOLE], band)
            percent = (100 * value / base for value in (more.bits, more.low, more.high))
            cells.append("{:+.2f} % ({:+.2f} to {:+.2f})".format(*percent))
        rows.append(cells)
    return markdown_table(["context", *bands], rows)


def heads_tables(reports: Sequence[HeadReport]) -> str:
    """What the heads look at, and what of it the hash windows catch."""
    far = [f"{low:,}–{high - 1:,}" for low, high in pairwise(DISTANCES)]
    names = [f"layer {report.layer}, head {report.head}" for report in reports]
    shares = [
        [name, *map(_percent, report.lsh_by_distance[: len(far)]), _percent(report.same_token),
         _percent(report.after_same_token), _percent(report.same_token_chance)]
        for name, report in zip(names, reports, strict=True)
    ]  # fmt: skip
    caught = [
        [name, f"{report.perplexity:,.0f}", *map(_percent, report.caught.values()),
         _percent(report.caught_by_chance[ROUNDS[-1]]), _percent(report.largest_bucket)]
        for name, report in zip(names, reports, strict=True)
    ]  # fmt: skip
    rounds = [f"{count} rounds catch" if count > 1 else "1 round catches" for count in ROUNDS]
    return "\n\n".join([
        markdown_table(["attention to", *far, "same token", "after same token", "by chance"], shares),
        markdown_table(["exact attention", "spread over", *rounds, "8 by chance", "fullest bucket"], caught),
    ])  # fmt: skip


def draw(texts: Sequence[Text], found: Mapping[str, Bits]) -> None:
    """The curves by position, and what less context costs."""
    edges = torch.logspace(8, 18.4, 21, base=2).long().tolist()
    bins = [(0, edges[0]), *pairwise(edges)]
    bins = [bin for bin in bins if bin[0] < max(len(text.token_ids) for text in texts)]
    middles = [(max(low, 64) * high) ** 0.5 for low, high in bins]
    ticks = [2**power for power in range(8, 20, 2) if 2**power < bins[-1][1]]
    with plot("text_model", panels=2) as (levels, costs):
        for name, colour in {WHOLE: "C0", WINDOW: "C1", WITHOUT_LSH: "C2"}.items():
            style = "--" if name == WINDOW else "-"  # it may lie on the first one
            levels.plot(middles, [bits_per_byte(texts, found[name], bin) for bin in bins], colour + style, label=name)
            if name != WHOLE:
                costs_by_bin = [difference(texts, found[name], found[WHOLE], bin) for bin in bins]
                costs.plot(middles, [cost.bits for cost in costs_by_bin], colour, label=name)
                low, high = [cost.low for cost in costs_by_bin], [cost.high for cost in costs_by_bin]
                costs.fill_between(middles, low, high, color=colour, alpha=0.2)
        for axes, title in ((levels, "bits per byte"), (costs, "more bits per byte than with the whole text")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick / 1024:g}K" for tick in ticks])
            axes.set(xlabel="position (tokens)", title=title)
            axes.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Bits per byte of held-out novels, and what the context gives.")
    parser.add_argument("model", help="model folder")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="UTF-8 files to predict")
    parser.add_argument("--training", type=Path, nargs="+", default=[], help="what the 5-gram model learns from")
    parser.add_argument("--kenlm", type=Path, help="folder with KenLM's lmplz and query")
    parser.add_argument("--peer", type=Path, help="folder of a Transformer that train_peer.py trained")
    parser.add_argument("--max-tokens", type=int, help="only the beginning of each text")
    options = parser.parse_args(arguments)
    if options.kenlm and not options.training:
        parser.error("--kenlm needs the texts to learn from: --training BOOK.txt …")
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    texts = [read_text(path.name, path.read_bytes(), tokenizer, options.max_tokens) for path in options.held_out]
    found = contexts(model, texts)
    models = contenders(options, tokenizer, texts) | {"Reformer": found[WHOLE]}
    crop = texts[0].token_ids[:HEAD_TOKENS]
    crop = crop[: len(crop) // model.config.chunk_multiple * model.config.chunk_multiple]
    reports = head_reports(model, crop, HEAD_QUERIES, torch.Generator().manual_seed(0))
    draw(texts, found)
    for table in (quality_table(texts, models), context_table(texts, found), heads_tables(reports)):
        print(f"\n{table}")
    save("text_model", _record(texts, models, found, reports))


def _record(
    texts: Sequence[Text], models: Mapping[str, Bits], found: Mapping[str, Bits], reports: Sequence[HeadReport]
) -> dict[str, Any]:
    quality: dict[str, dict[str, float]] = {
        name: {text.name: bits_per_byte([text], [own]) for text, own in zip(texts, bits, strict=True)}
        for name, bits in models.items()
    }
    bands = bands_of(texts)
    return {
        "tokens": {text.name: len(text.token_ids) for text in texts},
        "bytes": {text.name: len(text.content) for text in texts},
        "bits_per_byte": {"xz -9": {text.name: float(_xz(text)) for text in texts}, **quality},
        "by_position": {
            name: {label: bits_per_byte(texts, bits, band) for label, band in bands.items()}
            for name, bits in found.items()
        },
        "cost_of_less_context": {
            name: {label: asdict(difference(texts, bits, found[WHOLE], band)) for label, band in bands.items()}
            for name, bits in found.items()
            if name != WHOLE
        },
        "heads": [asdict(report) for report in reports],
    }


def _xz(text: Text) -> str:
    return f"{8 * len(lzma.compress(text.content, preset=9)) / len(text.content):.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
