"""docs/metrics.md tells exactly what /metrics shows: each series with its type, labels and unit, and nothing else."""

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import trustme
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import Serve
from tests.server.pem_files import Files, client_of
from tests.server.tenants_files import table, token_of, write

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
TOTAL = {"counter": "_total"}


def told() -> dict[str, tuple[str, frozenset[str], str]]:
    """By series: type, labels and unit, as the page's tables say."""
    rows = (line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines())
    return {
        name[1]: (row[1], frozenset(re.findall(r"`(\w+)`", row[2])), row[3])
        for row in rows
        if (name := re.fullmatch(r"`(reformer_\w+)`", row[0]))
    }


def shown(text: str) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Each series of an exposition: name, type, labels."""
    for family in text_string_to_metric_families(text):
        if family.name.startswith("reformer_"):
            assert family.documentation.strip(), family.name
            assert family.samples, f"{family.name} is not there from the start"
            labels = frozenset(family.samples[0].labels) - {"le"}
            yield family.name + TOTAL.get(family.type, ""), family.type, labels


async def test_the_page_and_the_port_agree(serve: Serve, tmp_path: Path, authority: trustme.CA) -> None:
    files = Files(tmp_path, authority)
    write(files.tenants, table("acme"))
    running = await serve(store=str(tmp_path / "store"), **files.settings(tenants=True))
    async with client_of(running, authority, token=token_of("acme")) as client:
        await client.load()
    await running.until(
        lambda: (
            running.server.metrics.registry.get_sample_value(
                "reformer_requests_total", {"method": "ModelService/GetLoad", "code": "OK"}
            )
            == 1
        )
    )
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    page = told()
    assert {(name, type, labels) for name, type, labels in shown(text)} == {
        (name, type, labels) for name, (type, labels, _) in page.items()
    }


def test_names_say_their_units() -> None:
    for name, (type, _, unit) in told().items():
        for base in ("seconds", "bytes"):
            assert (unit == base) == bool(re.search(rf"_{base}(_total)?$", name)), name
        assert (type == "counter") == name.endswith("_total"), name
