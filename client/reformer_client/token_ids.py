"""Token ids that users hand over, checked."""

import array
from collections.abc import Iterable


def token_ids(ids: Iterable[object]) -> "array.array[int]":
    """The ids as uint32; raises TypeError for what are no ints, ValueError for what doesn't fit."""
    if isinstance(ids, bytes | bytearray | memoryview) or not isinstance(ids, Iterable):
        raise TypeError(f"pass a str (text) or a sequence of ints (token ids), not {type(ids).__name__}")
    found = list(ids)
    try:
        return array.array("I", found)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise TypeError(f"token ids must be ints, but the sequence holds others: {found[:3]!r}…") from None
    except OverflowError:
        wrong = next(id for id in found if isinstance(id, int) and not 0 <= id < 2**32)
        raise ValueError(f"token ids must be between 0 and 2**32 - 1, but one is {wrong}") from None
