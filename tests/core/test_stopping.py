"""Stop conditions: what is told, what is held back, and why a generation ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_core import SamplingParams
from reformer_core.errors import InvalidParameterError
from reformer_core.events import FinishReason
from reformer_core.stopping import OutputText, StopTexts
from reformer_core.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()


def tokens(text: str | bytes) -> list[int]:
    """A byte-level model's ids."""
    return [byte + 2 for byte in (text.encode() if isinstance(text, str) else text)]


def play(
    token_ids: list[int], params: SamplingParams, eos_token_id: int | None = None
) -> tuple[list[str], FinishReason | None]:
    """The text of each token up to the last one, and why it was the last."""
    output, texts = OutputText(TOKENIZER, params, eos_token_id), []
    for token_id in token_ids:
        text, reason = output.push(token_id)
        texts.append(text)
        if reason is not None:
            return texts, reason
    return texts, None


def test_text_comes_as_soon_as_it_is_complete() -> None:
    texts, reason = play(tokens("aé€"), SamplingParams())
    assert texts == ["a", "", "é", "", "", "€"]
    assert reason is None


def test_text_before_a_stop_text_is_told_and_the_stop_text_is_not() -> None:
    texts, reason = play(tokens("one STOP two"), SamplingParams(stop=("STOP",)))
    assert texts == ["o", "n", "e", " ", "", "", "", ""]
    assert reason is FinishReason.STOP


def test_what_may_become_a_stop_text_is_held_back_until_it_is_clear() -> None:
    texts, reason = play(tokens("STSTOX"), SamplingParams(stop=("STOP",)))
    assert texts == ["", "", "ST", "", "", "STOX"]
    assert reason is None


def test_max_tokens_ends_with_all_that_was_held_back() -> None:
    texts, reason = play(tokens("xST"), SamplingParams(stop=("STOP",), max_tokens=3))
    assert (texts, reason) == (["x", "", "ST"], FinishReason.LENGTH)
    texts, reason = play(tokens("x€"), SamplingParams(max_tokens=2))
    assert (texts, reason) == (["x", "\ufffd"], FinishReason.LENGTH)


def test_a_stop_text_completed_by_the_last_token_is_the_reason() -> None:
    assert play(tokens("ab"), SamplingParams(stop=("b",), max_tokens=2)) == (["a", ""], FinishReason.STOP)


@pytest.mark.parametrize(
    ("params", "eos"), [(SamplingParams(stop_ids=(1,), stop=("STOP",)), None), (SamplingParams(stop=("STOP",)), 1)]
)
def test_a_stop_id_tells_what_was_held_back_but_not_itself(params: SamplingParams, eos: int | None) -> None:
    assert play([*tokens("ST"), 1, 99], params, eos) == (["", "", "ST"], FinishReason.STOP)


def test_a_printable_stop_id_is_not_told() -> None:
    assert play(tokens("a.b"), SamplingParams(stop_ids=tuple(tokens(".")))) == (["a", ""], FinishReason.STOP)


def test_a_stop_id_wins_over_the_limit() -> None:
    assert play(tokens("ab"), SamplingParams(stop_ids=tuple(tokens("b")), max_tokens=2))[1] is FinishReason.STOP


def test_of_overlapping_stop_texts_the_first_to_be_complete_wins() -> None:
    assert play(tokens("xabcd"), SamplingParams(stop=("abcd", "bc"))) == (["x", "", "", "a"], FinishReason.STOP)
    assert play(tokens("xabc"), SamplingParams(stop=("bc", "abc"))) == (["x", "", "", ""], FinishReason.STOP)


def test_the_end_for_a_reason_of_the_caller_tells_what_was_held_back() -> None:
    output = OutputText(TOKENIZER, SamplingParams(stop=("STOP",)), None)
    assert [output.push(token_id)[0] for token_id in tokens(b"ST\xe2")] == ["", "", ""]
    assert output.finish() == "ST\ufffd"


def test_a_stop_text_of_the_replacement_character_stops_at_the_end_too() -> None:
    output = OutputText(TOKENIZER, SamplingParams(stop=("\ufffd",)), None)
    assert [output.push(token_id)[0] for token_id in tokens(b"a\xe2")] == ["a", ""]
    assert output.finish() == ""


def test_without_a_tokenizer_there_are_only_ids() -> None:
    output = OutputText(None, SamplingParams(max_tokens=2), None)
    assert output.push(300) == ("", None)
    assert output.push(301) == ("", FinishReason.LENGTH)
    with pytest.raises(InvalidParameterError, match="stop: must be empty, for this model's tokens have no text"):
        OutputText(None, SamplingParams(stop=("x",)), None)


@pytest.mark.parametrize("stop", [("a",) * 17, ("",), ("a" * 4097,)])
def test_stop_texts_that_are_refused(stop: tuple[str, ...]) -> None:
    with pytest.raises(InvalidParameterError, match=r"^stop: must be") as caught:
        SamplingParams(stop=stop)
    assert len(str(caught.value)) < 200
    assert SamplingParams(stop=("a" * 4096,) * 16)


def naive_stop(text: str, stop: list[str]) -> tuple[str, bool]:
    """By trying every end."""
    for end in range(1, len(text) + 1):
        complete = [len(one) for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - max(complete)], True
    return text, False


few_letters = st.text(alphabet="ab", max_size=20)


@given(st.lists(few_letters, max_size=8), st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=4))
def test_any_cut_gives_what_a_search_of_the_whole_text_gives(parts: list[str], stop: list[str]) -> None:
    texts, told, stopped = StopTexts(tuple(stop)), "", False
    whole, _ = naive_stop("".join(parts), stop)
    for index, part in enumerate(parts):
        text, stopped = texts.push(part)
        told += text
        if stopped:
            break
        so_far = "".join(parts[: index + 1])
        held = max((size for one in stop for size in range(len(one)) if so_far.endswith(one[:size])), default=0)
        assert told == so_far[: len(so_far) - held]  # no more is held back than has to be
    else:
        told += texts.flush()
    assert (told, stopped) == naive_stop("".join(parts), stop)
    assert told == whole


def test_a_long_stop_text_costs_no_more_a_character() -> None:
    texts = StopTexts(("a" * 100_000 + "b",))
    told = [texts.push("a" * 1000)[0] for _ in range(200)]
    assert "".join(told) == "a" * 100_000
    assert texts.push("b") == ("", True)


@pytest.mark.parametrize("stop", [("ab",), ()])
def test_flush_empties(stop: tuple[str, ...]) -> None:
    texts = StopTexts(stop)
    told, _ = texts.push("xa")
    assert told + texts.flush() == "xa"
    assert texts.flush() == ""
