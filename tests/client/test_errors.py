"""Every status becomes its class, with the details that came with it."""

import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from reformer_client import (
    Client,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    PreconditionViolation,
    ReformerError,
    ResourceExhaustedError,
    RetryPolicy,
)
from reformer_client.errors import ERROR_CLASSES
from tests.client.fake_server import FakeServer

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def all_subclasses(cls: type) -> set[type]:
    return {sub for each in cls.__subclasses__() for sub in (each, *all_subclasses(each))}


def test_one_class_a_status() -> None:
    assert set(ERROR_CLASSES) == set(CODES)
    assert set(ERROR_CLASSES.values()) == all_subclasses(ReformerError)
    for code, cls in ERROR_CLASSES.items():
        assert cls.code is code
        assert cls.__name__.removesuffix("Error").lower() == code.name.replace("_", "").lower()


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
@pytest.mark.parametrize("after", [0, 3], ids=["at once", "in the stream"])
def test_streams_raise_the_class_of_the_status(server: FakeServer, code: grpc.StatusCode, after: int) -> None:
    with Client(server.address, retry=RetryPolicy(max_attempts=1)) as client:
        server.fail("Generate", code, after=after)
        stream = client.generate("x")
        with pytest.raises(ERROR_CLASSES[code], match="as the test wants it") as raised:
            list(stream)
        assert raised.value.request_id == "request-of-the-server"
        assert raised.value.message == "as the test wants it"
        assert str(raised.value) == "as the test wants it (request request-of-the-server)"


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_unary_calls_and_uploads_raise_the_class_of_the_status(server: FakeServer, code: grpc.StatusCode) -> None:
    with Client(server.address, retry=RetryPolicy(max_attempts=1)) as client:
        server.fail("GetModel", code)
        with pytest.raises(ERROR_CLASSES[code]):
            client.model()
        server.fail("CreateDocument", code)
        with pytest.raises(ERROR_CLASSES[code]):
            client.documents.create("x")


def fail_with(client: Client, server: FakeServer, code: grpc.StatusCode, *details: object) -> ReformerError:
    server.fail("Tokenize", code, details=details)  # type: ignore[arg-type]
    with pytest.raises(ReformerError) as raised:
        client.tokenize("x")
    return raised.value


def test_field_violations(client: Client, server: FakeServer) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="must be at most 1")
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    error = fail_with(client, server, grpc.StatusCode.INVALID_ARGUMENT, detail)
    assert error.field_violations == (FieldViolation("sampling.top_p", "must be at most 1"),)
    assert error.details == (detail,)


def test_reason_and_metadata(client: Client, server: FakeServer) -> None:
    detail = error_details_pb2.ErrorInfo(reason="TOO_MANY_TOKENS", metadata={"max_tokens": "1048576"})
    error = fail_with(client, server, grpc.StatusCode.OUT_OF_RANGE, detail)
    assert error.reason == "TOO_MANY_TOKENS"
    assert error.metadata == {"max_tokens": "1048576"}


def test_preconditions(client: Client, server: FakeServer) -> None:
    detail = error_details_pb2.PreconditionFailure(
        violations=[{"type": "DOCUMENT_STATE", "subject": "documents/a", "description": "uploading"}]
    )
    error = fail_with(client, server, grpc.StatusCode.FAILED_PRECONDITION, detail)
    assert error.precondition_violations == (PreconditionViolation("DOCUMENT_STATE", "documents/a", "uploading"),)


def quota(description: str) -> error_details_pb2.QuotaFailure:
    return error_details_pb2.QuotaFailure(violations=[{"subject": "memory", "description": description}])


def test_memory_that_was_needed_and_free(client: Client, server: FakeServer) -> None:
    info = error_details_pb2.ErrorInfo(metadata={"needed_bytes": "1000", "free_bytes": "10"})
    words = quota("needs 2,000 bytes, 20 are free")
    error = fail_with(client, server, grpc.StatusCode.RESOURCE_EXHAUSTED, info, words)
    assert isinstance(error, ResourceExhaustedError)
    assert (error.needed_bytes, error.free_bytes) == (1000, 10)
    assert error.quota_violations == ("needs 2,000 bytes, 20 are free",)
    error = fail_with(client, server, grpc.StatusCode.RESOURCE_EXHAUSTED, words)
    assert (error.needed_bytes, error.free_bytes) == (2000, 20)


def test_retry_after(server: FakeServer) -> None:
    detail = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    with Client(server.address, retry=RetryPolicy(max_attempts=1)) as client:
        error = fail_with(client, server, grpc.StatusCode.UNAVAILABLE, detail)
    assert error.retry_after_seconds == 2.5


def test_no_details_and_unknown_ones(client: Client, server: FakeServer) -> None:
    error = fail_with(client, server, grpc.StatusCode.ABORTED, error_details_pb2.Help())
    assert error.details == error.field_violations == error.precondition_violations == error.quota_violations == ()
    assert error.reason is error.retry_after_seconds is error.needed_bytes is error.free_bytes is None
    assert error.metadata == {}


def test_the_clients_own_request_id_stands_in_for_the_servers(server: FakeServer) -> None:
    server.stall = True
    with Client(server.address) as client, pytest.raises(DeadlineExceededError) as raised:
        client.load(timeout=0.2)
    assert raised.value.request_id == server.calls[-1][1]["x-request-id"]
    assert isinstance(raised.value, TimeoutError)


def test_errors_survive_another_process() -> None:
    error = InvalidArgumentError(
        "bad", request_id="r", details=[error_details_pb2.ErrorInfo(reason="INVALID", metadata={"a": "b"})]
    )
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.reason) == (InvalidArgumentError, "bad (request r)", "INVALID")


def test_an_error_without_a_call_has_no_request_id() -> None:
    assert str(InternalError("odd")) == "odd"
