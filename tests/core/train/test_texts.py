"""Texts as data: read, tokenized, cut into random crops; and the vocabulary that is learned from them."""

from pathlib import Path

import numpy
import pytest
import torch

from reformer_core.tokenizers import ByteTokenizer
from reformer_core.train.texts import Crops, TextFile, TokenizedText, read_text, tokenize
from reformer_core.train.vocabulary import learn_vocabulary


class TestCrops:
    def crops(self, texts: list[TokenizedText], longest: int = 7, max_tokens: int = 64) -> Crops:
        return Crops(texts, longest, max_tokens)

    def test_targets_are_the_tokens_after(self) -> None:
        crops = self.crops([TokenizedText("a", 50, torch.arange(50)), TokenizedText("b", 50, torch.arange(100, 150))])
        for seed in range(20):
            batch = crops.draw(numpy.random.default_rng(seed), 7, 4)
            assert batch.token_ids.shape == batch.targets.shape == (4, 7)
            assert torch.equal(batch.targets, batch.token_ids + 1)

    def test_every_token_of_every_text_is_learned_and_predicted(self) -> None:
        crops = self.crops([TokenizedText("a", 12, torch.arange(12)), TokenizedText("b", 20, torch.arange(12, 32))])
        generator = numpy.random.default_rng(0)
        batches = [crops.draw(generator, 7, 4) for _ in range(200)]
        assert {*range(32)} - {11, 31} == {*torch.cat([batch.token_ids.flatten() for batch in batches]).tolist()}
        assert {*range(32)} - {0, 12} == {*torch.cat([batch.targets.flatten() for batch in batches]).tolist()}

    def test_every_position_is_trained_about_equally(self) -> None:
        crops = self.crops([TokenizedText("a", 50, torch.arange(50))], longest=14)
        counts, generator = torch.zeros(64), numpy.random.default_rng(0)
        for _ in range(3000):
            batch = crops.draw(generator, *((7, 4), (14, 2))[generator.integers(2)])
            for start in batch.start_positions.tolist():
                counts[start : start + batch.token_ids.shape[1]] += 1
        assert counts.sum() == 3000 * 28
        assert counts[:16].min() > 0.8 * counts.mean()  # the first positions, where every document begins
        assert counts[-1] > 0

    def test_the_longest_crop_may_fill_all_positions(self) -> None:
        batch = self.crops([TokenizedText("a", 65, torch.arange(65))], longest=64).draw(
            numpy.random.default_rng(0), 64, 1
        )
        assert batch.start_positions.tolist() == [0]
        assert batch.token_ids.shape == (1, 64)

    def test_a_text_without_room_for_a_crop_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"short\.txt has 7 tokens, but crops of 7"):
            self.crops([TokenizedText("short.txt", 7, torch.arange(7))])

    def test_crops_longer_than_the_positions_are_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"65 tokens are longer than the model's 64 positions"):
            self.crops([TokenizedText("a", 99, torch.arange(99))], longest=65)


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


class TestVocabulary:
    def test_is_deterministic_and_of_the_size(self) -> None:
        one, other = (learn_vocabulary(["the quick brown fox " * 50], 290) for _ in range(2))
        assert one.model == other.model
        assert one.vocab_size == 290

    @pytest.mark.parametrize(("text", "size"), [("hello", 1024), ("hello " * 50, 100), ("", 300)])
    def test_an_impossible_one_is_an_error(self, text: str, size: int) -> None:
        with pytest.raises(ValueError, match=f"no vocabulary of {size} pieces can be learned from these texts: "):
            learn_vocabulary([text], size)
