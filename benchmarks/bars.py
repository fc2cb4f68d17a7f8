"""What a figure has to reach, and whether it does."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness import markdown_table


@dataclass(frozen=True)
class Bar:
    """A figure and its bar: at least or at most so much."""

    what: str
    measured: float | None
    """None: it couldn't be measured."""
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure was measured and keeps to the bar."""
        if self.measured is None:
            return False
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)


def bar_table(bars: Sequence[Bar]) -> str:
    """What was to be reached, what was measured, and whether that is enough."""
    rows = []
    for bar in bars:
        limits = [f"{sign} {limit:g}" for sign, limit in (("≥", bar.least), ("≤", bar.most)) if limit is not None]
        measured = "not measured" if bar.measured is None else bar.measured
        rows.append([bar.what, " and ".join(limits), measured, "met" if bar.met else "not met"])
    return markdown_table(["bar", "allowed", "measured", ""], rows)
