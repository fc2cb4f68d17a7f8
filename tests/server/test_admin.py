"""AdminService: who may call it, draining, and all tenants' documents."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reformer.v1 import admin_pb2, admin_pb2_grpc
from reformer_client import AsyncClient, OwnedDocument, PermissionDeniedError, ReformerError, UnavailableError
from reformer_server.health import LIVENESS, READINESS
from tests.server.conftest import Running, Serve
from tests.server.statuses import refused
from tests.server.tenants_files import ONCE, client, table, write
from tests.server.uploading import create_document


def anonymous(running: Running) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{running.server.port}", retry=ONCE, timeout=20)


async def listed(client: AsyncClient, page_size: int | None = None) -> list[OwnedDocument]:
    return [document async for document in client.admin.documents(page_size=page_size)]


async def calls_of(client: AsyncClient) -> AsyncIterator[Callable[[], Any]]:
    yield client.admin.drain
    yield lambda: listed(client)


async def is_refused(client: AsyncClient, reason: str) -> bool:
    async for call in calls_of(client):
        with pytest.raises(PermissionDeniedError, match=reason) as raised:
            await call()
        assert raised.value.reason == "NOT_ADMIN"
    return not (await client.load()).draining


async def test_only_a_tenant_that_is_an_admin_may_call_it(serve: Serve, tmp_path: Path) -> None:
    file = write(tmp_path / "tenants.toml", table("acme"), table("ops", "admin = true"), table("x", "admin = false"))
    running = await serve(tenants=file)
    async with client(running, "acme") as acme, client(running, "x") as other, client(running, "ops") as ops:
        assert await is_refused(acme, "tenant 'acme' is no admin")
        assert await is_refused(other, "tenant 'x' is no admin")
        await acme.documents.create("small", document_id="a")
        await ops.documents.create("of another size", document_id="a")
        assert [(each.tenant, each.info.id, each.info.tokens) for each in await listed(ops)] == [
            ("ops", "a", 15),
            ("acme", "a", 5),
        ]
        await ops.admin.drain()
        assert (await acme.load()).draining


@pytest.mark.parametrize("settings", [{"allow_anonymous": True}, {"host": "0.0.0.0", "allow_anonymous": True}])
async def test_without_tenants_a_server_that_others_reach_has_no_admin(serve: Serve, settings: dict[str, Any]) -> None:
    """Behind a mesh's sidecar, whoever calls seems to call from this machine."""
    async with anonymous(await serve(**settings)) as everybody:
        assert await is_refused(everybody, "other machines reach this server, and no tenants are configured")


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-forwarded-proto", "forwarded", "via", "x-envoy-internal"])
async def test_without_tenants_a_proxy_on_this_machine_opens_nothing(running: Running, name: str) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(running.channel)
    with refused(grpc.StatusCode.PERMISSION_DENIED) as refusal:
        await stub.Drain(admin_pb2.DrainRequest(), metadata=((name, "x"),))
    assert refusal.reason == "NOT_ADMIN"


async def test_documents_come_by_size_in_pages(running: Running) -> None:
    sizes = {"middle": 600, "small": 5, "large": 2000, "as-small": 5}
    for document_id, size in sizes.items():
        await create_document(running, document_id[0].encode() * size, document_id=document_id)
    async with anonymous(running) as admin:
        whole = await listed(admin)
        assert [each.info.id for each in whole] == ["large", "middle", "as-small", "small"]
        for page_size in (1, 3):
            assert [each.info for each in await listed(admin, page_size)] == [each.info for each in whole]
        for each in whole:
            assert (each.tenant, each.in_memory, each.info.tokens) == ("anonymous", True, sizes[each.info.id])
            assert each.last_use_time is not None
            assert abs(each.last_use_time.timestamp() - time.time()) < 10
        for wrong in ({"page_size": 0}, {"page_size": 1001}):
            with pytest.raises(ReformerError, match="must be 1 to 1000"):
                await listed(admin, **wrong)
    stub = admin_pb2_grpc.AdminServiceStub(running.channel)
    for token in ("x", "MS41", "bmFuZQ=="):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            await stub.ListAllDocuments(admin_pb2.ListAllDocumentsRequest(page_token=token))
        assert refusal.field == "page_token"


async def test_draining_finishes_what_runs(serve: Serve) -> None:
    running = await serve(step_seconds=0.005)
    health = health_pb2_grpc.HealthStub(running.channel)

    async def serves(service: str) -> bool:
        status = (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    async with anonymous(running) as admin, admin.generate("x", max_tokens=60) as stream:
        await anext(stream)
        assert ((load := await admin.load()).running_calls, load.draining) == (1, False)
        for _ in range(2):
            await admin.admin.drain()
        assert ((load := await admin.load()).running_calls, load.draining) == (1, True)
        assert not await serves("")
        assert not await serves(READINESS)
        assert await serves(LIVENESS)
        with pytest.raises(UnavailableError) as raised:
            await admin.score("text")
        assert raised.value.reason == "DRAINING"
        assert await listed(admin) == []
        assert len([token async for token in stream]) == 59
        await running.until(lambda: running.server._admission.inside == 0)
        await running.server._health.look()
        assert not await serves(READINESS)


async def test_what_the_load_says(serve: Serve, tmp_path: Path) -> None:
    running = await serve(store_quota_bytes=2**30)
    await create_document(running, b"some text")
    async with anonymous(running) as admin:
        load = await admin.load()
    assert (load.documents, load.stored_documents, load.unstored_documents) == (1, 0, 0)
    assert load.document_bytes == load.used_page_bytes > 0
    assert (load.weights_bytes, load.store_quota_bytes) == (1000, 2**30)
