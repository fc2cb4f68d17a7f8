"""Trains the Transformer of `transformer_peer` as `reformer train` trains a Reformer: same tokenizer, same optimizers.

    python -m benchmarks.train_peer OUT --tokens 10000000 --texts BOOK.txt …

On a GPU if there is one. OUT is a folder. If it holds the checkpoint of an interrupted run, that run goes on.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from benchmarks.harness import environment
from benchmarks.transformer_peer import Peer, PeerConfig
from reformer_core.embedded_model import embedded_model_path
from reformer_core.placement import choose_device
from reformer_core.tokenizers import load_tokenizer
from reformer_core.train.checkpoint import CHECKPOINT_FILE, load_checkpoint, remove_checkpoint, save_checkpoint
from reformer_core.train.optimizer import build_optimizers
from reformer_core.train.precision import choose_precision, computing_in
from reformer_core.train.schedule import learning_rate_share
from reformer_core.train.settings import OptimizerSettings

WEIGHTS_FILE, RECORD_FILE, LOG_FILE = "peer.safetensors", "peer.json", "log.jsonl"
CHECKPOINT_SECONDS = 180
LOG_STEPS = 25


@dataclass
class PeerTraining:
    """A training in progress, and all of its state."""

    peer: Peer
    settings: OptimizerSettings
    total_tokens: int
    batch_tokens: int
    seed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # nats a token, a step

    def __post_init__(self) -> None:
        self._optimizers = build_optimizers(self.peer, self.settings)  # type: ignore[arg-type]  # it has .layers, too
        self._device = self.peer.embeddings.weight.device
        self._precision = choose_precision("auto", self._device)
        self._generator = torch.Generator().manual_seed(self.seed)

    def step(self, text: torch.Tensor) -> None:
        """Learns from random crops of a text, int64 [n]."""
        began = time.monotonic()
        window = self.peer.config.window_tokens
        rows = max(1, self.batch_tokens // window)
        starts = torch.randint(len(text) - window, (rows, 1), generator=self._generator)
        crops = text[starts + torch.arange(window + 1)].to(self._device)
        torch.manual_seed(self.seed + len(self.losses))  # of the dropout, also when it goes on
        self.peer.train()
        with computing_in(self._precision, self._device):
            logits = self.peer(crops[:, :-1]).float()
            loss = functional.cross_entropy(logits.flatten(0, 1), crops[:, 1:].flatten())
        self.peer.eval()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.peer.parameters(), self.settings.clip_norm)
        amid = (self.tokens + rows * window / 2) / self.total_tokens
        rate = self.settings.learning_rate * learning_rate_share(min(amid, 1.0), self.settings)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.tokens += rows * window
        self.seconds += time.monotonic() - began
        self.losses.append(loss.item())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            "peer": self.peer.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "generator": self._generator.get_state(),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.peer.load_state_dict(state["peer"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._generator.set_state(state["generator"])
        self.tokens, self.seconds, self.losses = state["tokens"], state["seconds"], state["losses"]


def train(output: Path, training: PeerTraining, text: torch.Tensor) -> None:
    """Runs a training to its end, and writes the weights and the record."""
    output.mkdir(parents=True, exist_ok=True)
    if (output / CHECKPOINT_FILE).exists():
        training.load_state_dict(load_checkpoint(output))
        print(f"going on after {training.tokens:,} tokens")
    saved = time.monotonic()
    while training.tokens < training.total_tokens:
        training.step(text)
        if len(training.losses) % LOG_STEPS == 0:
            _log(output, training)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS:
            save_checkpoint(output, training.state_dict())
            saved = time.monotonic()
    save_file(training.peer.state_dict(), output / WEIGHTS_FILE)
    record = {
        "config": asdict(training.peer.config),
        "parameters": training.peer.num_parameters,
        "optimizer": training.settings.model_dump(),
        "batch_tokens": training.batch_tokens,
        "tokens": training.tokens,
        "minutes": training.seconds / 60,
        "final_loss": sum(training.losses[-100:]) / len(training.losses[-100:]),
        "environment": environment(),
    }
    (output / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    remove_checkpoint(output)


def load_peer(directory: Path) -> tuple[Peer, dict[str, Any]]:
    """A trained Transformer, and the record of its training."""
    record = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
    peer = Peer(PeerConfig(**record["config"]))
    peer.load_state_dict(load_file(directory / WEIGHTS_FILE))
    return peer.eval(), record


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains the Transformer that the text model is compared with.")
    parser.add_argument("output", type=Path, help="folder for weights, record and log")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="UTF-8 files to learn from")
    parser.add_argument("--tokens", type=int, required=True, help="tokens to train")
    parser.add_argument("--window", type=int, default=1024, help="tokens a crop")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the training in which the rate falls")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--tokenizer", type=Path, default=embedded_model_path(), help="model folder; the embedded one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    tokenizer = load_tokenizer(options.tokenizer)
    end = torch.tensor([] if tokenizer.eos_id is None else [tokenizer.eos_id], dtype=torch.long)
    text = torch.cat([part for path in options.texts for part in (tokenizer.encode(path.read_bytes()), end)])
    torch.manual_seed(options.seed)
    config = PeerConfig(vocab_size=tokenizer.vocab_size, window_tokens=options.window, dropout=options.dropout)
    peer = Peer(config).to(choose_device("auto"))
    settings = OptimizerSettings(learning_rate=options.learning_rate, decay=options.decay, decay_shape="linear")
    training = PeerTraining(peer, settings, options.tokens, options.batch_tokens, options.seed)
    print(f"{peer.num_parameters:,} parameters, {len(text):,} tokens of text")
    train(options.output, training, text)


def _log(output: Path, training: PeerTraining) -> None:
    loss = sum(training.losses[-LOG_STEPS:]) / LOG_STEPS
    entry = {
        "tokens": training.tokens,
        "seconds": round(training.seconds, 1),
        "loss": round(loss, 4),
        "bits_per_token": round(loss / math.log(2), 4),
    }
    with (output / LOG_FILE).open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
