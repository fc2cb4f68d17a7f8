"""Lists in pages: the token of the next page says where the last one ended, so that nothing has to be remembered."""

import base64
from collections.abc import Callable, Iterable, Sequence

from reformer_server.entries import Entry
from reformer_server.errors import InvalidFieldError

Place = tuple[float, *tuple[str, ...]]


def page(
    entries: Iterable[Entry], place: Callable[[Entry], Place], page_size: int, page_token: str
) -> tuple[Sequence[Entry], str]:
    """A page of entries in the order of their places, and the token of the next one. Raises InvalidFieldError.

    `place` gives no two entries the same one, and has no spaces in its names.
    """
    rest = sorted(entries, key=place)
    if page_token:
        after = _read(page_token)
        rest = [entry for entry in rest if place(entry) > after]
    found = rest[:page_size]
    return found, _write(place(found[-1])) if len(rest) > page_size else ""


def _write(place: Place) -> str:
    return base64.urlsafe_b64encode(" ".join(map(str, place)).encode()).decode()


def _read(token: str) -> Place:
    try:
        number, *names = base64.urlsafe_b64decode(token.encode()).decode().split(" ")
        if names:
            return float(number), *names
    except ValueError:
        pass
    raise InvalidFieldError("page_token", "is none that this method gave; leave it out for the first page")
