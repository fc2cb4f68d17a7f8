"""The trainer: it learns, it goes on exactly where it stopped, it trains every position."""

import dataclasses
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.model import ReformerModel
from reformer_core.tokenizers import ByteTokenizer
from reformer_core.train.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from reformer_core.train.data import Crops, TextFile, TokenizedText, read_text, tokenize
from reformer_core.train.initial import initialise_positions
from reformer_core.train.optimizer import build_optimizer, learning_rate_share
from reformer_core.train.settings import TrainSettings, text_config
from reformer_core.train.stopping import stop_on_signals
from reformer_core.train.trainer import Trainer
from reformer_core.train.validation import Validation
from reformer_core.train.vocabulary import learn_vocabulary

CONFIG = ReformerConfig(
    attn_layers=("local", "lsh"),
    hidden_size=32,
    feed_forward_size=32,
    num_attention_heads=2,
    attention_head_size=16,
    vocab_size=258,
    local_attn_chunk_length=8,
    lsh_attn_chunk_length=8,
    num_hashes=2,
    num_buckets=(4, 4),
    hash_seed=0,
    axial_pos_shape=(16, 16),
    axial_pos_embds_dim=(16, 16),
    max_position_embeddings=256,
    axial_norm_std=0.02,
    hidden_dropout_prob=0.1,
)
SETTINGS = TrainSettings(steps=12, tokens_per_step=64, crop_tokens=(20, 32), learning_rate=1e-2, bfloat16=False)
TEXT = tokenize(TextFile(Path("words.txt"), b"the quick brown fox jumps over the lazy dog. " * 8), ByteTokenizer())


def trainer(settings: TrainSettings = SETTINGS, config: ReformerConfig = CONFIG) -> Trainer:
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    crops = Crops([TEXT], settings.crop_tokens, settings.tokens_per_step, config.max_tokens, generator)
    return Trainer(ReformerModel(config), crops, generator, settings)


class TestTrainer:
    def test_the_loss_falls(self) -> None:
        run = trainer(dataclasses.replace(SETTINGS, steps=60))
        validation = Validation(TEXT, 256)
        before = validation.bits_per_byte(run.model)
        losses = [run.train_step().loss for _ in range(60)]
        assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
        assert validation.bits_per_byte(run.model) < 0.7 * before
        assert run.done == 1
        assert not run.model.training

    def test_resumed_training_equals_uninterrupted(self, tmp_path: Path) -> None:
        whole = trainer()
        losses = [whole.train_step().loss for _ in range(12)]
        first = trainer()
        resumed = [first.train_step().loss for _ in range(5)]
        save_checkpoint(tmp_path, first.state_dict())
        torch.manual_seed(99)
        second = trainer()
        second.load_state_dict(load_checkpoint(tmp_path))
        resumed += [second.train_step().loss for _ in range(7)]
        assert resumed == losses
        assert (second.step, second.tokens, second.done) == (whole.step, whole.tokens, 1)
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(second.model.state_dict()[name], tensor), name

    def test_a_budget_in_minutes_follows_the_clock(self) -> None:
        run = trainer(dataclasses.replace(SETTINGS, steps=None, minutes=2.0, warmup=0.0))
        run.seconds = 60.0
        assert run.done == pytest.approx(0.5)
        assert run.train_step().learning_rate == pytest.approx(0.5e-2)
        assert run.seconds > 60
        run.seconds = 1e6
        assert run.done == 1

    def test_bfloat16_learns_too(self) -> None:
        run = trainer(dataclasses.replace(SETTINGS, bfloat16=True, steps=30))
        losses = [run.train_step().loss for _ in range(30)]
        assert losses[-1] < 0.8 * losses[0]
        assert run.model.head.weight.dtype == torch.float32


class TestOptimizer:
    def test_only_matrices_of_linear_layers_decay(self) -> None:
        model = ReformerModel(CONFIG)
        decayed, others = build_optimizer(model, 1e-3, 0.1).param_groups
        linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
        assert {id(parameter) for parameter in decayed["params"]} == linear
        assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)

    def test_the_learning_rate_rises_and_falls(self) -> None:
        shares = [learning_rate_share(done / 100, 0.1) for done in range(101)]
        assert shares[:11] == pytest.approx([done / 10 for done in range(11)])
        assert all(one > other for one, other in pairwise(shares[10:]))
        assert shares[55] == pytest.approx(0.5)
        assert shares[100] == pytest.approx(0)
        assert learning_rate_share(0.0, 0.0) == 1


class TestCrops:
    def crops(self, texts: list[TokenizedText], lengths: tuple[int, ...] = (7,), max_tokens: int = 64) -> Crops:
        return Crops(texts, lengths, 28, max_tokens, torch.Generator().manual_seed(0))

    def test_targets_are_the_tokens_after(self) -> None:
        crops = self.crops([TokenizedText("a", 50, torch.arange(50)), TokenizedText("b", 50, torch.arange(100, 150))])
        for _ in range(20):
            batch = crops.draw()
            assert batch.token_ids.shape == batch.targets.shape == (4, 7)
            assert torch.equal(batch.targets, batch.token_ids + 1)

    def test_every_token_of_every_text_is_learned_and_predicted(self) -> None:
        crops = self.crops([TokenizedText("a", 12, torch.arange(12)), TokenizedText("b", 20, torch.arange(12, 32))])
        batches = [crops.draw() for _ in range(200)]
        assert {*range(32)} - {11, 31} == {*torch.cat([batch.token_ids.flatten() for batch in batches]).tolist()}
        assert {*range(32)} - {0, 12} == {*torch.cat([batch.targets.flatten() for batch in batches]).tolist()}

    def test_every_position_is_trained_about_equally(self) -> None:
        crops = self.crops([TokenizedText("a", 50, torch.arange(50))], lengths=(7, 14))
        counts = torch.zeros(64)
        for _ in range(3000):
            batch = crops.draw()
            for start in batch.start_positions.tolist():
                counts[start : start + batch.token_ids.shape[1]] += 1
        assert counts.sum() == 3000 * 28
        assert counts[:16].min() > 0.8 * counts.mean()  # the first positions, where every document begins
        assert counts[-1] > 0

    def test_the_longest_crop_may_fill_all_positions(self) -> None:
        batch = self.crops([TokenizedText("a", 65, torch.arange(65))], lengths=(64,)).draw()
        assert batch.start_positions.tolist() == [0]
        assert batch.token_ids.shape == (1, 64)

    def test_a_text_without_room_for_a_crop_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"short\.txt has 7 tokens, but crops of 7"):
            self.crops([TokenizedText("short.txt", 7, torch.arange(7))])

    def test_crops_longer_than_the_positions_are_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"65 tokens are longer than the model's 64 positions"):
            self.crops([TokenizedText("a", 99, torch.arange(99))], lengths=(65,))


class TestTexts:
    def test_missing_and_empty_files_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"none\.txt can't be read: No such file"):
            read_text(tmp_path / "none.txt")
        (tmp_path / "empty.txt").touch()
        with pytest.raises(ValueError, match=r"empty\.txt is empty"):
            read_text(tmp_path / "empty.txt")

    def test_invalid_utf8_is_an_error_with_file_and_offset(self, tmp_path: Path) -> None:
        (tmp_path / "bad.txt").write_bytes(b"ok\xff")
        with pytest.raises(ValueError, match=r"bad\.txt: .* offset 2 "):
            read_text(tmp_path / "bad.txt")

    def test_the_end_of_a_text_is_a_token(self) -> None:
        assert tokenize(TextFile(Path("a"), b"a"), ByteTokenizer(), eos_id=1).token_ids.tolist() == [99, 1]


class TestValidation:
    def test_bits_per_byte_of_a_uniform_model(self) -> None:
        model = ReformerModel(CONFIG)
        nn.init.zeros_(model.head.weight)
        for sequence_tokens in (256, 50, 51):  # 360 tokens: the last sequence may be short, or of one token
            assert Validation(TEXT, sequence_tokens).bits_per_byte(model) == pytest.approx(8.0112, abs=1e-3)
        assert Validation(TEXT, 50).bits_per_byte(model, max_sequences=1) == pytest.approx(8.0112, abs=1e-3)


class TestCheckpoint:
    def test_a_crash_while_writing_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_checkpoint(tmp_path, {"step": 1})

        def crash(state: object, file: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", crash)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, {"step": 2})
        assert load_checkpoint(tmp_path) == {"step": 1}

    def test_missing_or_damaged_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no unfinished training to resume"):
            load_checkpoint(tmp_path)
        for content in (b"", b"nonsense"):
            (tmp_path / "checkpoint.pt").write_bytes(content)
            with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
                load_checkpoint(tmp_path)
        remove_checkpoint(tmp_path)
        remove_checkpoint(tmp_path)

    def test_no_code_is_run_from_it(self, tmp_path: Path) -> None:
        torch.save({"call": Path}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(tmp_path)


class TestSettings:
    def test_survive_being_written_down(self) -> None:
        assert TrainSettings.from_dict(SETTINGS.to_dict()) == SETTINGS
        with pytest.raises(ValueError, match="unknown settings: colour"):
            TrainSettings.from_dict({"colour": 1})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("steps", 0),
            ("tokens_per_step", 0),
            ("crop_tokens", ()),
            ("crop_tokens", (0,)),
            ("learning_rate", float("nan")),
            ("warmup", 1.0),
            ("weight_decay", -1.0),
            ("clip_norm", 0.0),
            ("seed", -1),
            ("checkpoint_minutes", 0.0),
            ("validation_tokens", 1),
        ],
    )
    def test_a_wrong_one_is_named(self, name: str, value: object) -> None:
        with pytest.raises(ValueError, match=f"{name} is "):
            dataclasses.replace(SETTINGS, **{name: value})

    def test_one_budget_is_needed(self) -> None:
        for budget in ({"steps": None}, {"minutes": 1.0}):
            with pytest.raises(ValueError, match="either steps or minutes"):
                dataclasses.replace(SETTINGS, **budget)
        with pytest.raises(ValueError, match="minutes is inf"):
            TrainSettings(minutes=float("inf"))

    def test_the_default_model_has_a_million_positions(self) -> None:
        assert text_config(1024).max_tokens == 2**20


class TestInitialisation:
    @pytest.mark.parametrize("axial", [True, False])
    def test_products_of_positions_tell_their_distance(self, axial: bool) -> None:
        model = ReformerModel(dataclasses.replace(CONFIG, axial_pos_embds=axial))
        initialise_positions(model)
        embedded = model.embeddings.positions(torch.arange(256)).detach()
        rows = embedded[:16] if axial else embedded
        products = rows @ rows.T
        for distance in (0, 1, 5):
            assert products.diagonal(distance).std() < 1e-5 * products[0, 0].item() + 1e-9
        assert products[3, 3] > products[3, 4] > products[3, 5]
        assert rows.std() == pytest.approx(0.014 if axial else 0.02, rel=0.3)
        if axial:
            torch.testing.assert_close(embedded[16:32], rows)  # the other axis says nothing yet


class TestVocabulary:
    def test_is_deterministic_and_of_the_size(self) -> None:
        one, other = (learn_vocabulary(["the quick brown fox " * 50], 290) for _ in range(2))
        assert one.model == other.model
        assert one.vocab_size == 290

    @pytest.mark.parametrize(("text", "size"), [("hello", 1024), ("hello " * 50, 100), ("", 300)])
    def test_an_impossible_one_is_an_error(self, text: str, size: int) -> None:
        with pytest.raises(ValueError, match=f"no vocabulary of {size} pieces can be learned from these texts: "):
            learn_vocabulary([text], size)


def test_a_signal_asks_to_stop_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as received:
        assert received() is None
        signal.raise_signal(signal.SIGTERM)
        assert received() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends it at once
    assert signal.getsignal(signal.SIGTERM) == before
