"""What the metrics look up when they are read: load, documents, memory, files."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from reformer_core.placement import total_memory

if TYPE_CHECKING:
    from reformer_server.server import Server

STATM = Path("/proc/self/statm")


def gauges_of(server: "Server") -> Callable[[], Iterator[Metric]]:
    """A collector of all gauges; it runs on the thread of the metrics' port and changes nothing."""

    def collect() -> Iterator[Metric]:
        yield from _engine(server)
        yield from _documents(server)
        yield from _memory(server)
        yield from _files(server)

    return collect


def _engine(server: "Server") -> Iterator[Metric]:
    engine, load, settings = server.engine, server.engine.load, server.settings
    yield _gauge("requests_running", "Requests that hold a place in the engine.", load.running)
    yield _gauge("requests_waiting", "Requests that wait for one.", load.waiting)
    capacity = {"running": settings.max_running, "waiting": settings.max_waiting}
    yield _labelled("requests_capacity", "The most requests that may run, and wait.", "state", capacity)
    yield _gauge("decode_batch_size", "Sessions in the latest decode step.", load.decode_batch_size)
    yield _counter("engine_turns", "Turns of the engine; while requests are there, they never stop.", engine.turns)
    yield _counter("engine_busy_seconds", "Time of the engine's thread in turns that did work.", engine.busy_seconds)


def _documents(server: "Server") -> Iterator[Metric]:
    archive, cache, load = server.archive, server.cache, server.engine.load
    kept, quota = archive.usage, server.settings.store_quota_bytes or math.inf

    def tiers(name: str, help: str, memory: float, store: float) -> GaugeMetricFamily:
        values = {"memory": memory, "store": store} if archive.keeps else {"memory": memory}
        return _labelled(f"document_cache_{name}", help, "tier", values)

    yield tiers("bytes", "What the documents take.", cache.nbytes, kept.nbytes)
    yield tiers("capacity_bytes", "Memory for pages; the store's quota.", load.total_page_bytes, quota)
    yield tiers("documents", "Contents in memory; ids in the store.", len(cache), len(kept.records))
    if server.write_behind is not None:
        pending = len(server.write_behind)
        yield _gauge("document_store_pending", "Documents that the store doesn't have yet.", pending)


def _memory(server: "Server") -> Iterator[Metric]:
    load, device = server.engine.load, server.model.model.device
    kinds = {"weights": load.weights_bytes, "pages": load.total_page_bytes, "workspace": load.workspace_bytes}
    kinds["other"] = max(0, _allocated_bytes(device) - sum(kinds.values()))
    memory = GaugeMetricFamily("reformer_memory_bytes", "Memory by what it is for.", labels=["device", "kind"])
    for kind, size in kinds.items():
        memory.add_metric([device.type, kind], size)
    yield memory
    limit = {device.type: total_memory(device)}
    yield _labelled("memory_limit_bytes", "What the device has, or the cgroup allows.", "device", limit)
    yield _gauge("pages_used_bytes", "Pages that documents and requests hold.", load.used_page_bytes)
    yield _gauge("upload_bytes", "Content that is being uploaded, or can be resumed.", server.uploads.nbytes)
    yield _gauge("upload_capacity_bytes", "The most of it.", server.settings.upload_memory_bytes)


def _files(server: "Server") -> Iterator[Metric]:
    current = {name: float(is_current) for name, is_current in server.access.current.items()}
    if current:
        yield _labelled("configuration_current", "1: what the files say now is in force.", "file", current)
    expire_time = server.access.certificate_expire_time
    if expire_time is not None:
        yield _gauge("tls_certificate_expire_time_seconds", "When the server's certificate ends.", expire_time)


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"reformer_{name}", help, value=value)


def _counter(name: str, help: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"reformer_{name}", help, value=value)


def _labelled(name: str, help: str, label: str, values: dict[str, float] | dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"reformer_{name}", help, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _allocated_bytes(device: torch.device) -> int:
    """All memory of this process on `device`; 0 where the system doesn't tell."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if not STATM.exists():
        return 0
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
