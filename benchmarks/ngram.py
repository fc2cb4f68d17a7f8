"""An n-gram model with KenLM (https://github.com/kpu/kenlm): interpolated, with modified Kneser-Ney smoothing.

KenLM's two programs do the work: `lmplz` estimates, `query` scores. Debian doesn't package them; from the source that
`pip download kenlm --no-binary :all: --no-deps` fetches they are built by

    apt-get install cmake g++ libboost-program-options-dev libboost-system-dev libboost-thread-dev
    cmake -B build -DCMAKE_BUILD_TYPE=Release && make -C build lmplz query

Shapes: n tokens.
"""

import math
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch


def ngram_log_probabilities(
    programs: Path, training: Sequence[torch.Tensor], vocab_size: int, texts: Sequence[torch.Tensor], order: int = 5
) -> list[torch.Tensor]:
    """Natural-log probability of each token of the texts, given the tokens of its own text before it.

    Args:
        programs: folder with `lmplz` and `query`.
        training: texts to learn from, int64 [n] each.
        vocab_size: every token id is below it.
        texts: to be scored, int64 [n] each.
        order: n of the n-grams.

    Returns:
        float32 [n] a text.

    Raises:
        FileNotFoundError: the programs aren't there.
        subprocess.CalledProcessError: one of them failed; its messages are on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        corpus, arpa = Path(folder, "corpus"), Path(folder, "model.arpa")
        # The vocabulary once, so that no token is unknown: a text's probabilities add up to 1 over the same tokens as
        # a neural model's.
        corpus.write_text("".join(map(_line, [*torch.arange(vocab_size).split(1), *training])), encoding="ascii")
        # Discounts can't be estimated for single tokens: none of so few occurs once only.
        options = f"--order {order} --discount_fallback --memory 1G --temp_prefix {folder}"
        with corpus.open() as source, arpa.open("w") as target:
            subprocess.run([programs / "lmplz", *options.split()], stdin=source, stdout=target, check=True)
        query: list[str | Path] = [programs / "query", "-n", "-v", "word", arpa]
        spoken = "".join(map(_line, texts))
        answer = subprocess.run(query, input=spoken, stdout=subprocess.PIPE, check=True, text=True).stdout
    return list(_parse(answer, torch.cat(list(texts))).split([len(text) for text in texts]))


def _line(token_ids: torch.Tensor) -> str:
    return " ".join(map(str, token_ids.tolist())) + "\n"


def _parse(answer: str, token_ids: torch.Tensor) -> torch.Tensor:
    """What `query` says of a word: word=its number, length of the n-gram that was found, log10 of the probability."""
    found = re.findall(r"(\d+)=(\d+) \d+ (\S+)", answer)
    assert [int(word) for word, _, _ in found] == token_ids.tolist(), "query scored other words than it was given"
    assert all(number != "0" for _, number, _ in found), "0 is the unknown word"
    return torch.tensor([float(log10) for _, _, log10 in found]) * math.log(10)
