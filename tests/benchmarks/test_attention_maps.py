"""What the report on heads says about LSH attention is what LSH attention does."""

import dataclasses

import pytest
import torch

from benchmarks.attention_maps import full_weights, head_reports, lsh_inputs, paid_weights, window_counts
from benchmarks.contexts import lsh_layers
from reformer_core import ReformerConfig, ReformerModel
from reformer_core.feed_forward import BLOCK_TOKENS
from tests.core.tiny import random_tokens, tiny_model


def test_paid_weights_give_the_output_of_lsh_attention() -> None:
    model = tiny_model()
    token_ids = random_tokens(model, 64)
    queries = torch.arange(1, 64)
    for index, block in lsh_layers(model).items():
        hidden = lsh_inputs(model, token_ids)[index]
        query_key, value = block.project(hidden)
        shape = (model.config.lsh_attn_chunk_length, model.config.lsh_num_chunks_before)
        counts = window_counts(block.hash(query_key), queries, *shape)
        paid = paid_weights(full_weights(query_key, queries), counts)
        out = block.output((paid @ value).transpose(0, 1).flatten(1))
        attends = (paid.sum(dim=-1) > 0).all(dim=0)  # otherwise a head sees only the query itself
        assert attends.sum() > 50
        expected = block(hidden[None])[0, queries]
        torch.testing.assert_close(out[attends], expected[attends], rtol=1e-4, atol=1e-5)


def test_windows_of_one_bucket_are_the_positions_before() -> None:
    seen = window_counts(torch.zeros(1, 1, 12, dtype=torch.long), torch.tensor([5, 11]), length=4, before=1)
    assert seen[0, 0, 0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert seen[0, 0, 1].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_repeated_text_is_seen_as_one() -> None:
    """Earlier places hold the same token as the query or come after one that does, in turns."""
    model = tiny_model(num_buckets=2)
    token_ids = torch.tensor([3, 7]).repeat(32)
    for report in head_reports(model, token_ids, 16, torch.Generator().manual_seed(0)):
        assert report.same_token + report.after_same_token == pytest.approx(
            1 - report.alone, abs=0.05
        )  # the first comes after none
        assert report.same_token_chance == pytest.approx(0.5, abs=0.02)


def test_shares_add_up_and_more_rounds_catch_more() -> None:
    model = tiny_model()
    reports = head_reports(model, random_tokens(model, 64), 16, torch.Generator().manual_seed(0))
    assert len(reports) == model.config.attn_layers.count("lsh") * model.config.num_attention_heads
    for report in reports:
        assert sum(report.full_by_distance) == pytest.approx(1, abs=1e-5)
        assert sum(report.lsh_by_distance) == pytest.approx(1 - report.alone, abs=1e-5)
        caught = list(report.caught.values())
        assert caught == sorted(caught)
        assert 0 < caught[-1] <= 1.0001
        assert 1 <= report.perplexity <= 63
        assert 0 < report.largest_bucket <= 1


def test_a_long_text_is_read_whole() -> None:
    config = dataclasses.replace(ReformerConfig(), attn_layers=("local", "lsh"), num_attention_heads=1, hash_seed=0)
    config = dataclasses.replace(config, axial_pos_shape=(128, 64), max_position_embeddings=8192, vocab_size=16)
    torch.manual_seed(0)
    token_ids = torch.randint(16, (BLOCK_TOKENS + 64,))
    (inputs,) = lsh_inputs(ReformerModel(config), token_ids).values()
    assert inputs.shape == (len(token_ids), config.hidden_size)
