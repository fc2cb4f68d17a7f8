"""The embedded text model in float16, the format for GPUs, against float32: as much as a CPU can show of it."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from reformer_core import Engine, ReformerModel, SamplingParams, embedded_model_path, load_model, load_tokenizer
from reformer_core.lsh_attention import LSHAttention, normalised_keys
from reformer_core.rounds import CombinedRounds
from reformer_core.window_attention import attend
from tests.core.tiny import open_session, random_tokens, read_document, tiny_model, tiny_pool

TEXT = (Path(__file__).parents[2] / "examples/emma.txt").read_bytes()[20_000:26_000]
PROMPTS = (
    "It was a fine morning, and Mr. Knightley",
    "\n\nCHAPTER II\n\n",
    "Emma could not but ",
    '"My dear Harriet," said ',
    "The party from Highbury",
)


@cache
def model(dtype: str) -> ReformerModel:
    return load_model(embedded_model_path(), device="cpu", dtype=dtype)


def encode(text: bytes) -> torch.Tensor:
    return torch.as_tensor(load_tokenizer(embedded_model_path()).encode(text))


@cache
def logits_of_both() -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Logits in float32 and in float16, and how many of each layer's buckets agree.

    With the buckets of float32: a close decision that falls the other way is no error of arithmetic.
    """
    token_ids, hash_exactly = encode(TEXT), LSHAttention.hash
    exact_buckets: list[torch.Tensor] = []
    agreeing: list[float] = []

    def record(self: LSHAttention, query_key: torch.Tensor) -> torch.Tensor:
        exact_buckets.append(hash_exactly(self, query_key))
        return exact_buckets[-1]

    def replay(self: LSHAttention, query_key: torch.Tensor) -> torch.Tensor:
        exact = exact_buckets[len(agreeing)]
        agreeing.append(float((hash_exactly(self, query_key) == exact).float().mean()))
        return exact

    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(LSHAttention, "hash", record)
        exact = model("float32")(token_ids)
        patch.setattr(LSHAttention, "hash", replay)
        half = model("float16")(token_ids)
    assert len(agreeing) == len(exact_buckets) > 0
    return exact, half, agreeing


def test_logits() -> None:
    exact, half, agreeing = logits_of_both()
    assert float((half - exact).abs().max()) < 2e-2
    assert min(agreeing) > 0.995


def test_greedy_text() -> None:
    texts = [_continuations(model(dtype)) for dtype in ("float32", "float16")]
    same = [exact == half for exact, half in zip(*texts, strict=True)]
    assert sum(same) >= 3, texts


def _continuations(model: ReformerModel) -> list[str]:
    """What follows each prompt after the text."""
    engine = Engine(model, load_tokenizer(embedded_model_path()), memory_bytes=2**30)
    document = engine.prefill(encode(TEXT))
    greedy = SamplingParams(max_tokens=24, temperature=0.0)
    streams = [engine.generate(document, encode(prompt.encode()), greedy) for prompt in PROMPTS]
    return ["".join(token.text for token in stream) for stream in streams]


# -- what is computed in float32 whatever the weights are; each would overflow or lose its digits in float16


def test_layer_norms() -> None:
    """Of vectors whose squares are no float16 any more."""
    hidden = 1000 * torch.randn(20, 256, generator=torch.Generator().manual_seed(1)).half()
    norm = model("float16").reversible_layers[0].feed_forward.norm
    with torch.inference_mode():
        half = norm(hidden)
        exact = torch.nn.functional.layer_norm(
            hidden.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )
    assert half.dtype is torch.float16
    assert_close(half.float(), exact, rtol=1e-3, atol=1e-3)


def test_normalised_keys() -> None:
    query_key = 1000 * torch.randn(20, 32, generator=torch.Generator().manual_seed(1)).half()
    assert_close(normalised_keys(query_key).float(), normalised_keys(query_key.float()), rtol=1e-3, atol=1e-4)


def test_softmax_and_its_log_sum_exp() -> None:
    """The general kernel, which GPUs take: thousands of small weights add up, and no mask is lost."""
    generator, keys = torch.Generator().manual_seed(1), 4096
    query, key, value = (torch.randn(1, n, 16, generator=generator).half() for n in (3, keys, keys))
    positions = torch.tensor([[keys - 1, keys - 1, 0]]), torch.arange(keys)[None]
    for shared_qk in (False, True):
        out, log_sum_exp = attend(query / 4, key, value, *positions, shared_qk=shared_qk)
        exact = attend(query.float() / 4, key.float(), value.float(), *positions, shared_qk=shared_qk)
        assert (out.dtype, log_sum_exp.dtype) == (torch.float16, torch.float32)
        assert_close((out.float(), log_sum_exp), exact, rtol=2e-3, atol=2e-3)


def test_rounds_are_combined_in_float32() -> None:
    """A hundred rounds: each adds a share that float16 would round away."""
    generator, rounds = torch.Generator().manual_seed(1), 100
    outs, log_sum_exps = torch.randn(rounds, 8, 4, generator=generator), torch.randn(rounds, 8, generator=generator)
    combined = CombinedRounds(torch.empty(8, 4, dtype=torch.float16))
    for out, log_sum_exp in zip(outs.half(), log_sum_exps, strict=True):
        combined.add(torch.arange(8), out, log_sum_exp)
    half, total = combined.finish()
    assert_close(total, log_sum_exps.logsumexp(dim=0), rtol=1e-6, atol=1e-6)
    exact = (log_sum_exps.softmax(dim=0).unsqueeze(-1) * outs).sum(dim=0)
    assert_close(half.float(), exact, rtol=0, atol=0.02)  # the outputs themselves are stored in 16 bits


def test_logits_and_log_probabilities() -> None:
    small = tiny_model(torch.float16)
    token_ids = random_tokens(small, 100)
    with torch.inference_mode():
        assert small(token_ids).dtype is torch.float32
        session = open_session(small, token_ids)
        assert session.table.next_logits.dtype is torch.float32
        document = read_document(small, tiny_pool(small), token_ids)
        expected = small(token_ids)[:-1].log_softmax(dim=-1).gather(-1, token_ids[1:, None]).squeeze(-1)
    assert document.scores is not None
    assert document.scores.dtype is torch.float32
    assert_close(document.scores[1:], expected, rtol=0, atol=0.02)
