"""What is given to KenLM's programs and read from them; programs of the same format stand in for them."""

import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ngram import ngram_log_probabilities

# A unigram model: counts, as lines "word count"; like KenLM's, its `query` calls a word that it doesn't know 0.
LMPLZ = """
import collections, sys
words = sys.stdin.read().split()
print(*(f"{word} {count}" for word, count in collections.Counter(words).items()), sep="\\n")
"""
QUERY = """
import math, sys
counts = dict(line.split() for line in open(sys.argv[-1]))
total = sum(map(int, counts.values()))
numbers = {word: number for number, word in enumerate(counts, 1)}
for line in sys.stdin:
    for word in line.split():
        log10 = math.log10(int(counts.get(word, 1)) / total)
        print(f"{word}={numbers.get(word, 0)} 1 {log10}", end="\\t")
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, code in (("lmplz", LMPLZ), ("query", QUERY)):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
        program.chmod(0o755)
    return tmp_path


def test_scores_come_back_a_token_each_in_nats(programs: Path) -> None:
    training = [torch.tensor([0, 0, 1]), torch.tensor([0, 2])]
    first, second = ngram_log_probabilities(programs, training, 4, [torch.tensor([0, 3]), torch.tensor([2, 1, 1])])
    # Each of the 4 tokens of the vocabulary occurs once more: 9 in all.
    assert first.exp().tolist() == pytest.approx([4 / 9, 1 / 9])
    assert second.exp().tolist() == pytest.approx([2 / 9, 2 / 9, 2 / 9])
    assert first[1].item() == pytest.approx(-math.log(9))


def test_a_token_outside_the_vocabulary_is_no_score(programs: Path) -> None:
    with pytest.raises(AssertionError, match="unknown word"):
        ngram_log_probabilities(programs, [torch.tensor([0, 1])], 2, [torch.tensor([0, 5])])


def test_programs_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lmplz"):
        ngram_log_probabilities(tmp_path, [torch.tensor([0])], 1, [torch.tensor([0])])
