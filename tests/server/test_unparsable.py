"""Bytes that are no message of the contract are the client's mistake, and told as such."""

import grpc
import pytest

from reformer_server.server import SERVICES
from tests.server.conftest import Running
from tests.server.statuses import refused
from tests.server.uploading import header, raw_exchange

NO_WIRE_FORMAT = b"\xff\xff\xff"
BAD_UTF8 = b"\x0a\x02\xff\xff"  # field 1, of two bytes
GET = "DocumentService/GetDocument"
GENERATE = "InferenceService/Generate"
CREATE = "DocumentService/CreateDocument"


async def send(running: Running, method: str, *requests: bytes) -> None:
    """A unary request is on the wire what a stream of one is."""
    assert f"reformer.v1.{method.partition('/')[0]}" in SERVICES
    await raw_exchange(running.channel, f"/reformer.v1.{method}", requests)


@pytest.mark.parametrize(
    ("method", "requests"),
    [
        (GET, [NO_WIRE_FORMAT]),
        (GET, [BAD_UTF8]),
        (GENERATE, [NO_WIRE_FORMAT]),
        (GENERATE, [BAD_UTF8]),
        (CREATE, [NO_WIRE_FORMAT]),
        (CREATE, [header().SerializeToString(), NO_WIRE_FORMAT]),
    ],
)
async def test_is_invalid_argument(running: Running, method: str, requests: list[bytes]) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await send(running, method, *requests)
    assert refusal.field == "request"
    assert "reformer.v1." in refusal.message
    labels = {"method": method, "code": "INVALID_ARGUMENT"}
    registry = running.server.metrics.registry
    await running.until(lambda: registry.get_sample_value("reformer_requests_total", labels) == 1)
    await running.until_idle()
    assert running.server.uploads.nbytes == 0
