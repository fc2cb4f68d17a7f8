"""The Dockerfile without Docker: what it copies and runs is done in other folders, up to a server that serves."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reformer_server.health import READINESS
from tests.deploy.manifests import ROOT, TOOLS

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions(stage: str) -> list[tuple[str, str]]:
    """Those of one stage, by their names."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    [body] = re.findall(rf"^FROM .* AS {stage}\n(.*?)(?=^FROM|\Z)", text, flags=re.M | re.S)
    lines = [line for line in body.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage `sources` copies, but what isn't sent to the builder."""
    folder = tmp_path_factory.mktemp("src")
    for name, rest in instructions("sources"):
        if name != "COPY":
            continue
        *files, target = rest.split()
        for file in files:
            if (ROOT / file).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(ROOT / file, folder / target, ignore=ignored)
            else:
                (folder / target).mkdir(exist_ok=True)
                shutil.copy(ROOT / file, folder / target)
    return folder


def build(sources: Path, variant: str, folder: Path) -> None:
    """Runs what the stage runs, for another folder than the image's."""
    [(name, rest)] = instructions(f"build-{variant}")
    command = shlex.split(re.sub(r"--mount=\S+ ", "", rest))
    assert (name, command[1:]) == ("RUN", [variant, "/opt/reformer"])
    environment = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}", "PIP_NO_COMPILE": "1"}  # saves half the time
    if variant == "cpu" and pip_finds_torch_for_cpus():
        environment["TORCH_INDEX"] = ""
    result = subprocess.run([command[0], variant, folder], cwd=sources, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def pip_finds_torch_for_cpus() -> bool:
    """Where the machine is set up to: then no other index is asked."""
    [torch] = re.findall(r"^torch==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    command = (sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", f"{torch}+cpu")
    return subprocess.run(command, capture_output=True).returncode == 0


def run(*command: str | Path, returncode: int = 0) -> str:
    """What it says; with nothing of this process's environment but where to find programs."""
    environment = {"PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert result.returncode == returncode, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_lint() -> None:
    run(TOOLS / "hadolint", "--strict-labels", DOCKERFILE)


def test_base_images_are_pinned() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    stages = set(re.findall(r" AS (\S+)", text))
    bases = {base for base in re.findall(r"^FROM (\S+)", text, flags=re.M) if base not in stages}
    assert bases == {"python:${PYTHON}"}
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", text, flags=re.M)


def test_all_that_is_copied_is_sent_to_the_builder() -> None:
    sent = set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    copied = {file for name, rest in instructions("sources") if name == "COPY" for file in rest.split()[:-1]}
    assert {line.removeprefix("!") for line in sent if line.startswith("!")} == copied
    assert "*" in sent


def test_servers_start_as_the_settings_allow() -> None:
    """Open to other machines, so not before it is told who may call."""
    [environment] = [rest for name, rest in instructions("server") if name == "ENV"]
    values = dict(pair.split("=", 1) for pair in environment.split())
    assert values["REFORMER_HOST"] == "0.0.0.0"
    volumes = [rest for name, rest in instructions("server") if name == "VOLUME"]
    assert [Path(values["REFORMER_STORE"]).parent] == [Path(volume) for volume in volumes]


def test_client(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reformer"
    build(sources, "client", folder)
    assert run(folder / "bin" / "reformer", "--version").startswith("reformer, version ")
    run(folder / "bin" / "python", "-c", "import reformer_client; reformer_client.Client")
    missing = "import importlib.util as u; assert not any(map(u.find_spec, ('torch', 'pip', 'pytest')))"
    run(folder / "bin" / "python", "-c", missing)
    assert "reformer-serve[server]" in run(folder / "bin" / "reformer", "serve", returncode=1)


@pytest.mark.timeout(400)
def test_server(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reformer"
    build(sources, "cpu", folder)
    missing = "import importlib.util as u; assert not any(map(u.find_spec, ('pip', 'pytest', 'matplotlib')))"
    run(folder / "bin" / "python", "-c", missing)
    run(folder / "bin" / "python", "-c", "import fsspec; fsspec.get_filesystem_class('s3')")
    with serving(folder / "bin" / "reformer", tmp_path / "documents") as port:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service=READINESS)
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
        server = f"127.0.0.1:{port}"
        continued = run(folder / "bin" / "reformer", "--server", server, "generate", "Emma", "--max-tokens", "8")
        assert continued.strip()


@contextmanager
def serving(reformer: Path, store: Path) -> Iterator[int]:
    """The server that was installed, on a free port, with the embedded model."""
    options = ("--port", "0", "--metrics-port", "0", "--memory", "1GiB", "--store", store, "--json")
    command = (reformer, "serve", *options)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"PATH": "/usr/bin:/bin"}, cwd="/"
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["port"]
            process.terminate()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
