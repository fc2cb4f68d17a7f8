"""What a stored document is, in small checked JSON files: one for each content, one for each document id."""

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reformer_server.errors import StoredDocumentDamagedError

MAX_BYTES = 1 << 20

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ModelIdentity(_Strict):
    """Which model's keys, values and buckets these are. Others can't be used, and are refused."""

    weights: Digest
    """Of the configuration and all weights."""
    tokenizer: Digest
    hashing: Digest
    """Of all that decides about buckets: seed, rounds, buckets, chunks."""
    pages: str
    """How they lie in pages: dtype, and tokens a page."""


class ContentIdentity(_Strict):
    """What a stored content is the reading of."""

    tenant: str
    content_type: Count
    sha256: Digest
    model: ModelIdentity

    @cached_property
    def digest(self) -> str:
        """Of all of it, 64 hexadecimal digits."""
        return _digest(self.model_dump())


class ContentManifest(_Strict):
    """A stored content: it is there if this is there, for this is written last."""

    format: Literal[1] = 1
    identity: ContentIdentity
    tokens: Annotated[int, Field(ge=1, lt=2**31)]
    has_scores: bool
    notes: tuple[str, ...] = Field(strict=False)
    pages: Count
    page_bytes: Count
    data: Annotated[str, Field(pattern=r"^[0-9a-f.]+\.safetensors$")]
    """Name of the data's file, beside this one."""
    data_bytes: Count
    data_sha256: Digest


class DocumentRecord(_Strict):
    """A document's id, what it stands for, and until when."""

    format: Literal[1] = 1
    document_id: Annotated[str, Field(min_length=1, max_length=128)]
    identity: ContentIdentity
    content_bytes: Count
    tokens: Annotated[int, Field(ge=1, lt=2**31)]
    memory_bytes: Count
    has_scores: bool
    notes: tuple[str, ...] = Field(strict=False)
    create_time: Time
    expire_time: Time

    def is_of(self, tenant: str, document_id: str) -> bool:
        """Whether it is this id's."""
        return (self.identity.tenant, self.document_id) == (tenant, document_id)


Manifest = TypeVar("Manifest", ContentManifest, DocumentRecord)


class _Sealed(_Strict):
    sha256: Digest
    manifest: dict[str, Any]


def seal(manifest: ContentManifest | DocumentRecord) -> bytes:
    """The file's content: the manifest with its own digest."""
    values = manifest.model_dump(mode="json")
    return _canonical({"sha256": _digest(values), "manifest": values})


def unseal(content: bytes, kind: type[Manifest]) -> Manifest:
    """The manifest of a file. Raises StoredDocumentDamagedError, whatever is wrong with it."""
    try:
        sealed = _Sealed.model_validate_json(content)
        if _digest(sealed.manifest) != sealed.sha256:
            raise StoredDocumentDamagedError("its manifest isn't what was written")
        return kind.model_validate(sealed.manifest)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoredDocumentDamagedError(f"its manifest can't be read: {place}: {first['msg']}") from None


def _digest(values: object) -> str:
    return hashlib.sha256(_canonical(values)).hexdigest()


def _canonical(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
