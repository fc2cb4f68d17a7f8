"""Lists in pages: the token of the next page says where the last one ended, so that nothing has to be remembered."""

import base64
from collections.abc import Sequence

from reformer_server.entries import Entry
from reformer_server.errors import InvalidFieldError


def page(entries: Sequence[Entry], page_size: int, page_token: str) -> tuple[Sequence[Entry], str]:
    """A page of entries, which are sorted by time and id, and the token of the next one. Raises InvalidFieldError."""
    after = _read(page_token) if page_token else (0.0, "")
    rest = [entry for entry in entries if _order(entry) > after]
    found = rest[:page_size]
    return found, _write(found[-1]) if len(rest) > page_size else ""


def _order(entry: Entry) -> tuple[float, str]:
    return entry.create_time, entry.name.document_id


def _write(last: Entry) -> str:
    create_time, document_id = _order(last)
    return base64.urlsafe_b64encode(f"{create_time!r} {document_id}".encode()).decode()


def _read(token: str) -> tuple[float, str]:
    try:
        create_time, document_id = base64.urlsafe_b64decode(token.encode()).decode().split(" ")
        return float(create_time), document_id
    except ValueError:
        raise InvalidFieldError(
            "page_token", "is none that ListDocuments gave; leave it out for the first page"
        ) from None
