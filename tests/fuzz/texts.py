"""Content on its way to token ids and back: bytes that are no text, and ids that are no tokens."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sentencepiece
from hypothesis import strategies as st

from reformer_core.errors import InvalidTextError, InvalidTokensError
from reformer_core.tokenizers import ByteTokenizer, PixelTokenizer, SentencePieceTokenizer, Tokenizer
from reformer_core.train.vocabulary import learn_vocabulary
from tests.fuzz.mutations import HOSTILE_TEXTS, mutated
from tests.fuzz.target import Judge, Target

SENTENCES = (
    "It is a truth universally acknowledged,\nthat a single man   in possession of a good fortune — “señor”!\n\n" * 20
)
Case = tuple[bytes, list[int]]


def lossless() -> SentencePieceTokenizer:
    """As `reformer train` learns them."""
    return learn_vocabulary([SENTENCES], 330)


def foreign() -> SentencePieceTokenizer:
    """As SentencePiece trains by default: NFKC, a dummy space, runs of spaces collapsed, no byte pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.splitlines()),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


def _contents() -> st.SearchStrategy[bytes]:
    seeds = [
        SENTENCES[:200].encode(),
        *(text.encode() for text in HOSTILE_TEXTS),
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
    ]
    return mutated(seeds)


def _cases() -> st.SearchStrategy[Case]:
    ids = st.integers(0, 400) | st.sampled_from([-1, 2**31, 2**63, -(2**63), 2**64])
    return st.tuples(_contents(), st.lists(ids, max_size=30))


@contextmanager
def _coding() -> Iterator[Judge[Case]]:
    tokenizers: Sequence[Tokenizer] = (ByteTokenizer(), lossless(), foreign(), PixelTokenizer(2, 2))

    def judge(case: Case) -> None:
        content, ids = case
        for tokenizer in tokenizers:
            _encode(tokenizer, content, comes_back=tokenizer in tokenizers[:2])
            _decode(tokenizer, ids)

    yield judge


def _encode(tokenizer: Tokenizer, content: bytes, *, comes_back: bool) -> None:
    try:
        ids = tokenizer.encode(content).tolist()
    except InvalidTextError:
        return
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    text = tokenizer.decode(ids)
    assert not comes_back or text.encode() == content


def _decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = tokenizer.decoder()
    try:
        text = "".join(map(decoder.push, ids)) + decoder.flush()
    except InvalidTokensError:
        assert any(not 0 <= id < tokenizer.vocab_size for id in ids)
    else:
        assert text == tokenizer.decode(ids)
        text.encode()


TEXTS = Target("texts", "bytes to all tokenizers, and ids back to text", 10_000, _cases, _coding)
