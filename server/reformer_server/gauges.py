"""What the metrics look up when they are read: load, documents, memory."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from prometheus_client.core import GaugeMetricFamily, Metric

from reformer_server.archive import Archive
from reformer_server.cache import DocumentCache
from reformer_server.engine_thread import EngineThread
from reformer_server.settings import Settings

STATM = Path("/proc/self/statm")


def load_gauges(
    engine: EngineThread, cache: DocumentCache, archive: Archive, settings: Settings, device: torch.device
) -> Callable[[], Iterator[Metric]]:
    """A collector of all gauges; it runs on the thread of the metrics' port and changes nothing."""

    def gauge(name: str, help: str, value: float, **labels: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"reformer_{name}", help, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family

    def tiers(name: str, help: str, memory: float, store: float) -> GaugeMetricFamily:
        family = gauge(name, help, memory, tier="memory")
        if archive.keeps:
            family.add_metric(["store"], store)
        return family

    def collect() -> Iterator[Metric]:
        load = engine.load
        yield gauge("requests_running", "Requests that hold a place in the engine.", load.running)
        yield gauge("requests_waiting", "Requests that wait for one.", load.waiting)
        yield gauge("decode_batch_size", "Sessions in the latest decode step.", load.decode_batch_size)
        kept, quota = archive.usage, settings.store_quota_bytes or math.inf
        yield tiers("document_cache_bytes", "What the documents take.", cache.nbytes, kept.nbytes)
        yield tiers("document_cache_capacity_bytes", "Memory for pages; quota.", load.total_page_bytes, quota)
        yield tiers("document_cache_documents", "Contents in memory; ids in the store.", len(cache), len(kept.records))
        memory = GaugeMetricFamily("reformer_memory_bytes", "Memory by what it is for.", labels=["device", "kind"])
        kinds = {"weights": load.weights_bytes, "pages": load.total_page_bytes, "workspace": load.workspace_bytes}
        kinds["other"] = max(0, _allocated_bytes(device) - sum(kinds.values()))
        for kind, size in kinds.items():
            memory.add_metric([device.type, kind], size)
        yield memory

    return collect


def _allocated_bytes(device: torch.device) -> int:
    """All memory of this process on `device`; 0 where the system doesn't tell."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if not STATM.exists():
        return 0
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
