"""Every RPC of the contract, through real sockets: bytes that are no messages, and messages that nobody should send."""

import string
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from hypothesis import strategies as st

from reformer_core.tokenizers import ByteTokenizer, PixelTokenizer
from reformer_server import ServedModel
from tests.fuzz.messages import METHODS, conversations
from tests.fuzz.mutations import hostile_texts, mutated
from tests.fuzz.serving import Metadata, served
from tests.fuzz.target import Judge, Target
from tests.server.conftest import Running, tiny_served_model
from tests.server.fake_engine import FakeEngine
from tests.server.test_real_engine import MAX_RUNNING, make_engine

Case = tuple[MethodDescriptor, list[bytes], Metadata]

REAL_ENGINE = [method for method in METHODS if method.containing_service.name != "ModelService"]


@st.composite
def cases(draw: st.DrawFn, methods: list[MethodDescriptor], *, damaged: bool = False, metadata: bool = False) -> Case:
    """A call: its requests, perhaps with some bytes changed, and metadata."""
    method = draw(st.sampled_from(methods))
    requests = [request.SerializeToString() for request in draw(conversations(method))]
    if damaged and requests:
        index = draw(st.integers(0, len(requests) - 1))
        requests[index] = draw(mutated(requests[index : index + 1]))
    return method, requests, draw(headers()) if metadata else ()


@st.composite
def headers(draw: st.DrawFn) -> Metadata:
    """Metadata that a client is able to send."""
    name = st.text(string.ascii_lowercase + string.digits + "-_.", min_size=1, max_size=20)
    key = st.sampled_from(["x-document-id", "x-request-id", "authorization", "user-agent", "cookie"]) | name
    text = hostile_texts() | st.sampled_from(["a", "b", "Bearer ", "Bearer x", "Basic eDp5", "x" * 9000])
    sent: list[tuple[str, str | bytes]] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 4)) == 0:
            sent.append((f"x-{draw(name)}-bin", draw(st.binary(max_size=50))))
        else:
            printable = "".join(character for character in draw(text) if " " <= character <= "~")
            reserved = (own := draw(key)).startswith(("grpc-", ":")) or own.endswith("-bin")
            sent.append(("x-other" if reserved else own, printable))
    return sent


def _judging(
    model: Callable[[], ServedModel],
    engine: Callable[[ServedModel], Any],
    look_inside: Callable[[Running], None] = lambda running: None,
) -> Callable[[], AbstractContextManager[Judge[Case]]]:
    @contextmanager
    def judging() -> Iterator[Judge[Case]]:
        loaded = model()
        with served(loaded, lambda: engine(loaded), look_inside, upload_retention_seconds=0.0) as (server, runner):
            yield lambda case: runner.run(server.judge(*case))

    return judging


def _text() -> ServedModel:
    return tiny_served_model(ByteTokenizer())


def _pictures() -> ServedModel:
    return tiny_served_model(PixelTokenizer(2, 2))


def _fake(model: ServedModel) -> FakeEngine:
    return FakeEngine(vocab_size=model.vocab_size)


def _pages_are_whole(running: Running) -> None:
    running.engine.pool.check([])
    assert running.engine.table.free_rows == MAX_RUNNING


BYTES = Target(
    "rpc-bytes",
    "requests of all RPCs with bytes changed, to a server",
    4_000,
    lambda: cases(list(METHODS), damaged=True),
    _judging(_text, _fake),
)
FIELDS = Target(
    "rpc-fields",
    "requests of all RPCs, fields left out, usual or extreme, to a server of a text model",
    4_000,
    lambda: cases(list(METHODS)),
    _judging(_text, _fake),
)
PICTURES = Target(
    "rpc-pictures",
    "the same to a server of a picture model",
    1_500,
    lambda: cases(list(METHODS)),
    _judging(_pictures, _fake),
)
METADATA = Target(
    "rpc-metadata",
    "calls with hostile metadata",
    1_500,
    lambda: cases(list(METHODS), metadata=True),
    _judging(_text, _fake),
)
ENGINE = Target(
    "rpc-engine",
    "requests of documents and inference, to a server on the real engine",
    1_500,
    lambda: cases(REAL_ENGINE),
    _judging(_text, make_engine, _pages_are_whole),
)
