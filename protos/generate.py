"""Generates the contract's Python code beside its .proto files; with --check, only says whether it is up to date."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent


def generate(output: Path) -> None:
    """Writes messages, stubs and type stubs for every .proto file under `output`."""
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"),
            f"--plugin=protoc-gen-mypy={Path(sys.executable).with_name('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).with_name('protoc-gen-mypy_grpc')}",
            *(f"--python_out={output}", f"--grpc_python_out={output}"),
            *(f"--mypy_out=quiet:{output}", f"--mypy_grpc_out=quiet:{output}"),
            *(str(path) for path in sorted(PROTOS.rglob("*.proto"))),
        ],
        check=True,
    )


def stale_files() -> list[str]:
    """Names of the generated files that are missing, superfluous or not what the .proto files give now."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        return sorted(
            name
            for name in generated_files(PROTOS) | generated_files(Path(directory))
            if read(PROTOS / name) != read(Path(directory) / name)
        )


def generated_files(root: Path) -> set[str]:
    """Relative names of the generated files under `root`."""
    return {str(path.relative_to(root)) for path in root.rglob("*_pb2*.py*") if path.suffix in {".py", ".pyi"}}


def read(path: Path) -> bytes | None:
    """The file's content, None if there is no such file."""
    return path.read_bytes() if path.exists() else None


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    if parser.parse_args().check:
        if stale := stale_files():
            sys.exit(f"generated code is out of date, run `make proto`: {', '.join(stale)}")
    else:
        generate(PROTOS)


if __name__ == "__main__":
    main()
