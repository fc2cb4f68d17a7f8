"""How often each fault is tried, and the record of what that showed.

Every test runs in a quick form with `make test`; `make soak` runs them all with the counts of a campaign (`pytest
tests/faults --campaign`) and writes each figure, as a line of JSON, to benchmarks/results/soak.jsonl.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.bars import Bar
from benchmarks.harness import RESULTS, environment

RECORD = RESULTS / "soak.jsonl"


@dataclass(frozen=True)
class Times:
    """How often: in `make test`, and in `make soak`."""

    quick: int
    campaign: int


TIMES = {
    "uploads cut": Times(4, 100),
    "clients killed while uploading": Times(1, 20),
    "clients killed while the server reads": Times(1, 20),
    "clients killed while the server generates": Times(1, 20),
    "connections half open": Times(1, 10),
    "SIGKILL while storing or restoring": Times(1, 200),
    "SIGTERM under load": Times(1, 20),
    "engine dies": Times(1, 5),
    "streams cancelled": Times(200, 10_000),
    "readers that stall": Times(10, 100),
    "allocations that fail in the engine": Times(20, 1000),
    "allocations that fail in the server": Times(1, 10),
    "allocations that fail in a restore": Times(1, 20),
    "connections corrupted": Times(150, 500),
}
"""All faults, by the name that the record has for them."""


class Campaign:
    """One fault's part of a run."""

    def __init__(self, *, full: bool, record: Path = RECORD) -> None:
        self.full = full
        self._record = record

    def times(self, fault: str) -> int:
        """How often the fault is to be tried."""
        times = TIMES[fault]
        return times.campaign if self.full else times.quick

    def measured(self, fault: str, *bars: Bar, count: int | None = None) -> None:
        """Notes what was measured in a campaign, and fails where a bar isn't met.

        Args:
            count: how often the fault was tried, where that isn't `times`.
        """
        if self.full:
            self._note(fault, bars, self.times(fault) if count is None else count)
        missed = [bar for bar in bars if not bar.met]
        assert not missed, missed

    def _note(self, fault: str, bars: tuple[Bar, ...], count: int) -> None:
        """Replaces what the record has of this fault."""
        lines = self._record.read_text(encoding="utf-8").splitlines() if self._record.exists() else []
        kept = [line for line in lines if json.loads(line)["fault"] != fault]
        note = {
            "fault": fault,
            "count": count,
            "figures": [{**asdict(bar), "met": bar.met} for bar in bars],
            "environment": environment(),
        }
        self._record.write_text("\n".join((*kept, json.dumps(note))) + "\n", encoding="utf-8")
