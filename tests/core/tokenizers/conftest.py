"""Small vocabularies, learned from a few sentences."""

import io

import pytest
import sentencepiece

from reformer_core.tokenizers import SentencePieceTokenizer
from reformer_core.train.vocabulary import learn_vocabulary

TEXT = (
    "It is a truth universally acknowledged,\nthat a single man   in possession of a good fortune — “señor”!\n\n" * 20
)


@pytest.fixture(scope="session")
def lossless() -> SentencePieceTokenizer:
    return learn_vocabulary([TEXT], 330)


@pytest.fixture(scope="session", params=[True, False], ids=["bytes", "no-bytes"])
def foreign(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    """As SentencePiece trains by default: NFKC, a dummy space before every text, runs of spaces collapsed."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=330 if request.param else 60,
        byte_fallback=request.param,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())
