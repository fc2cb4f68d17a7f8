"""Tokenizers: any text comes back, one token at a time gives what all at once gives, errors say where."""

import json
import time
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from reformer_core.errors import CheckpointError, InvalidTextError, InvalidTokensError
from reformer_core.tokenizers import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

AWKWARD = [
    "\0",
    "\n",
    "\r\n",
    "\t",
    "  ",
    "   ",
    "\u2581",
    " \u2581 ",
    "<unk>",
    "</s>",
    "<0x41>",
    "😀",
    "e\u0301",
    "\ufeff",
]
texts = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*AWKWARD, "It", " is", "a truth", " fortune", "señor", "\n\n"])).map("".join),
)


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, lossless: SentencePieceTokenizer) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else lossless


def incremental(tokenizer: Tokenizer, token_ids: list[int], *, continues: bool = False) -> str:
    decoder = tokenizer.decoder(continues=continues)
    return "".join([decoder.push(token_id) for token_id in token_ids]) + decoder.flush()


class TestLossless:
    @given(texts)
    @example("")
    @example("".join(AWKWARD))
    @pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
    def test_any_text_comes_back(self, lossless: SentencePieceTokenizer, kind: str, text: str) -> None:
        tokenizer: Tokenizer = ByteTokenizer() if kind == "bytes" else lossless
        token_ids = tokenizer.encode(text.encode())
        assert token_ids.dtype == torch.int64
        assert token_ids.dim() == 1
        assert tokenizer.decode(token_ids.tolist()) == text
        assert incremental(tokenizer, token_ids.tolist()) == text
        assert torch.equal(tokenizer.encode(text.encode()), token_ids)

    def test_no_unknown_and_no_special_token_comes_out_of_a_text(self, lossless: SentencePieceTokenizer) -> None:
        token_ids = lossless.encode("<pad><unk></s> \u2581 日本 \U0010ffff".encode())
        assert token_ids.min() > 2

    def test_line_ends_are_pieces(self, lossless: SentencePieceTokenizer) -> None:
        assert len(lossless.encode(b"\n")) == 1

    def test_a_bytes_token_is_the_byte_plus_two(self) -> None:
        assert ByteTokenizer().encode(b"\x00a").tolist() == [2, 99]
        assert ByteTokenizer().decode([0, 1, 99]) == "a"

    @pytest.mark.parametrize("text", ["a" * 10**6, "\u2581" * 300_000, "acknowledged, " * 70_000])
    def test_a_megabyte_takes_about_a_second(self, lossless: SentencePieceTokenizer, text: str) -> None:
        began = time.process_time()
        lossless.encode(text.encode())
        assert time.process_time() - began < 4  # quadratic would be minutes


class TestIncremental:
    @given(st.data())
    @pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
    def test_any_tokens_give_whole_characters(
        self, lossless: SentencePieceTokenizer, kind: str, data: st.DataObject
    ) -> None:
        tokenizer: Tokenizer = ByteTokenizer() if kind == "bytes" else lossless
        token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
        assert incremental(tokenizer, token_ids) == tokenizer.decode(token_ids)
        tokenizer.decode(token_ids).encode("utf-8")  # no lone surrogates

    @given(texts)
    @pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
    def test_the_tokens_bytes_are_the_text(self, lossless: SentencePieceTokenizer, kind: str, text: str) -> None:
        tokenizer: Tokenizer = ByteTokenizer() if kind == "bytes" else lossless
        token_ids = tokenizer.encode(text.encode()).tolist()
        spelled = tokenizer.decoder().spell(token_ids)
        assert len(spelled) == len(token_ids)
        assert b"".join(spelled) == text.encode()

    def test_an_id_outside_the_vocabulary_has_no_bytes(self, tokenizer: Tokenizer) -> None:
        letter = tokenizer.encode(b"t").tolist()
        assert tokenizer.decoder().spell([10**6, *letter, -1]) == [b"", b"t", b""]

    def test_half_a_character_is_held_back(self, tokenizer: Tokenizer) -> None:
        first, second, third, fourth = tokenizer.encode("😀".encode()).tolist()
        decoder = tokenizer.decoder()
        assert [decoder.push(token_id) for token_id in (first, second, third)] == ["", "", ""]
        assert decoder.push(fourth) == "😀"
        assert decoder.flush() == ""

    def test_bytes_that_are_no_character_are_replaced(self, tokenizer: Tokenizer) -> None:
        euro = tokenizer.encode("€".encode()).tolist()
        letter = tokenizer.encode(b"t").tolist()
        assert tokenizer.decode(euro[:2]) == "\ufffd"
        assert tokenizer.decode(euro[:2] + letter) == "\ufffdt"
        assert tokenizer.decode(euro[1:]) == "\ufffd\ufffd"

    @pytest.mark.parametrize("token_id", [-1, 10**6])
    def test_an_id_outside_the_vocabulary_is_an_error(self, tokenizer: Tokenizer, token_id: int) -> None:
        with pytest.raises(InvalidTokensError, match=f"{token_id} is outside"):
            tokenizer.decode([token_id])


class TestForeignModels:
    @given(texts)
    @example("  two spaces first")
    @example("unknown 日本 \u2581")
    def test_decoding_equals_sentencepiece(self, foreign: SentencePieceTokenizer, text: str) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=foreign.model)
        token_ids = foreign.encode(text.encode()).tolist()
        assert token_ids == processor.encode(text)
        assert foreign.decode(token_ids) == processor.decode(token_ids) == incremental(foreign, token_ids)

    def test_a_continuation_keeps_its_first_space(self, foreign: SentencePieceTokenizer) -> None:
        token_ids = foreign.encode(b"truth").tolist()
        assert foreign.decode(token_ids) == "truth"
        assert incremental(foreign, token_ids, continues=True) == " truth"

    def test_the_dummy_space_is_not_spelled(self, foreign: SentencePieceTokenizer) -> None:
        token_ids = foreign.encode(b"truth truth").tolist()
        decoder = foreign.decoder()
        assert decoder.spell([]) == []
        spelled = [*decoder.spell(token_ids[:1]), *decoder.spell(token_ids[1:])]
        assert b"".join(spelled) == b"truth truth"
        assert foreign.decoder(continues=True).spell(token_ids)[0].startswith(b" ")


@pytest.mark.parametrize(
    ("content", "offset"), [(b"\xff", 0), (b"abc\x80", 3), ("é".encode() + b"\xc3", 2), (b"\xed\xa0\x80", 0)]
)
def test_invalid_utf8_says_where(tokenizer: Tokenizer, content: bytes, offset: int) -> None:
    with pytest.raises(InvalidTextError, match=f"offset {offset} "):
        tokenizer.encode(content)


class TestLoading:
    def write_config(self, directory: Path, **values: object) -> None:
        (directory / "config.json").write_text(json.dumps(values))

    def test_saved_pieces_are_loaded(self, lossless: SentencePieceTokenizer, tmp_path: Path) -> None:
        lossless.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert (loaded.kind, loaded.vocab_size, loaded.pad_id, loaded.eos_id) == ("sentencepiece", 330, 0, 2)
        assert torch.equal(loaded.encode(b"a truth"), lossless.encode(b"a truth"))

    def test_a_vocabulary_of_258_is_bytes(self, tmp_path: Path) -> None:
        self.write_config(tmp_path, vocab_size=258)
        ByteTokenizer().save(tmp_path)
        assert load_tokenizer(str(tmp_path)).kind == "bytes"

    def test_neither_is_an_error_that_names_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no spiece\.model"):
            load_tokenizer(tmp_path)
        self.write_config(tmp_path, vocab_size=320)
        with pytest.raises(CheckpointError, match=r"spiece\.model is missing"):
            load_tokenizer(tmp_path)

    def test_a_missing_directory_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="there is no such directory"):
            load_tokenizer(tmp_path / "none")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not a model",
            b"\n\x0e\n\x05\x80pad>\x15\0\0\0\0\x18\3\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2",  # a piece that is no UTF-8
            b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2\n\x0c\n\3abc\x15\0\0\0\0\x18\6",  # a byte piece without a byte
        ],
    )
    def test_a_damaged_file_is_an_error_that_names_it(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"spiece\.model"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "pixels.json"])
    def test_json_that_is_too_deep_is_damaged(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"[" * 5000)
        with pytest.raises(CheckpointError, match=name):
            load_tokenizer(tmp_path)

    def test_transformers_reads_the_same_ids(self, lossless: SentencePieceTokenizer, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        lossless.save(tmp_path)
        theirs = transformers.ReformerTokenizer(str(tmp_path / "spiece.model"))
        text = "It is a truth universally acknowledged, “señor”"
        assert theirs(text)["input_ids"] == lossless.encode(text.encode()).tolist()
        assert theirs.eos_token_id == lossless.eos_id
