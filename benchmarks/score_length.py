"""Seconds and memory to score a text of 1K to 1M tokens: ours, transformers' Reformer, full attention.

    python -m benchmarks.score_length            # some ten minutes
    python -m benchmarks.score_length --quick    # up to 4K tokens

Each length has a process of its own. Ours is `Engine.score` with the embedded text model, its weights and streams in
bfloat16 or in float32; transformers has the same weights and makes one forward pass; the Transformer with full
attention is of the same size. All end with the log-probability of each token. A contender is out once a length would
take it too long, or more memory than is free.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter

import click
import torch

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, embedded_engine, read_tokens
from benchmarks.harness import ChildError, in_child, markdown_table, plot, save
from reformer_core import embedded_model_path, load_config
from reformer_core.head_loss import HEAD_BLOCK_TOKENS
from reformer_core.placement import available_memory, choose_dtype
from reformer_core.slicing import parts

OURS, OURS_EXACT = "reformer-serve, bfloat16", "reformer-serve, float32"
CONTENDERS = (OURS, OURS_EXACT, "transformers, float32", "transformers, bfloat16", "full attention")
LENGTHS, QUICK_LENGTHS = (1024, 4096, 16384, 65536, 262144, 524288, 1048576), (1024, 4096)
LIMIT_SECONDS = 150.0  # a pass that would take longer isn't made
MEASURED_SECONDS = 3.0  # shorter passes are repeated
BAR_TOKENS = 524288
GB = 10**9


@dataclass(frozen=True)
class Scored:
    """One length, scored by one contender."""

    tokens: int
    seconds: float
    """The median pass."""
    passes: int
    peak_rss_bytes: int
    """Of the whole process."""

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds


def measure(contender: str, tokens: int) -> list[float]:
    """Seconds of each pass in this process, a new one."""
    token_ids = read_tokens(NOVEL, tokens)
    score = build(contender, tokens)
    score(token_ids[: min(tokens, 1024)])  # warm-up
    seconds: list[float] = []
    while sum(seconds) < MEASURED_SECONDS:
        began = perf_counter()
        logprobs = score(token_ids)
        seconds.append(perf_counter() - began)
        assert logprobs.shape == (tokens,)
        assert logprobs[1:].isfinite().all()
    return seconds


def build(contender: str, tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What scores token ids, int64 [n], up to so many -> float32 [n], nan first."""
    if contender in (OURS, OURS_EXACT):
        return embedded_engine(max_running=1, dtype=contender.removeprefix("reformer-serve, ")).score
    # The peers' modules only here, so that they don't count as our memory.
    from benchmarks.peers import full_attention_model, load_transformers

    if contender == "full attention":
        vocab_size = load_config(embedded_model_path()).vocab_size
        model = full_attention_model(vocab_size, tokens, choose_dtype("auto", torch.device("cpu")))
        return lambda token_ids: logprobs_of(model(token_ids[None])[0], token_ids)
    peer = load_transformers(embedded_model_path(), getattr(torch, contender.removeprefix("transformers, ")))
    return lambda token_ids: logprobs_of(peer(input_ids=token_ids[None], use_cache=False).logits[0], token_ids)


@torch.inference_mode()
def logprobs_of(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token, from the logits [n, vocab] of the token after each -> float32 [n], nan first."""
    scores = torch.full((len(token_ids),), torch.nan)
    for part in parts(len(token_ids) - 1, HEAD_BLOCK_TOKENS):  # in blocks, for the logits are large enough once
        after = slice(part.start + 1, part.stop + 1)
        targets = token_ids[after].unsqueeze(-1)
        scores[after] = logits[part].float().log_softmax(dim=-1).gather(-1, targets).squeeze(-1)
    return scores


def run(contender: str, lengths: Sequence[int], limit_bytes: int, stopped: dict[str, str]) -> Iterator[Scored]:
    """Ever longer texts; leaves in `stopped` why there wasn't a longer one."""
    before: Scored | None = None
    exponent = 1.0  # of the length, by the last two
    for tokens in lengths:
        expected = before.seconds * (tokens / before.tokens) ** exponent if before else 0.0
        if expected > LIMIT_SECONDS:
            stopped[contender] = f"{tokens:,} tokens would take some {expected:,.0f} s"
            return
        try:
            child = in_child(measure, contender, tokens, limit_bytes=limit_bytes, timeout_seconds=4 * LIMIT_SECONDS)
        except ChildError as error:
            stopped[contender] = f"{tokens:,} tokens: {str(error).strip().splitlines()[-1]}"
            return
        scored = Scored(tokens, statistics.median(child.value), len(child.value), child.peak_rss_bytes)
        if before is not None:
            exponent = max(1.0, math.log(scored.seconds / before.seconds) / math.log(tokens / before.tokens))
        before = scored
        yield scored


def bars(results: Mapping[str, Sequence[Scored]]) -> list[Bar]:
    """Of design and issue; a peer that can't score so long a text is compared at the longest one that it can."""
    ours = [scored for scored in results[OURS] if scored.tokens == BAR_TOKENS]
    theirs = [scored for name, all_ in results.items() if name.startswith("transformers") for scored in all_]
    if not ours or not theirs:
        return []
    longest = max(scored.tokens for scored in theirs if scored.tokens <= BAR_TOKENS)
    best = max(scored.tokens_a_second for scored in theirs if scored.tokens == longest)
    what = f"tokens/s at {BAR_TOKENS:,} tokens ÷ transformers' best at {longest:,}"
    return [
        Bar(what, ours[0].tokens_a_second / best, least=3),
        Bar(f"peak RSS at {BAR_TOKENS:,} tokens, GB", ours[0].peak_rss_bytes / GB, most=1.6),
    ]


def show(name: str, results: Mapping[str, Sequence[Scored]], stopped: Mapping[str, str]) -> None:
    """Prints the tables and draws the plot."""
    by_length = {who: {scored.tokens: scored for scored in all_} for who, all_ in results.items()}
    rows = []
    for tokens in by_length[OURS]:
        cells = []
        for of_one in by_length.values():
            scored = of_one.get(tokens)
            cells.append(f"{scored.seconds:.3g} s, {scored.peak_rss_bytes / GB:.2f} GB" if scored else "–")
        rows.append([f"{tokens:,}", *cells])
    print(markdown_table(["tokens", *by_length], rows))
    for who, reason in stopped.items():
        print(f"{who}: {reason}")
    print(bar_table(bars(results)))
    with plot(name, panels=2) as (left, right):
        for who, of_one in by_length.items():
            left.loglog(list(of_one), [scored.seconds for scored in of_one.values()], marker="o", label=who)
            right.loglog(list(of_one), [scored.peak_rss_bytes / GB for scored in of_one.values()], marker="o")
        left.set(xlabel="tokens", ylabel="seconds", title="Scoring a text")
        right.set(xlabel="tokens", ylabel="GB", title="Peak memory of the process")
        left.legend()


@click.command()
@click.option("--quick", is_flag=True, help="Short texts only.")
def main(quick: bool) -> None:
    """Measures; writes benchmarks/results/score_length.json and docs/images/score_length.png."""
    results: dict[str, list[Scored]] = {}
    stopped: dict[str, str] = {}
    limit_bytes = available_memory(torch.device("cpu"))
    for contender in CONTENDERS:
        results[contender] = []
        for scored in run(contender, QUICK_LENGTHS if quick else LENGTHS, limit_bytes, stopped):
            results[contender].append(scored)
            print(f"{contender}, {scored.tokens:,} tokens: {scored.seconds:.3g} s", flush=True)
    name = "score_length_quick" if quick else "score_length"
    record = {who: [asdict(scored) for scored in all_] for who, all_ in results.items()}
    judged = [{**asdict(bar), "met": bar.met} for bar in bars(results)]
    save(name, {"limit_bytes": limit_bytes, "contenders": record, "stopped": stopped, "bars": judged})
    show(name, results, stopped)


if __name__ == "__main__":
    main()
