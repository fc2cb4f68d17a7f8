"""Bearer tokens over real sockets: who is let in, and what a change of the tenants' file means for calls."""

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2
from reformer_client import UnauthenticatedError
from reformer_server.credentials import token_hash
from tests.server.conftest import Running, Serve
from tests.server.statuses import refused
from tests.server.tenants_files import client, table, token_of, until_refused, write
from tests.server.uploading import raw_exchange

METHODS = [
    method
    for module in (admin_pb2, document_pb2, inference_pb2, model_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tenants.toml", table("acme", tokens=2), table("umbrella"))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_no_rpc_is_open(serve: Serve, file: Path, method: Any) -> None:
    channel = (await serve(tenants=file)).channel
    path = f"/{method.containing_service.full_name}/{method.name}"
    with refused(grpc.StatusCode.UNAUTHENTICATED) as refusal:
        if method.client_streaming:
            await raw_exchange(channel, path, [b""])
        elif method.server_streaming:
            await channel.unary_stream(path)(b"").read()
        else:
            await channel.unary_unary(path)(b"")
    assert refusal.reason == "UNAUTHENTICATED"
    assert "send a bearer token" in refusal.message
    assert refusal.trailing["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        ["Bearer wrong"],
        ["token-of-acme"],
        ["Basic token-of-acme"],
        ["Bearer token-of-acme x"],
        ["Bearer "],
        [""],
        [token_hash("token-of-acme")],
        [f"Bearer {token_hash('token-of-acme')}"],
        ["Bearer token-of-acme", "Bearer wrong"],
        ["Bearer token-of-acme", "Bearer token-of-acme"],
    ],
)
async def test_wrong_credentials(serve: Serve, file: Path, headers: list[str]) -> None:
    running = await serve(tenants=file)
    with refused(grpc.StatusCode.UNAUTHENTICATED) as refusal:
        await load(running, *headers)
    assert "token-of-acme" not in refusal.message


async def load(running: Running, *headers: str) -> None:
    metadata = [("authorization", header) for header in headers]
    await running.model.GetLoad(model_pb2.GetLoadRequest(), metadata=metadata)


async def test_wrong_tokens_through_the_sdk(serve: Serve, file: Path) -> None:
    async with client(await serve(tenants=file), "stranger") as stranger:
        for attempt in (
            stranger.model(),
            stranger.documents.create("some text" * 100_000),
            stranger.score("some text"),
            stranger.generate("x").text(),
            stranger.documents.get("some-id"),
        ):
            with pytest.raises(UnauthenticatedError, match="doesn't know the bearer token") as raised:
                await attempt
            assert raised.value.request_id


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_right_credentials(serve: Serve, file: Path, scheme: str) -> None:
    running = await serve(tenants=file)
    for name in ("acme", "acme1", "umbrella"):
        await load(running, f"{scheme} {token_of(name)}")


async def test_health_and_reflection_stay_open(serve: Serve, file: Path) -> None:
    channel = (await serve(tenants=file)).channel
    health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    [response] = [response async for response in stub.ServerReflectionInfo(requests)]
    assert len(response.list_services_response.service) >= 3


async def test_nothing_else_is_different_for_a_tenant(serve: Serve, file: Path) -> None:
    async with client(await serve(tenants=file), "acme") as acme:
        assert (await acme.model()).name == "tiny"
        async with acme.documents.create("some text") as document:
            assert len((await document.generate("x", max_tokens=5).collect()).tokens) == 5
            assert len(await document.score_continuations([" a", " b"])) == 2
            assert [each.id async for each in acme.documents.list()] == [document.id]
        assert (await acme.score("some text")).tokens == 9


async def test_a_revoked_token_is_unknown_at_once_and_what_it_began_goes_on(serve: Serve, file: Path) -> None:
    running = await serve(tenants=file, step_seconds=0.001)
    async with (
        client(running, "acme") as old,
        client(running, "acme1") as new,
        old.generate("x", max_tokens=300) as stream,
    ):
        await anext(stream)
        write(file, f'[tenants.acme]\ntokens = ["{token_hash(token_of("acme1"))}"]')
        await until_refused(old, UnauthenticatedError)
        await new.load()
        assert len([token async for token in stream]) == 299


async def test_a_bad_file_leaves_all_as_it_was(serve: Serve, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = await serve(tenants=file)
    async with client(running, "acme") as acme, client(running, "umbrella") as umbrella:
        write(file, "[tenants.acme]\ntoken = []")
        await running.until(lambda: "unknown key 'token'" in caplog.text)
        await acme.load()
        await umbrella.load()
        write(file, table("umbrella"))
        await until_refused(acme, UnauthenticatedError)
        await umbrella.load()


async def test_refusals_are_counted_and_tokens_never_logged(
    serve: Serve, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    running = await serve(tenants=file)
    async with client(running, "acme") as acme, client(running, "stranger") as stranger:
        await acme.load()
        with pytest.raises(UnauthenticatedError):
            await stranger.load()
    await running.until(lambda: "GetLoad UNAUTHENTICATED" in caplog.text)
    assert running.metric("requests_total", method="ModelService/GetLoad", code="UNAUTHENTICATED") == 1
    assert "token-of" not in caplog.text
