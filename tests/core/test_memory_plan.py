"""The memory plan against what runs allocate: within 10 %, on models of different proportions."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from reformer_core import MemoryPlan, ReformerConfig, ReformerModel, SamplingParams, load_model, save_model
from reformer_core.engine import Engine
from reformer_core.errors import OutOfMemoryError, TooManyTokensError
from reformer_core.incremental import decode_step, extend_slice
from reformer_core.pages import PageLayout, PagePool
from reformer_core.prefill import Prefill
from reformer_core.recorded_kernels import Recording
from reformer_core.sampling import BatchSampling, sample
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from reformer_core.slicing import extend_tokens, slice_tokens
from tests.core.live_memory import LiveMemory
from tests.core.models import random_model, small_config
from tests.core.tiny import random_tokens, read_document

TOKENS = 16_384  # some slices, so that what grows with the length and what doesn't both count
MODELS: dict[str, dict[str, Any]] = {
    "the embedded text model": {"source": "embedded:text"},
    "the embedded image model": {"source": "embedded:image"},
    "two kinds of layers": {},
    "local layers only": {"attn_layers": ("local", "local")},
    "one round": {"attn_layers": ("lsh",), "num_hashes": 1},
    "four rounds, many buckets": {"attn_layers": ("lsh",), "num_hashes": 4, "num_buckets": (128, 512)},
    "long windows": {"local_attn_chunk_length": 128, "lsh_attn_chunk_length": 256},
    "wide, with a large vocabulary": {
        "hidden_size": 96,
        "feed_forward_size": 768,
        "axial_pos_embds_dim": (32, 64),
        "vocab_size": 3000,
    },
    "bfloat16 where it is multiplied": {"dtype": torch.bfloat16, "native": True},
    "bfloat16 where it isn't": {"dtype": torch.bfloat16, "native": False},
    "bfloat16 where it isn't, wide heads": {
        "dtype": torch.bfloat16,
        "attn_layers": ("lsh",),
        "attention_head_size": 96,
        "lsh_attn_chunk_length": 256,
    },
    "float16, wide": {
        "dtype": torch.float16,
        "hidden_size": 96,
        "feed_forward_size": 768,
        "axial_pos_embds_dim": (32, 64),
        "vocab_size": 3000,
    },
    "plain positions": {"axial_pos_embds": False},
}


def served_config(**values: Any) -> ReformerConfig:
    """Proportions as in a real model, only narrower."""
    defaults: dict[str, Any] = {
        "num_buckets": (16, 32),
        "local_attn_chunk_length": 64,
        "lsh_attn_chunk_length": 64,
        "axial_pos_shape": (128, 256),
        "max_position_embeddings": 32768,
    }
    return small_config(**{**defaults, **values})


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ReformerModel:
    values = dict(request.param)
    dtype, native = values.pop("dtype", torch.float32), values.pop("native", False)
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", lambda: native)
    source = values.pop("source", tmp_path)
    if source == tmp_path:
        save_model(random_model(served_config(**values)), source)
    return load_model(source, device="cpu", dtype=dtype).requires_grad_(False)


def plan_for(model: ReformerModel, tokens: int = TOKENS) -> MemoryPlan:
    return MemoryPlan(
        model.config,
        model.dtype,
        min(tokens, 16 * slice_tokens(model.config, model.dtype, model.device), model.config.max_tokens),
    )


def pool_for(model: ReformerModel, plan: MemoryPlan, more_pages: int = 0) -> PagePool:
    layout = PageLayout(model.config, model.dtype)
    return PagePool(layout, plan.page_bytes + more_pages * layout.page_bytes, model.device)


def test_weights(model: ReformerModel) -> None:
    assert plan_for(model).weights_bytes == sum(x.nbytes for x in (*model.parameters(), *model.buffers()))


def test_a_session(model: ReformerModel) -> None:
    table = SessionTable(model.config, pool_for(model, plan_for(model, 1)), sessions=5)
    seen = model.config.vocab_size  # a bit mask of a byte a token
    assert plan_for(model).session_bytes == table.nbytes / 5 + seen


@pytest.mark.parametrize("tokens", [1, 100, 1000, 10_000])
def test_a_document(tokens: int) -> None:
    model = random_model(served_config())
    plan = plan_for(model, tokens)
    pool = pool_for(model, plan)
    with torch.inference_mode(), LiveMemory() as memory:
        document = read_document(model, pool, random_tokens(model, tokens))
    assert plan.document_bytes + 4 * tokens == document.nbytes  # it has kept scores
    assert memory.bytes <= 2 * 4 * tokens + 1000  # and nothing but ids and scores lies outside the pages
    assert pool.free_pages == 0


LOCAL_BFLOAT16 = {"dtype": torch.bfloat16, "native": True, "attn_layers": ("local", "local")}


@pytest.mark.parametrize("model", [*MODELS.values(), LOCAL_BFLOAT16], ids=[*MODELS, "local layers"], indirect=True)
def test_reading_a_document(model: ReformerModel) -> None:
    plan = plan_for(model)
    assert slice_tokens(model.config, model.dtype, model.device) < plan.tokens / 2
    pool, token_ids = pool_for(model, plan), random_tokens(model, plan.tokens)
    with torch.inference_mode(), LiveMemory() as memory:
        prefill = Prefill(model, pool, token_ids, keep_document=True, keep_scores=True)
        for _ in prefill.slices():
            pass
    assert plan.workspace_bytes == pytest.approx(memory.peak_bytes, rel=0.1)


def test_a_step(model: ReformerModel) -> None:
    """Decoding for 16 sessions, sampling included, and a slice of a prompt, both with full tails."""
    sessions = 16
    plan = plan_for(model, 300)
    pool = pool_for(model, plan, more_pages=200)
    table = SessionTable(model.config, pool, sessions + 1)
    steps, capacity = torch.arange(sessions), table.tail_capacity
    with torch.inference_mode():
        document = read_document(model, pool, random_tokens(model, 300))
        opened = [Session(table, document) for _ in range(sessions + 1)]
        for session in opened:
            session.reserve(capacity)
        slice_ids = torch.zeros(extend_tokens(model.config, model.device), dtype=torch.long)
        while opened[-1].tail_tokens + len(slice_ids) < capacity:
            extend_slice(model, opened[-1], slice_ids)
        token_ids = torch.zeros(sessions, dtype=torch.long)
        sampling = BatchSampling.of([SamplingParams(top_k=5, repetition_penalty=1.1)] * sessions, model.device)
        with LiveMemory() as decoding:
            decode_step(model, table, token_ids, capacity)
        with LiveMemory() as choosing:
            sample(table.next_logits[:sessions], sampling, steps, table.seen_ids[:sessions], 20)
        with LiveMemory() as extending:
            extend_slice(model, opened[-1], slice_ids)
    rows_of_plan = max(sessions, len(slice_ids))
    a_row = max(max(decoding.peak_bytes, choosing.peak_bytes) / sessions, extending.peak_bytes / len(slice_ids))
    assert plan.step_bytes(sessions) == pytest.approx(a_row * rows_of_plan, rel=0.1)


def test_recorded_steps(model: ReformerModel) -> None:
    """Of 16 sessions with full tails."""
    sessions = 16
    plan = plan_for(model, 1)
    table = SessionTable(model.config, pool_for(model, plan, more_pages=200), sessions)
    table.length.fill_(1)
    token_ids = torch.zeros(sessions, dtype=torch.long)
    recording = Recording(lambda: decode_step(model, table, token_ids, table.tail_capacity))
    assert plan.step_bytes(sessions) / 4 < recording.nbytes < plan.recorded_bytes(sessions) / 2


def test_large_models_record_nothing() -> None:
    config = served_config(hidden_size=768, axial_pos_embds_dim=(256, 512), feed_forward_size=50_000)
    assert MemoryPlan(config, torch.float32, 1).recorded_bytes(16) == 0


# -- an engine's memory


def test_the_longest_document_within_a_memory() -> None:
    config, sessions = served_config(), 4
    plan = MemoryPlan(config, torch.float32, 5000)
    memory_bytes = plan.fixed_bytes(sessions) + plan.page_bytes + plan.tail_bytes
    assert MemoryPlan.longest_within(memory_bytes, config, torch.float32, sessions) == plan
    assert MemoryPlan.longest_within(memory_bytes - 1, config, torch.float32, sessions).tokens == 4999
    plenty = MemoryPlan.longest_within(2**40, config, torch.float32, sessions)
    assert plenty.tokens == config.max_tokens


def test_scoring_a_longer_text_than_could_be_kept() -> None:
    config, sessions = served_config(attn_layers=("lsh",) * 6), 4
    model = random_model(config).requires_grad_(False)
    plan = MemoryPlan(config, torch.float32, 6000)
    memory_bytes = plan.fixed_bytes(sessions) + plan.score_page_bytes + plan.tail_bytes
    token_ids = random_tokens(model, 6000)
    with pytest.raises(OutOfMemoryError):
        Engine(model, memory_bytes=memory_bytes, max_running=sessions).score(token_ids)
    engine = Engine(model, memory_bytes=memory_bytes, max_running=sessions, max_text_tokens=6000)
    assert len(engine.score(token_ids)) == 6000
    with pytest.raises(OutOfMemoryError):
        engine.prefill(token_ids)
    with pytest.raises(OutOfMemoryError) as caught:
        Engine(model, memory_bytes=memory_bytes - 1, max_running=sessions, max_text_tokens=6000)
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (memory_bytes, memory_bytes - 1)
    with pytest.raises(TooManyTokensError):
        Engine(model, memory_bytes=memory_bytes, max_text_tokens=config.max_tokens + 1)


def test_too_little_memory_says_how_much_would_do() -> None:
    config, sessions = served_config(), 4
    with pytest.raises(OutOfMemoryError) as caught:
        MemoryPlan.longest_within(1000, config, torch.float32, sessions)
    least = caught.value.needed_bytes
    assert (caught.value.free_bytes, caught.value.fits_when_idle) == (1000, False)
    assert MemoryPlan.longest_within(least, config, torch.float32, sessions).tokens >= 1
    with pytest.raises(OutOfMemoryError):
        MemoryPlan.longest_within(least - 1, config, torch.float32, sessions)


def test_longer_documents_take_more() -> None:
    config = served_config()
    plans = [MemoryPlan(config, torch.float32, tokens) for tokens in (1, 2, 255, 256, 257, 5000, 32768)]
    for of in ("page_bytes", "document_bytes", "workspace_bytes", "total_bytes"):
        sizes = [getattr(plan, of) for plan in plans]
        assert sizes == sorted(sizes), of
    assert plans[-1].workspaces == tuple(plans[-1].workspace_bytes // ratio for ratio in (1, 4, 16, 64))


def test_rounds_and_dtype_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", lambda: False)  # slices are equally long
    plan = MemoryPlan(served_config(), torch.float32, 5000)
    more_rounds = dataclasses.replace(plan, config=dataclasses.replace(plan.config, num_hashes=4))
    half = dataclasses.replace(plan, dtype=torch.bfloat16)
    assert more_rounds.page_bytes > plan.page_bytes > half.page_bytes
    assert more_rounds.weights_bytes > plan.weights_bytes  # by the rotations
    assert half.weights_bytes < plan.weights_bytes
    assert half.workspace_bytes < plan.workspace_bytes
