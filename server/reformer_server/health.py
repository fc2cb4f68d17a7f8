"""What the server says of its health: that it is alive, and that it can serve.

A server that isn't alive should be started anew. One that is, but can't serve, should get no calls for now: it warms
up, drains, or computes nothing that is of use.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from reformer_server.errors import EngineStoppedError

LIVENESS = "liveness"
READINESS = "readiness"

CHECK_SECONDS = 10.0
"""Between two checks."""
STUCK_SECONDS = 60.0
"""A turn of the engine takes a fraction of a second; one that takes this long isn't expected to end."""

Status = health_pb2.HealthCheckResponse

logger = logging.getLogger(__name__)


class Health:
    """The service grpc.health.v1.Health: `liveness` by itself; `readiness`, all services, and "" together."""

    def __init__(self, services: Iterable[str], forward: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """`forward` has the engine compute something small, and says whether the result is sound."""
        self._ready_names = ("", READINESS, *services)
        self._forward = forward
        self._servicer = health.aio.HealthServicer()
        self._draining = False
        self._sound = True
        self.alive = False
        """The engine ends its turns. Any thread may ask."""
        self.ready = False
        """It is warm, doesn't drain, and its last forward pass was sound. Any thread may ask."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Makes it a service of `server`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def started(self) -> None:
        """The engine is there, and warms up: alive, not ready."""
        await self._say(alive=True, ready=False)

    async def drain(self) -> None:
        """Never ready again; alive to the end."""
        self._draining = True
        await self._say(alive=self.alive, ready=False)

    async def watch(self) -> None:
        """Looks every now and then until it is cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Finds out whether the engine still computes, however long that takes, and says so."""
        check = asyncio.create_task(self._forward())
        try:
            await asyncio.wait({check}, timeout=STUCK_SECONDS)
            if not check.done():
                logger.critical("the engine hasn't ended its turn for %.0f s: NOT alive", STUCK_SECONDS)
                await self._say(alive=False, ready=False)
            sound = await check  # a second question would only wait behind the first one
        except EngineStoppedError:
            await self._say(alive=False, ready=False)
        except Exception:
            if self._sound:
                logger.exception("a forward pass of one token failed: NOT ready")
            self._sound = False
            await self._say(alive=True, ready=False)
        else:
            if self._sound and not sound:
                logger.error("a forward pass of one token gave numbers that aren't finite: NOT ready")
            self._sound = sound
            await self._say(alive=True, ready=sound)
        finally:
            check.cancel()

    async def _say(self, *, alive: bool, ready: bool) -> None:
        self.alive, self.ready = alive, ready and not self._draining
        good = {LIVENESS: self.alive, **dict.fromkeys(self._ready_names, self.ready)}
        for name, serves in good.items():
            await self._servicer.set(name, Status.SERVING if serves else Status.NOT_SERVING)
