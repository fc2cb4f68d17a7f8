"""The Transformer that the Reformer is compared with: causal, of the said size, trained as said."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from benchmarks.train_peer import PeerTraining, load_peer, main, train
from benchmarks.transformer_peer import Peer, PeerConfig
from reformer_core import load_model
from reformer_core.embedded_model import embedded_model_path
from reformer_core.train.checkpoint import CHECKPOINT_FILE, save_checkpoint
from reformer_core.train.settings import OptimizerSettings

TINY = PeerConfig(vocab_size=32, layers=2, hidden_size=16, heads=2, feed_forward_size=32, window_tokens=16)


@pytest.fixture
def peer() -> Peer:
    """Random in all weights, those that begin as zero included."""
    torch.manual_seed(0)
    peer = Peer(TINY)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return peer.eval()


def training(total_tokens: int = 1024) -> PeerTraining:
    torch.manual_seed(0)
    return PeerTraining(Peer(TINY), OptimizerSettings(learning_rate=0.01), total_tokens, batch_tokens=64)


def repetitive_text() -> torch.Tensor:
    return torch.arange(8).repeat(40)


def test_the_default_is_of_the_embedded_models_size() -> None:
    ours = load_model(embedded_model_path(), device="cpu").num_parameters
    assert Peer(PeerConfig()).num_parameters == pytest.approx(ours, rel=0.035)


def test_later_tokens_change_nothing_and_earlier_ones_do(peer: Peer) -> None:
    token_ids = torch.randint(32, (1, 16), generator=torch.Generator().manual_seed(1))
    other = token_ids.clone()
    other[0, 8] = (other[0, 8] + 1) % 32
    first, second = peer(token_ids), peer(other)
    torch.testing.assert_close(first[:, :8], second[:, :8])
    assert all(not torch.allclose(first[:, place], second[:, place]) for place in range(8, 16))


def test_the_order_of_earlier_tokens_matters_through_their_positions(peer: Peer) -> None:
    one_layer = Peer(PeerConfig(32, 1, 16, 2, 32, 16))
    one_layer.load_state_dict({name: value for name, value in peer.state_dict().items() if "layers.1" not in name})
    token_ids = torch.tensor([[4, 9, 1, 7]])
    swapped = torch.tensor([[9, 4, 1, 7]])
    assert not torch.allclose(one_layer(token_ids)[0, -1], one_layer(swapped)[0, -1])


def test_training_learns_and_saves_what_it_learned(tmp_path: Path) -> None:
    run = training(total_tokens=64 * 60)
    train(tmp_path, run, repetitive_text())
    assert run.losses[0] > 2.5
    assert run.losses[-1] < 0.5
    peer, record = load_peer(tmp_path)
    assert record["tokens"] == 64 * 60
    row = repetitive_text()[None, :16]
    assert functional.cross_entropy(peer(row[:, :-1])[0], row[0, 1:]) < 1.0
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    text = repetitive_text()
    whole = training()
    train(tmp_path / "whole", whole, text)
    interrupted = training()
    for _ in range(5):
        interrupted.step(text)
    (tmp_path / "resumed").mkdir()
    save_checkpoint(tmp_path / "resumed", interrupted.state_dict())
    torch.rand(7)  # whatever else happened to the global generator meanwhile
    resumed = PeerTraining(Peer(TINY), OptimizerSettings(learning_rate=0.01), 1024, batch_tokens=64)
    train(tmp_path / "resumed", resumed, text)
    assert resumed.losses == whole.losses
    assert len(resumed.losses) == 16


def test_the_command_trains_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It is a truth universally acknowledged. " * 50, encoding="utf-8")
    main([str(tmp_path / "out"), "--texts", str(book), "--tokens", "64", "--window", "32", "--batch-tokens", "32"])
    assert "3,411,968 parameters" in capsys.readouterr().out
    peer, record = load_peer(tmp_path / "out")
    assert (peer.config.window_tokens, record["tokens"]) == (32, 64)
