"""`import reformer_client` is quick and loads nothing that only the server or the command line needs."""

import json
import subprocess
import sys

MEASURE = """
import json, sys, time
start = time.process_time()
import reformer_client
seconds = time.process_time() - start
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
NEVER = {"torch", "numpy", "sentencepiece", "click", "rich", "reformer_core", "reformer_server", "opentelemetry"}


def import_client() -> tuple[float, set[str]]:
    """CPU seconds of the import in a fresh interpreter, and the top-level modules that are loaded after it.

    On a machine that does nothing else they are the seconds it takes; on a busy one it isn't to blame for the rest.
    """
    result = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    seconds, modules = json.loads(result.stdout)
    return seconds, set(modules)


def test_client_imports_quickly_and_without_torch() -> None:
    runs = [import_client() for _ in range(5)]
    _, modules = runs[0]
    assert "grpc" in modules
    assert modules.isdisjoint(NEVER)
    assert min(seconds for seconds, _ in runs) <= 0.5
