"""Learns a SentencePiece vocabulary that gives any UTF-8 text back as it was."""

import io
from collections.abc import Iterable, Iterator

import sentencepiece

from reformer_core.tokenizers import SentencePieceTokenizer

# Hugging Face's defaults for a Reformer: padding 0, end of sequence 2.
PAD_ID, UNKNOWN_ID, EOS_ID = 0, 1, 2

_BLOCK_CHARACTERS = 4000


def learn_vocabulary(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """A BPE vocabulary of exactly vocab_size pieces; deterministic.

    Nothing is normalised, no space is added or trimmed, and what has no piece is spelled in byte pieces. Texts are
    given in blocks rather than in lines, so that line ends are characters like any other and get pieces of their own.

    Raises:
        ValueError: the texts are too short for so many pieces, or vocab_size is too small for the bytes and characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_blocks(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            max_sentence_length=4 * _BLOCK_CHARACTERS,  # in bytes
            pad_id=PAD_ID,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            eos_id=EOS_ID,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("]")[2].strip() or "they are empty"
        raise ValueError(f"no vocabulary of {vocab_size} pieces can be learned from these texts: {reason}") from error
    return SentencePieceTokenizer(model.getvalue())


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _BLOCK_CHARACTERS):
            yield text[start : start + _BLOCK_CHARACTERS]
