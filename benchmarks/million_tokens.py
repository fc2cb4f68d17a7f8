"""A million tokens through a 148M-parameter model: scored by a server, asked for with the SDK.

    python -m benchmarks.million_tokens [--text FILE …] [--tokens 1048576]
    python -m benchmarks.million_tokens --quick    # a small model and 16,384 tokens

The model has random weights, which costs what trained ones do: twelve layers [local, local, lsh, local] × 3 over bytes,
as google/reformer-enwik8 is large, in bfloat16. The text is the novel in `examples`, repeated, or the given files. What
the server says of its progress, and its memory then, goes to `benchmarks/results/million_tokens.log`.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL
from benchmarks.harness import RESULTS, markdown_table, save
from benchmarks.serving import ServerProcess, serving
from benchmarks.texts import read_bytes
from reformer_client import Client, Progress
from reformer_core import MemoryPlan, ReformerConfig, ReformerModel, save_model
from reformer_core.tokenizers import ByteTokenizer

NAME = "million_tokens"
DTYPE = torch.bfloat16
QUICK_TOKENS = 16_384
GB = 10**9
MOST_BYTES = 16 * GB


def configuration(*, quick: bool = False) -> ReformerConfig:
    """Of the model: 148 million parameters, and positions for a million tokens; the quick one is a small one."""
    return ReformerConfig(
        attn_layers=("local", "local", "lsh", "local") * (1 if quick else 3),
        hidden_size=64 if quick else 1024,
        feed_forward_size=128 if quick else 4096,
        num_attention_heads=2 if quick else 8,
        attention_head_size=32 if quick else 128,
        vocab_size=ByteTokenizer.vocab_size,
        eos_token_id=None,
        pad_token_id=ByteTokenizer.pad_id,
        local_attn_chunk_length=128,
        lsh_attn_chunk_length=256,
        num_hashes=4,
        num_buckets=None,  # as many as a million tokens need
        hash_seed=0,
        axial_pos_shape=(1024, 1024),
        axial_pos_embds_dim=(16, 48) if quick else (256, 768),
        max_position_embeddings=1024 * 1024,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description="Scores a million tokens.")
    parser.add_argument("--text", type=Path, nargs="+", default=[NOVEL], help="files in UTF-8; repeated if too short")
    parser.add_argument("--tokens", type=int, help="how many bytes of them; default: as many as the model can read")
    parser.add_argument("--quick", action="store_true", help="a small model and few tokens, to see that all of it runs")
    options = parser.parse_args(arguments)
    config = configuration(quick=options.quick)
    tokens = options.tokens or (QUICK_TOKENS if options.quick else config.max_tokens)
    name = f"{NAME}_quick" if options.quick else NAME
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_checkpoint(config, Path(folder))
        memory = ("--memory", MOST_BYTES, "--max-text", tokens, "--max-running", 1)
        with (
            serving("--model", folder, "--dtype", "bfloat16", *memory) as server,
            (RESULTS / f"{name}.log").open("w", encoding="utf-8") as log,
        ):
            result = scored(server, read_bytes(options.text, tokens), log)
    plan = MemoryPlan(config, DTYPE, tokens)
    result |= {
        "parameters": parameters,
        "planned_bytes": planned_bytes(plan),
        "plan": {"weights": plan.weights_bytes, "pages": plan.score_page_bytes, "workspace": plan.workspace_bytes},
        "texts": [text.name for text in options.text],
    }
    save(name, {**result, "bars": [{**asdict(bar), "met": bar.met} for bar in bars(result)]})
    print(tables(result))


def write_checkpoint(config: ReformerConfig, directory: Path) -> int:
    """A model with seeded random weights, in float32; returns how many it has."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ReformerModel(config).eval()
    save_model(model, directory)
    return model.num_parameters


def scored(server: ServerProcess, text: bytes, log: TextIO) -> dict[str, Any]:
    """Has the server score the text; the log gets a line for each per cent, with the server's memory then."""
    told = -1

    def tell(progress: Progress) -> None:
        nonlocal told
        if int(100 * progress.fraction) > told:
            told = int(100 * progress.fraction)
            memory = server.peak_rss_bytes / GB
            log.write(f"{progress.elapsed_seconds:8.1f} s  {told:3} %  peak so far {memory:6.3f} GB\n")
            log.flush()

    with Client(server.address) as client:
        model = client.model()
        log.write(f"{model.parameters:,} parameters in {model.dtype} on {model.device}, {len(text):,} tokens\n")
        loaded = server.peak_rss_bytes
        began = time.monotonic()
        scores = client.score(text, on_progress=tell)
        seconds = time.monotonic() - began
    log.write(f"{seconds:8.1f} s  scored: {scores.tokens:,} tokens, {scores.bits_per_byte:.3f} bits per byte\n")
    return {
        "tokens": scores.tokens,
        "seconds": seconds,
        "peak_rss_bytes": server.peak_rss_bytes,
        "loaded_rss_bytes": loaded,
        "bits_per_byte": scores.bits_per_byte,
    }


def planned_bytes(plan: MemoryPlan) -> int:
    """What scoring takes by the plan's formulas, libraries and Python aside."""
    return plan.weights_bytes + plan.score_page_bytes + plan.workspace_bytes


def bars(result: dict[str, Any]) -> list[Bar]:
    """What is promised."""
    return [Bar("peak RSS of the server, GB", result["peak_rss_bytes"] / GB, most=MOST_BYTES / GB)]


def tables(result: dict[str, Any]) -> str:
    """What was measured, and the bar."""
    header = ["tokens", "parameters", "seconds", "tokens a second", "peak RSS", "planned"]
    row = [
        f"{result['tokens']:,}",
        f"{result['parameters']:,}",
        f"{result['seconds']:,.0f}",
        f"{result['tokens'] / result['seconds']:,.0f}",
        f"{result['peak_rss_bytes'] / GB:.2f} GB",
        f"{result['planned_bytes'] / GB:.2f} GB",
    ]
    return f"{markdown_table(header, [row])}\n\n{bar_table(bars(result))}"


if __name__ == "__main__":
    main()
