"""How many documents a tenant may have, and how large they may be together."""

from collections.abc import Iterable

from reformer_server.archive import Archive
from reformer_server.content import ContentKey, DocumentName
from reformer_server.entries import Entry
from reformer_server.errors import TenantQuotaError
from reformer_server.tenants import Limits


def check(
    name: DocumentName,
    limits: Limits,
    archive: Archive,
    here: Iterable[Entry],
    now: float,
    key: ContentKey | None,
    memory_bytes: int,
) -> None:
    """Raises TenantQuotaError if this document would be more than its tenant may have.

    Args:
        name: its id, in whose place there may be another one.
        limits: the tenant's.
        archive: knows what is stored, as of its last sweep.
        here: all entries of this process, which may be stored or not.
        now: Unix time.
        key: its content, which counts only once; None: not known yet, and neither is memory_bytes.
        memory_bytes: what it takes.
    """
    if limits.documents is None and limits.document_bytes is None:
        return
    known = [each for each in archive.known(name.tenant) if each.expire_time > now]
    documents = {record.document_id: record.identity for record in known}
    sizes = {record.identity: record.memory_bytes for record in known}
    for entry in here:
        if entry.name.tenant == name.tenant:
            content = archive.identity(entry.key)
            documents[entry.name.document_id] = content
            sizes[content] = entry.memory_bytes
    others = documents.keys() - {name.document_id}
    if limits.documents is not None and len(others) >= limits.documents:
        raise TenantQuotaError("documents", len(others) + 1, limits.documents)
    held = sum(sizes[content] for content in {documents[other] for other in others})
    if key is not None and archive.identity(key) in sizes:
        memory_bytes = 0
    if limits.document_bytes is not None and held + memory_bytes > limits.document_bytes:
        raise TenantQuotaError("document bytes", held + memory_bytes, limits.document_bytes)
