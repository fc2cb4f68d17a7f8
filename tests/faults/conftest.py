"""Servers in processes of their own, real sockets and real signals; and the two sizes that each test has."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from benchmarks.serving import ServerProcess, serving
from tests.core.conftest import many_slices, small_tails
from tests.e2e.conftest import model_directory
from tests.faults.campaign import Campaign

__all__ = ["many_slices", "model_directory", "small_tails"]  # fixtures, needed here too

Start = Callable[..., ServerProcess]

GRPCS_OWN = re.compile(
    r"[^\n]*grpc\._cython\.cygrpc: Invalid encoding[^\n]*\nTraceback[^\n]*\n(?:  [^\n]*\n)+[^\n]*\n?"
)
"""What gRPC itself says about metadata that are no UTF-8, before it refuses the call."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign", action="store_true", help="each fault as often as `make soak` tries it")


@pytest.fixture(scope="session")
def campaign(request: pytest.FixtureRequest) -> Campaign:
    # Without a default it would raise where this file was read after the command line, as in a run of all tests.
    return Campaign(full=request.config.getoption("--campaign", False))


@pytest.fixture(scope="session")
def start(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers, each with a log; those that a test leaves behind are killed at the end."""
    numbers, logs = count(), tmp_path_factory.mktemp("logs")
    with ExitStack() as servers:

        def start(*arguments: object, program: list[str] | None = None) -> ServerProcess:
            options = ("--model", model_directory, "--dtype", "float32", "--memory", "1GiB", *arguments)
            log = logs / f"{next(numbers)}.log"
            return servers.enter_context(serving(*options, threads=1, program=program, log=log))

        yield start


@pytest.fixture(scope="session")
def shared_server(start: Start) -> ServerProcess:
    return start("--max-running", 128)


@pytest.fixture
def server(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    """The server that most tests share: it has survived, and has met no bug."""
    already = len(shared_server.log)
    yield shared_server
    assert shared_server.process.poll() is None, "the server is gone"
    said = GRPCS_OWN.sub("", shared_server.log[already:])
    assert "Traceback" not in said, said
    internal = {name: value for name, value in shared_server.metrics().items() if 'code="INTERNAL"' in name}
    assert not internal, internal
