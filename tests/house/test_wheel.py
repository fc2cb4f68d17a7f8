"""What a user installs: the wheel alone gives a client without torch, and carries all that the server needs."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "client", "protos", "reformer_core", "server")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing that lies about in the working tree gets into it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info")
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", copy / "dist", copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_wheel_has_types_contract_and_the_embedded_model(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    assert {f"{p}/py.typed" for p in ("reformer", "reformer_core", "reformer_server", "reformer_client")} <= names
    assert {f"reformer/v1/{s}" for s in ("model.proto", "model_pb2.py", "model_pb2.pyi", "model_pb2_grpc.pyi")} <= names
    assert {f"reformer_core/embedded/text/{f}" for f in ("config.json", "model.safetensors", "spiece.model")} <= names
    assert {f"reformer_client/report/assets/{f}" for f in ("page.html", "style.css", "main.js")} <= names
    assert "reformer_core/train/cli.py" in names
    assert wheel.stat().st_size < 16 * 2**20  # the embedded model may have 10 MB


def test_plain_install_is_the_client_without_torch(wheel: Path, tmp_path: Path) -> None:
    """Asks the package index for the client's few dependencies."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    pip(python, "install", "--constraint", ROOT / "constraints.txt", wheel)
    run(python, "-c", "import reformer_client; reformer_client.Client, reformer_client.AsyncClient", cwd=tmp_path)
    run(python, "-c", "import importlib.util as u; assert not u.find_spec('torch') and not u.find_spec('numpy')")
    assert "documents" in run(tmp_path / "venv/bin/reformer", "--help", cwd=tmp_path).stdout
    serve = run(tmp_path / "venv/bin/reformer", "serve", cwd=tmp_path, returncode=1)
    assert "reformer-serve[server]" in serve.stderr


def pip(python: str | Path, *arguments: str | Path) -> None:
    """Runs pip of that interpreter."""
    run(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def run(*command: str | Path, cwd: Path | None = None, returncode: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command that must end with that code, and shows all that it said if it doesn't."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == returncode, f"{command}\n{result.stdout}{result.stderr}"
    return result
