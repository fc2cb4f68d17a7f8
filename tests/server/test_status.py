"""The error table: complete, and what a client reads of it."""

import base64
import inspect
from types import ModuleType
from urllib.parse import quote

import grpc
import pytest
import torch
from google.rpc import error_details_pb2

from reformer_core import errors as core
from reformer_server import errors as server
from reformer_server.status import TABLE, pushback, row_of, to_status

BASES = {core.ReformerError, server.ServerError}
AT_START_ONLY = {core.CheckpointError}  # a model that can't be loaded is never served


def errors_of(module: ModuleType) -> set[type[Exception]]:
    classes = inspect.getmembers(module, inspect.isclass)
    return {cls for _, cls in classes if issubclass(cls, Exception) and cls.__module__ == module.__name__}


def test_table_is_complete() -> None:
    assert (
        set(TABLE)
        == (errors_of(core) | errors_of(server) | {MemoryError, torch.OutOfMemoryError}) - BASES - AT_START_ONLY
    )


EXAMPLES = {
    server.InvalidFieldError("chunk.offset", "must be 5"): "INVALID_ARGUMENT",
    server.DocumentNotFoundError("a"): "NOT_FOUND",
    server.DocumentNotReadyError("a", "uploading"): "FAILED_PRECONDITION",
    server.NoScoresError("a"): "FAILED_PRECONDITION",
    server.DocumentExistsError("a"): "ALREADY_EXISTS",
    server.UploadAbortedError("a", "deleted"): "ABORTED",
    server.UploadMemoryError(5, 3): "RESOURCE_EXHAUSTED",
    server.StoreFullError(5, 3): "RESOURCE_EXHAUSTED",
    server.TenantQuotaError("documents", 3, 2): "RESOURCE_EXHAUSTED",
    server.OtherModelError("a"): "FAILED_PRECONDITION",
    server.StoredDocumentDamagedError("its data ends too early"): "DATA_LOSS",
    server.StoreUnavailableError("s3://b", "no route"): "UNAVAILABLE",
    server.UnauthenticatedError("no token"): "UNAUTHENTICATED",
    server.UnknownIdentityError(["cn:a"], tenants=0): "PERMISSION_DENIED",
    server.NotAdminError("tenant 'a' is no admin"): "PERMISSION_DENIED",
    server.TooManyStreamsError(3): "RESOURCE_EXHAUSTED",
    server.TokenRateError(50, 100, 1.5): "RESOURCE_EXHAUSTED",
    server.DrainingError(): "UNAVAILABLE",
    server.EngineStoppedError(): "UNAVAILABLE",
    core.InvalidTokensError("empty"): "INVALID_ARGUMENT",
    core.InvalidTextError("no UTF-8"): "INVALID_ARGUMENT",
    core.InvalidParameterError("top_p", "must be above 0"): "INVALID_ARGUMENT",
    core.TooManyTokensError(5, 4): "OUT_OF_RANGE",
    core.OutOfMemoryError(5, 4): "RESOURCE_EXHAUSTED",
    core.QueueFullError(9): "RESOURCE_EXHAUSTED",
    core.CancelledError(): "CANCELLED",
    core.DeadlineExceededError(): "DEADLINE_EXCEEDED",
    MemoryError(): "RESOURCE_EXHAUSTED",
    torch.OutOfMemoryError("device"): "RESOURCE_EXHAUSTED",
}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_row(error: Exception) -> None:
    status = to_status(error, "r1")
    code = getattr(grpc.StatusCode, EXAMPLES[error])
    assert status.code == code.value[0]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "reformer"
    assert info.reason
    kinds = {detail.TypeName().removeprefix("google.rpc.") for detail in status.details}
    expected = {
        "INVALID_ARGUMENT": "BadRequest",
        "FAILED_PRECONDITION": "PreconditionFailure",
        "RESOURCE_EXHAUSTED": "QuotaFailure",
        "UNAVAILABLE": "RetryInfo",
    }.get(EXAMPLES[error])
    assert expected is None or expected in kinds
    waiting_helps = EXAMPLES[error] in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    assert ("RetryInfo" in kinds) == (waiting_helps and not isinstance(error, server.TenantQuotaError))


def test_examples_are_complete() -> None:
    assert {type(error) for error in EXAMPLES} == set(TABLE)


def test_no_retry_for_what_never_fits() -> None:
    status = to_status(core.OutOfMemoryError(5, 4, fits_when_idle=False), "r1")
    assert not any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
    assert pushback(status) == ()


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.0, 0), (0.0001, 1), (1.5, 1500), (90.2501, 90_251)])
def test_the_delay_is_the_errors_own_and_never_too_short(seconds: float, milliseconds: int) -> None:
    status = to_status(server.TokenRateError(50, 100, seconds), "r1")
    info = error_details_pb2.RetryInfo()
    [packed] = [detail for detail in status.details if detail.Is(info.DESCRIPTOR)]
    packed.Unpack(info)
    assert info.retry_delay.ToMilliseconds() == milliseconds
    assert pushback(status) == (("grpc-retry-pushback-ms", str(milliseconds)),), "gRPC's own retries are told as well"


def test_torchs_lack_of_memory_on_a_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert row_of(caught.value) == TABLE[MemoryError]


def test_a_bug_shows_nothing_but_the_request_id() -> None:
    status = to_status(KeyError("secret"), "r1")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "r1" in status.message
    assert b"secret" not in status.SerializeToString()


def test_subclasses_have_their_base_class_row() -> None:
    class Special(core.QueueFullError):
        pass

    assert row_of(Special(1)) is TABLE[core.QueueFullError]
    assert row_of(ValueError()) is None


@pytest.mark.parametrize("character", ["x", "é", "漢", "😀"])
def test_long_messages_fit_into_trailing_metadata(character: str) -> None:
    """8 KiB of it: the message percent-encoded and, within the details, in base64."""
    error = server.InvalidFieldError("field", character * 100_000)
    status = to_status(error, "r1")
    assert len(quote(status.message)) + len(base64.b64encode(status.SerializeToString())) < 7 << 10
    assert status.message.endswith(character + "…")
