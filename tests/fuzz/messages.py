"""Messages of the contract, made from its descriptors: what is added to the contract is fuzzed without a word here.

Each field is left out, usual, or extreme. Usual values have to be known by name, or nothing gets past the first check.
"""

import base64
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2
from tests.fuzz.mutations import hostile_texts
from tests.server.uploading import chunk, header

CONTENT = b"All happy families are alike; every unhappy family is unhappy in its own way."
IDS = bytes(byte for id in range(12) for byte in (id, 0, 0, 0))
DOCUMENTS = ("a", "b")
"""Documents that are there."""

METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for module in (admin_pb2, document_pb2, inference_pb2, model_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name != "Drain"
)
"""All RPCs of the contract, but the one after which the server takes no other."""


def _page_tokens() -> list[str]:
    inside = (b"1.5 a", b"nan a", b"inf a", b"-inf ", b"1 a b", b"\xff", b"1e999 \0", b"1_0 a")
    return [base64.urlsafe_b64encode(token).decode() for token in inside]


USUAL: dict[str, st.SearchStrategy[Any]] = {
    "document_id": st.sampled_from([*DOCUMENTS, *DOCUMENTS, "c", "..", "~", "no-such"]),
    "content_type": st.sampled_from([1, 2, 3]),
    "data": st.sampled_from([CONTENT, CONTENT[:20], IDS, b"\xff\xfe", CONTENT[:7] + b"\xc3", b"x" * 5000]),
    "offset": st.sampled_from([0, 0, 0, 1, len(CONTENT), len(IDS)]),
    "total_bytes": st.sampled_from([len(CONTENT), len(IDS), 20, 5000]),
    "sha256": st.just(bytes(32)),
    "page_size": st.sampled_from([1, 2, 1000]),
    "page_token": st.sampled_from(_page_tokens()),
    "start_token": st.integers(0, 5),
    "end_token": st.integers(0, len(CONTENT)),
    "text": st.sampled_from(["x", "every unhappy family", "漢字", "\0"]),
    "stop": st.sampled_from(["a", "ab", "family", "é"]),
    "ids": st.integers(0, 255),
    "stop_ids": st.integers(0, 300),
    "max_tokens": st.integers(1, 5),
    "top_k": st.integers(0, 300),
    "top_logprobs": st.integers(0, 20),
    "temperature": st.floats(0, 2, width=32),
    "columns": st.integers(1, 3),
    "seconds": st.sampled_from([1, 60, 3600]),
    "nanos": st.sampled_from([0, 1, 500_000_000]),
}
"""What a field of this name may well have."""

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def extremes(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values that the wire allows, and hardly anybody means."""
    kind = field.cpp_type
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        return st.sampled_from([low, low + 1, -1 if low else 0, 0, 1, 2**31 - 1, high - 1, high]) | st.integers(
            low, high
        )
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        edges = [float("nan"), float("inf"), float("-inf"), -0.0, -1.0, 1e-45, 1e-38, 3.4e38, 2.0]
        return st.sampled_from(edges) | st.floats(width=32)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([0, 99, -1, 2**31 - 1])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=64) | st.just(bytes(70_000))
    return hostile_texts()


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of this type, fields left out, usual and extreme."""
    return _messages(descriptor)


@st.composite
def _messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    message = GetMessageClass(descriptor)()
    fields = descriptor.fields
    for field, byte in zip(fields, draw(st.binary(min_size=len(fields), max_size=len(fields))), strict=True):
        how = byte % 10
        if how < 3:
            continue
        if field.message_type is not None:
            values = _messages(field.message_type)
        elif how == 3 or field.name not in USUAL:
            values = extremes(field)
        else:
            values = USUAL[field.name]
        if not field.is_repeated:
            put(message, field, draw(values))
            continue
        several = draw(st.lists(values, min_size=1, max_size=4))
        if how == 9:
            several = (several * 1100)[:1100]
        for value in several:
            put(message, field, value)
    return message


def put(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Sets the field, or appends to it."""
    there = getattr(message, field.name)
    if field.is_repeated:
        (there.add().CopyFrom if field.message_type else there.append)(value)
    elif field.message_type:
        there.CopyFrom(value)
    else:
        setattr(message, field.name, value)


def conversations(method: MethodDescriptor) -> st.SearchStrategy[list[Message]]:
    """What a client may send in one call: the one request, or an upload in which something is amiss."""
    if not method.client_streaming:
        return st.tuples(messages(method.input_type)).map(list)
    return _uploads(method.input_type)


@st.composite
def _uploads(draw: st.DrawFn, request: Descriptor) -> list[Message]:
    cls, header_type = GetMessageClass(request), request.fields_by_name["header"].message_type
    assert header_type is not None
    begin = draw(messages(header_type))
    sent: list[Message] = [cls(header=begin)]
    content = draw(USUAL["data"])
    if draw(st.booleans()):  # a header that fits
        begin = header(content, document_id=draw(USUAL["document_id"])).header
        kept = {field.name for field in header_type.fields}
        fits = {field.name: value for field, value in begin.ListFields() if field.name in kept}
        sent = [cls(header=type(sent[0].header)(**fits))]  # type: ignore[attr-defined]
    step = draw(st.sampled_from([len(content), 7, 1000]))
    for start in range(0, len(content), step)[:8]:
        sent.append(cls(chunk=chunk(content[start : start + step], start).chunk))
    for _ in range(draw(st.integers(0, 2))):
        where = draw(st.integers(0, len(sent)))
        sent[where : where + draw(st.integers(0, 1))] = [draw(messages(request))]
    return sent
