"""The dashboard: well made, and each query answered by a real Prometheus that watches a real server at work."""

import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations, count
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import serving
from reformer_client import Client
from reformer_client.errors import NotFoundError
from reformer_core import MemoryPlan, embedded_model_path, load_config
from reformer_core.placement import choose_device, choose_dtype
from tests.deploy.test_prometheus import ROOT, RULES

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/reformer.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VALUES = {"job": "reformer", "instance": ".*", "__rate_interval": "10s"}

TEXT = (ROOT / "examples/emma.txt").read_text(encoding="utf-8")
TOKENS, SESSIONS = 2048, 4
STARTUP_SECONDS, ANSWER_SECONDS = 30.0, 60.0

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus isn't installed (Debian: apt-get install prometheus)"
)


def test_panels_have_ids_units_and_words_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in {"s", "bytes", "short", "percentunit", "reqps"}
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references), panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["legendFormat"] or panel["type"] == "stat"


def test_panels_lie_side_by_side() -> None:
    boxes = [(panel["title"], *(panel["gridPos"][key] for key in "xywh")) for panel in DASHBOARD["panels"]]
    assert all(x >= 0 and x + w <= 24 and h > 0 for _, x, _, w, h in boxes)
    for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in combinations(boxes, 2):
        apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
        assert apart, f"{a!r} lies upon {b!r}"


def test_every_query_heeds_the_choice_of_servers() -> None:
    assert list(VARIABLES) == ["datasource", "job", "instance"]
    for title, query in QUERIES:
        selectors = re.findall(r"(?:reformer|process)_\w+(\{[^}]*\})?", query)
        assert selectors, title
        assert all('job=~"$job", instance=~"$instance"' in selector for selector in selectors), title
        assert set(re.findall(r"\$(\w+)", query)) <= VALUES.keys(), title


def test_every_series_of_ours_is_on_it() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(reformer_\w+)`", page, re.MULTILINE))
    shown = {re.sub(r"_bucket$", "", name) for _, query in QUERIES for name in re.findall(r"reformer_\w+", query)}
    alerted = {name for rule in RULES for name in re.findall(r"reformer_\w+", rule["expr"])}
    assert shown <= documented
    assert documented - shown - alerted == {"reformer_cancel_latency_seconds"}


class Prometheus:
    """A running one."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API answers; raises HTTPError for what it can't parse."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def numbers(self, query: str) -> list[float]:
        """The values that a query has now, without those that are none."""
        values = [float(sample["value"][1]) for sample in self.ask("query", query=query)["result"]]
        return [value for value in values if not math.isnan(value)]


def use(client: Client, stop: threading.Event) -> None:
    """A little of everything, again and again: of two documents, only one fits into memory."""
    for turn in count():
        if stop.is_set():
            return
        for name, text in (("one", TEXT[:4000]), ("two", TEXT[4000:8000])):
            document = client.documents.create(text, document_id=name)
            for _ in range(2):  # it is read or restored for the first one at the latest, and there for the second
                document.generate("\n", max_tokens=3, temperature=0).collect()
        client.generate("Mr. ", max_tokens=3).collect()
        client.score(TEXT[:200])
        with client.generate("Mr. ", max_tokens=500) as stream:
            next(stream)
        with suppress(NotFoundError):
            client.documents.get("none")
        client.documents.create(f"{turn} little words", document_id="little")
        client.documents.delete("little")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has our rules, and looks every second at a server under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    plan = MemoryPlan(load_config(embedded_model_path()), choose_dtype("auto", choose_device()), TOKENS)
    memory = plan.fixed_bytes(SESSIONS) + int(1.5 * plan.page_bytes)
    options = ("--memory", memory, "--max-text", TOKENS, "--max-running", SESSIONS)
    store = ("--store", folder / "store", "--store-quota", "1GiB", "--log-level", "warning")
    with serving(*options, *store) as server, Client(server.address, timeout=60) as client:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        configuration = (ROOT / "deploy/prometheus/prometheus.yaml").read_text(encoding="utf-8")
        configuration = configuration.replace("15s", "1s").replace("localhost:9464", f"127.0.0.1:{server.metrics_port}")
        (folder / "prometheus.yaml").write_text(configuration, encoding="utf-8")
        shutil.copy(ROOT / "deploy/prometheus/rules.yaml", folder)
        command = ("prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data")
        stop, log = threading.Event(), (folder / "log").open("w")
        user = threading.Thread(target=use, args=(client, stop))
        with log, subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log) as process:
            user.start()
            try:
                yield until_ready(Prometheus(address), process, folder / "log")
            finally:
                stop.set()
                process.terminate()
                user.join()


def until_ready(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> Prometheus:
    """Waits until it answers."""
    end = time.monotonic() + STARTUP_SECONDS
    while True:
        with suppress(OSError):
            prometheus.ask("query", query="1")
            return prometheus
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, "Prometheus doesn't answer"
        time.sleep(0.1)


def filled_in(query: str) -> str:
    return re.sub(r"\$(\w+)", lambda match: VALUES[match[1]], query)


def until_answered(prometheus: Prometheus, queries: dict[str, str]) -> None:
    """Asks until each query has had a number once."""
    open_queries, end = dict(queries), time.monotonic() + ANSWER_SECONDS
    while open_queries:
        for name, query in list(open_queries.items()):
            if prometheus.numbers(query):
                del open_queries[name]
        assert not open_queries or time.monotonic() < end, f"no numbers for {open_queries}"
        time.sleep(0.2)


@needs_prometheus
def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    until_answered(prometheus, {f"{title}: {query}": filled_in(query) for title, query in QUERIES})


@needs_prometheus
def test_every_recording_is_made(prometheus: Prometheus) -> None:
    until_answered(prometheus, {rule["record"]: rule["record"] for rule in RULES if "record" in rule})
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}


@needs_prometheus
def test_a_healthy_server_fires_no_alert(prometheus: Prometheus) -> None:
    firing = [alert["labels"] for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"]
    assert firing == []


@needs_prometheus
def test_choices_and_annotations_can_be_asked_for(prometheus: Prometheus) -> None:
    until_answered(prometheus, {"info": "reformer_build_info"})
    for name in ("job", "instance"):
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label == name
        assert prometheus.ask(f"label/{label}/values", **{"match[]": filled_in(series)})
    for annotation in DASHBOARD["annotations"]["list"]:
        prometheus.ask("query", query=filled_in(annotation["expr"]))
