"""Who may import whom: read from the sources, so that a rule also holds for imports inside functions."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "reformer_client": ROOT / "client/reformer_client",
    "reformer_core": ROOT / "reformer_core",
    "reformer_server": ROOT / "server/reformer_server",
}
OURS = {"reformer", *PACKAGES}
ALLOWED_OURS = {
    "reformer_client": {"reformer.v1"},
    "reformer_core": set(),
    "reformer_server": {"reformer.v1", "reformer_core"},
}
CORE_NEVER = {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "google", "asyncio"}


def sources(package: str) -> list[Path]:
    """The package's modules."""
    return sorted(PACKAGES[package].rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a source file imports, wherever in the file; none of its own package's."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from reformer import v1` names a module after `import`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(package: str) -> list[str]:
    """Imports that break the rule, as "file: module"."""
    allowed = ALLOWED_OURS[package] | {package}
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources(package)
        for module in imported_modules(path)
        if module.partition(".")[0] in OURS
        and not any(module == name or module.startswith(f"{name}.") for name in allowed)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    assert sources(package)
    assert violations(package) == []


def test_core_knows_neither_grpc_nor_protobuf_nor_asyncio() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources("reformer_core")
        for module in imported_modules(path)
        if module.partition(".")[0] in CORE_NEVER
    ]
    assert found == []


def test_client_reaches_other_packages_by_entry_points_only() -> None:
    """A module's name in a string (for import_module) would go round the rule."""
    names = [
        f"{path.relative_to(ROOT)}: {node.value}"
        for path in sources("reformer_client")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"reformer_(core|server)([.:]\S*)?", node.value)
    ]
    assert names == []


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("reformer_client", ["telemetry"]),
        ("reformer_core", ["server", "train"]),
        ("reformer_server", ["ray", "server", "telemetry"]),
    ],
)
def test_third_party_imports_are_declared(package: str, extras: list[str]) -> None:
    project = project_table()
    declared = names(project["dependencies"])
    declared |= {name for extra in extras for name in names(project["optional-dependencies"][extra])}
    undeclared = {
        module for module, candidates in third_party_imports(package).items() if declared.isdisjoint(candidates)
    }
    assert undeclared == set()


def test_declared_dependencies_are_imported() -> None:
    project = project_table()
    client, core, server = (set().union(*third_party_imports(package).values()) for package in PACKAGES)
    assert names(project["dependencies"]) - client == set()
    assert names(project["optional-dependencies"]["server"]) - core - server == set()
    assert names(project["optional-dependencies"]["train"]) - core == {"reformer-serve"}
    assert names(project["optional-dependencies"]["ray"]) - server == {"reformer-serve"}


def test_only_traces_need_their_extra() -> None:
    """Each side has one module that needs it at run time, and nobody imports that unless traces are asked for."""
    assert names(project_table()["optional-dependencies"]["telemetry"]) <= {
        canonical(name) for name in packages_distributions()["opentelemetry"]
    }
    for package in ("reformer_client", "reformer_server"):
        importing = [
            path.name
            for path in sources(package)
            for module in imported_modules(path)
            if module.partition(".")[0] == "opentelemetry" and not module.startswith("opentelemetry.trace")  # types
        ]
        assert set(importing) == {"tracing.py"}


@pytest.mark.parametrize(
    ("package", "folder", "extra"), [("reformer_core", "train", "train"), ("reformer_server", "batch", "ray")]
)
def test_only_one_folder_needs_its_extra(package: str, folder: str, extra: str) -> None:
    needed = names(project_table()["optional-dependencies"][extra])
    found = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources(package)
        if folder not in path.parts
        for module in imported_modules(path)
        if module.partition(".")[0] in needed
    ]
    assert found == []


def third_party_imports(package: str) -> dict[str, set[str]]:
    """The top-level modules of others that a package imports, and the distributions that each may come from."""
    distributions = packages_distributions()
    modules = {name.partition(".")[0] for path in sources(package) for name in imported_modules(path)}
    return {
        module: {canonical(name) for name in distributions.get(module, [module])}  # Ray needn't be installed
        for module in modules - sys.stdlib_module_names - OURS
    }


def project_table() -> dict[str, Any]:
    """`[project]` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that are required."""
    return {canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def canonical(distribution: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
