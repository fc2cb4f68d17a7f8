"""What the metrics look up when they are read: load, documents, memory."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from prometheus_client.core import GaugeMetricFamily, Metric

from reformer_server.documents import DocumentRegistry
from reformer_server.engine_thread import EngineThread

STATM = Path("/proc/self/statm")


def load_gauges(
    engine: EngineThread, documents: DocumentRegistry, device: torch.device
) -> Callable[[], Iterator[Metric]]:
    """A collector of all gauges; it runs on the thread of the metrics' port and changes nothing."""

    def gauge(name: str, help: str, value: float, **labels: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"reformer_{name}", help, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family

    def collect() -> Iterator[Metric]:
        load = engine.load
        yield gauge("requests_running", "Requests that hold a place in the engine.", load.running)
        yield gauge("requests_waiting", "Requests that wait for one.", load.waiting)
        yield gauge("decode_batch_size", "Sessions in the latest decode step.", load.decode_batch_size)
        yield gauge("document_cache_bytes", "Memory of the documents.", documents.nbytes, tier="memory")
        yield gauge("document_cache_capacity_bytes", "Memory for pages.", load.total_page_bytes, tier="memory")
        yield gauge("document_cache_documents", "Documents that can be used.", len(documents), tier="memory")
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
