"""The batched sampler: equal to a naive one, the same tokens in any company, the right frequencies."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reformer_core import SamplingParams
from reformer_core.sampling import BatchSampling, Sampled, sample, uniform

CPU = torch.device("cpu")
WORD = 2**64 - 1


def run(
    logits: torch.Tensor, params: list[SamplingParams], steps: list[int] | None = None, seen: Any = None, top: int = 0
) -> Sampled:
    seen = torch.zeros(logits.shape, dtype=torch.bool) if seen is None else torch.as_tensor(seen)
    batch = BatchSampling.of(params, CPU)
    return sample(logits, batch, torch.tensor(steps or [0] * len(params)), seen, top)


def ids(*args: Any, **options: Any) -> list[int]:
    result: list[int] = run(*args, **options).ids.tolist()
    return result


def naive_uniform(seed: int, step: int) -> float:
    """In Python's unbounded integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
        return x ^ (x >> 31)

    return (mix((mix(seed) + step * 0x9E3779B97F4A7C15) & WORD) >> 11) / 2**53


def single(value: float) -> float:
    """As float32."""
    return float(torch.tensor(value, dtype=torch.float32))


def naive_weights(logits: list[float], params: SamplingParams, seen: list[bool]) -> list[float]:
    """Unnormalised probabilities after penalty, temperature and filters, one after the other."""
    penalty, temperature = single(params.repetition_penalty), single(params.temperature)
    scores = list(logits)
    for token, was_seen in enumerate(seen):
        if was_seen:
            scores[token] = single(scores[token] / penalty if scores[token] > 0 else scores[token] * penalty)
    ranking = sorted(range(len(scores)), key=lambda token: -scores[token])  # stable: smaller ids first
    if temperature == 0:
        return [float(token == ranking[0]) for token in range(len(scores))]
    kept = ranking[: params.top_k or None]
    weights = {token: math.exp((scores[token] - scores[ranking[0]]) / temperature) for token in kept}
    if params.top_p < 1:
        total, reached, nucleus = sum(weights.values()), 0.0, []
        for token in kept:
            if nucleus and reached >= single(params.top_p) * total:
                break
            nucleus.append(token)
            reached += weights[token]
        kept = nucleus
    kept = [token for token in kept if weights[token] >= single(params.min_p)]
    return [weights[token] if token in kept else 0.0 for token in range(len(scores))]


def naive_choice(weights: list[float], number: float) -> tuple[int, float]:
    """The token, and how far the decision was from falling another way."""
    reached = list(itertools.accumulate(weights))
    target = number * reached[-1]
    token = next(token for token, bound in enumerate(reached) if bound > target)
    return token, min(abs(bound - target) for bound in reached) / reached[-1]


seeds = st.integers(0, WORD)
parameters = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.05, 5)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.2, 5)),
    top_k=st.integers(0, 12),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    seed=seeds,
)


@given(st.lists(st.tuples(parameters, st.integers(0, 1000)), min_size=1, max_size=5), st.integers(0, 2**32))
def test_equals_a_naive_sampler(sessions: list[tuple[SamplingParams, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(sessions), 10, generator=generator) * 3
    seen = torch.rand(len(sessions), 10, generator=generator) < 0.3
    chosen = ids(logits, [params for params, _ in sessions], [step for _, step in sessions], seen)
    for row, (params, step) in enumerate(sessions):
        weights = naive_weights(logits[row].tolist(), params, seen[row].tolist())
        expected, margin = naive_choice(weights, naive_uniform(params.seed, step))
        assert weights[chosen[row]] > 0
        assert chosen[row] == expected or margin < 1e-9


@given(seeds, st.integers(0, 2**40))
def test_random_numbers_are_splitmix64(seed: int, step: int) -> None:
    as_signed = seed - 2**64 if seed >= 2**63 else seed
    assert uniform(torch.tensor(as_signed), torch.tensor(step)).item() == naive_uniform(seed, step)


def test_random_numbers_are_uniform_and_independent() -> None:
    steps = torch.arange(4000)
    numbers = uniform(torch.arange(8).unsqueeze(1), steps)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers.float().flatten(), bins=20, min=0, max=1)
    assert float(((counts - 1600) ** 2 / 1600).sum()) < 45  # chi-squared with 19 degrees of freedom: p = 0.0007
    correlations = torch.corrcoef(torch.cat([numbers, numbers.roll(1, 1)]))  # neighbouring seeds, neighbouring steps
    assert float((correlations - torch.eye(16)).abs().max()) < 0.07


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 2.0, "top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"temperature": 1.3, "repetition_penalty": 1.5, "top_k": 7, "top_p": 0.95, "min_p": 0.02},
    ],
)
@pytest.mark.parametrize("by", ["seed", "step"])
def test_frequencies_are_the_probabilities(params: dict[str, Any], by: str) -> None:
    count = 20_000
    row = torch.randn(10, generator=torch.Generator().manual_seed(1)) * 1.5
    seen = torch.arange(10) % 3 == 0
    sessions = [SamplingParams(**params, seed=number if by == "seed" else 7) for number in range(count)]
    steps = [3 if by == "seed" else number for number in range(count)]
    chosen = run(row.expand(count, 10), sessions, steps, seen.expand(count, 10)).ids
    weights = torch.tensor(naive_weights(row.tolist(), sessions[0], seen.tolist()))
    expected = weights / weights.sum() * count
    found = torch.bincount(chosen, minlength=10)
    assert found[weights == 0].sum() == 0
    likely = weights > 0
    chi_squared = float(((found - expected)[likely] ** 2 / expected[likely]).sum())
    assert chi_squared < 30  # at most 9 degrees of freedom: p < 0.0005


def test_a_session_gets_the_same_tokens_in_any_company() -> None:
    generator = torch.Generator().manual_seed(3)
    choices = [{}, {"temperature": 0.0}, {"top_k": 4}, {"top_p": 0.5}, {"min_p": 0.1}, {"repetition_penalty": 2.0}]
    sessions = [SamplingParams(**values, seed=2**63 + seed) for seed, values in enumerate(choices * 4)]
    logits = torch.randn(24, 300, generator=generator) * 2
    seen = torch.rand(24, 300, generator=generator) < 0.2
    steps = list(range(24))
    together = ids(logits, sessions, steps, seen)
    alone = [ids(logits[row : row + 1], [sessions[row]], [row], seen[row : row + 1])[0] for row in range(24)]
    assert together == alone
    order = torch.randperm(24, generator=generator).tolist()
    shuffled = ids(logits[order], [sessions[row] for row in order], [steps[row] for row in order], seen[order])
    assert shuffled == [together[row] for row in order]


def test_greedy_takes_the_first_of_the_most_likely() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert ids(logits, [SamplingParams(temperature=0)]) == [1]
    assert ids(logits, [SamplingParams(temperature=0, repetition_penalty=1.2)], seen=[[False, True, False, False]]) == [
        2
    ]


def test_greedy_beside_a_drawing_session_is_greedy() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).expand(2, 50)
    assert ids(logits, [SamplingParams(temperature=0), SamplingParams(temperature=9)])[0] == int(logits[0].argmax())


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 1},
        {"top_p": 1e-30},
        {"top_p": 1e-300},
        {"min_p": 1.0},
        {"temperature": 1e-30},
        {"temperature": 1e-300},
    ],
)
def test_extremes_leave_the_most_likely_token(values: dict[str, Any]) -> None:
    logits = torch.tensor([[0.0, 5.0, 4.9, -3.0]])
    assert {ids(logits, [SamplingParams(seed=seed, **values)])[0] for seed in range(50)} == {1}


@pytest.mark.parametrize(
    "values", [{"top_k": 4}, {"top_k": 10**9}, {"top_k": 2**64}, {"top_p": 1.0}, {"min_p": 0.0}, {"temperature": 1e30}]
)
def test_extremes_leave_every_token(values: dict[str, Any]) -> None:
    logits = torch.tensor([[0.0, 0.2, 0.1, -0.1]])
    assert {ids(logits, [SamplingParams(seed=seed, **values)])[0] for seed in range(200)} == {0, 1, 2, 3}


def test_top_k_of_equals_keeps_the_smaller_ids() -> None:
    assert {ids(torch.zeros(1, 6), [SamplingParams(top_k=2, seed=seed)])[0] for seed in range(50)} == {0, 1}


def test_top_p_is_of_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    kept = {ids(logits, [SamplingParams(top_k=2, top_p=0.6, seed=seed)])[0] for seed in range(100)}
    assert kept == {0, 1}  # 0.4 is 4/7 of what is left, below 0.6; of everything, top_p alone would keep two as well
    kept = {ids(logits, [SamplingParams(top_k=2, top_p=0.5, seed=seed)])[0] for seed in range(100)}
    assert kept == {0}  # 4/7 reaches 0.5; 0.4 alone would not


@pytest.mark.parametrize("penalty", [1e-300, 1e-30, 1e30])
@pytest.mark.parametrize("scale", [1.0, 1e38])
def test_huge_numbers_give_valid_tokens(penalty: float, scale: float) -> None:
    logits = torch.tensor([[-math.inf, -1.0, 0.5, 0.0, 1.0]]) * scale
    logits[:, 3] = 0
    for temperature, seen in itertools.product((0.0, 0.5, 1e30), ([True] * 5, [True, False, True, False, True])):
        params = SamplingParams(temperature=temperature, repetition_penalty=penalty, top_p=0.9)
        assert ids(logits, [params], seen=[seen])[0] != 0


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0]])
    assert {ids(logits, [SamplingParams(temperature=100, seed=seed)])[0] for seed in range(50)} == {1, 3}


def test_logprobs_are_the_models_own() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 20, generator=generator)
    sessions = [
        SamplingParams(temperature=0.3, repetition_penalty=3.0, top_k=3, seed=5),
        SamplingParams(temperature=0),
        SamplingParams(temperature=5),
    ]
    sampled = run(logits, sessions, seen=torch.ones(3, 20, dtype=torch.bool), top=4)
    expected = logits.log_softmax(dim=-1)
    torch.testing.assert_close(sampled.logprobs, expected[range(3), sampled.ids])
    top_ids, top_logprobs = sampled.top
    assert top_ids.tolist() == expected.argsort(dim=-1, descending=True)[:, :4].tolist()
    torch.testing.assert_close(top_logprobs, expected.gather(-1, top_ids))
    assert run(logits, sessions, top=20).top[0].shape == (3, 20)
    assert run(logits[:, :5], sessions, top=20).top[0].shape == (3, 5)
    assert run(logits, sessions).top == ()


@pytest.mark.parametrize("values", [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}])
def test_runs_without_looking_at_a_value(values: dict[str, Any]) -> None:
    """On meta tensors .item(), boolean indexing and tensors left on the CPU raise."""
    meta = torch.device("meta")
    batch = BatchSampling.of([SamplingParams(**values)] * 4, meta)
    seen = torch.zeros(4, 30, dtype=torch.bool, device=meta)
    sampled = sample(torch.zeros(4, 30, device=meta), batch, torch.zeros(4, dtype=torch.long, device=meta), seen, 2)
    assert (sampled.ids.shape, sampled.ids.dtype) == ((4,), torch.int64)
    assert (sampled.logprobs.shape, sampled.logprobs.dtype) == ((4,), torch.float32)
    assert [x.shape for x in sampled.top] == [(4, 2), (4, 2)]


def test_the_global_random_state_is_untouched() -> None:
    state = torch.get_rng_state()
    ids(torch.zeros(1, 6), [SamplingParams(seed=1)])
    assert torch.equal(torch.get_rng_state(), state)
