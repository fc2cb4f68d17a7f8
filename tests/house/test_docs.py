"""The documentation is true where a program can tell: paths, links, settings, options, RPCs, errors."""

import dataclasses
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2
from reformer_client.cli import main
from reformer_client.errors import ERROR_CLASSES
from reformer_client.messages import Sampling
from reformer_server.settings import KEYS, Settings
from reformer_server.status import TABLE

ROOT = Path(__file__).parents[2]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def rows(page: str) -> Iterator[list[str]]:
    """The cells of all tables' rows."""
    for line in text(page).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def in_backticks(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    named = [name for name in in_backticks(page) if re.fullmatch(r"[\w./-]+", name)]
    paths = [name for name in named if name.partition("/")[0] in FOLDERS or re.search(r"\.(py|proto|toml|md)$", name)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(file: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_and_its_default() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in rows("docs/configuration.md") if row[0].startswith("`")}
    assert list(told) == list(KEYS.values())
    for field in dataclasses.fields(Settings):
        if field.default is not None:
            assert field.metadata["parse"](told[KEYS[field.name]]) == field.default, field.name


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by their names."""
    yield name, command
    if isinstance(command, click.Group):
        below = {**command.commands}
        if command is main:
            below |= {entry_point.name: entry_point.load() for entry_point in entry_points(group="reformer.commands")}
        for own, each in below.items():
            yield from commands(each, f"{name} {own}")


OPTIONS = [
    ("docs/training.md" if name == "reformer train" else "docs/cli.md", f"{name} {option}")
    for name, command in commands(main, "reformer")
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in (*parameter.opts, *parameter.secondary_opts)
    if name != "reformer serve" or option.strip("-") not in KEYS.values()
]


@pytest.mark.parametrize(("page", "option"), OPTIONS)
def test_every_option_is_told(page: str, option: str) -> None:
    assert any(re.search(rf"{option.split()[-1]}\b", code) for code in in_backticks(page))


OTHERS_OPTIONS = {
    "--nproc-per-node",  # torchrun
    "--mode", "--drain-time-s",  # Envoy
    "--now", "--since",  # systemd
    "--previous", "--replicas", "--tail",  # kubectl
    "--pid", "--system", "--upgrade",  # py-spy, useradd, pip
}  # fmt: skip


def test_no_option_is_told_that_isnt_there() -> None:
    there = {option.split()[-1] for _, option in OPTIONS} | {f"--{key}" for key in KEYS.values()}
    there |= {"--help"} | OTHERS_OPTIONS
    for program in (*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "fuzz" / "__main__.py"):
        there |= set(re.findall(r'"(--[a-z-]+)"', program.read_text(encoding="utf-8")))
    told = {
        option
        for page in PAGES
        if page.startswith("docs/")
        for option in re.findall(r"(?<=[` ])--[a-z][a-z-]*", text(page))
    }
    assert told - there == set()


def test_every_rpc() -> None:
    rpcs = {
        method.name
        for module in (admin_pb2, document_pb2, inference_pb2, model_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    told = {match[1] for row in rows("docs/api.md") if (match := re.match(r"`([A-Z][A-Za-z]+)[(` ]", row[0]))}
    assert told == rpcs


def test_every_error() -> None:
    told = {
        (row[1], reason) for row in rows("docs/api.md") if len(row) > 2 for reason in re.findall(r"`([A-Z_]+)`", row[2])
    }
    there = {(row.code.name, row.reason) for row in TABLE.values()}
    assert told == there | {("NOT_FOUND", "DOCUMENT_EXPIRED"), ("INTERNAL", "INTERNAL")}


def test_every_exception_of_the_client() -> None:
    assert {cls.__name__ for cls in ERROR_CLASSES.values()} <= in_backticks("docs/sdk.md")


def test_every_sampling_parameter() -> None:
    parameters = set(Sampling.__annotations__)
    assert parameters <= in_backticks("docs/api.md") & in_backticks("docs/sdk.md")


@pytest.mark.parametrize("page", PAGES)
def test_examples_import_what_they_use(page: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", text(page), flags=re.DOTALL)
    assert [code for code in examples if "Path(" in code and "from pathlib import Path" not in code] == []
