"""What a run tells: a progress bar (lines, where there is no terminal), a log of JSON lines, and a plot of that."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from reformer_core.train.plot import draw_plot
from reformer_core.train.trainer import StepResult, Trainer

LOG_FILE = "train.jsonl"
PLOT_FILE = "train.png"
_LOG_SECONDS = 10.0


class _TimeLeft(ProgressColumn):
    """Time that is left, from the share of the budget that is used up."""

    def render(self, task: Task) -> Text:
        left = task.fields["seconds_left"]
        if left is None:
            return Text("-:--:-- left")
        minutes, seconds = divmod(round(left), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")


class Report:
    """Shows and logs a run's steps, averaged over a few seconds, and its validations. A context manager."""

    def __init__(
        self, directory: Path, unit: str, bits_per_nat: float, phases: Sequence[str], console: Console
    ) -> None:
        """Args:
        directory: the log is appended to `train.jsonl` there; the plot is `train.png`.
        unit: what bits are counted a unit of.
        bits_per_nat: turns nats a token into bits a unit.
        phases: each phase's title in the plot.
        console: where to show.
        """
        self._directory = directory
        self._log = (directory / LOG_FILE).open("a", encoding="utf-8")
        self._unit = unit
        self._bits_per_nat = bits_per_nat
        self._phases = phases
        self._console = console
        self._progress = Progress(
            TextColumn("step {task.fields[step]:,}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=1.0, step=0, figures="", seconds_left=None)
        self._losses: list[float] = []  # since the last entry of the log, as the next two
        self._tokens = 0
        self._seconds = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._log.close()

    def stepped(self, trainer: Trainer, result: StepResult) -> None:
        """After each step."""
        self._losses.append(result.loss)
        self._tokens += result.tokens
        self._seconds += result.seconds
        loss = sum(self._losses) / len(self._losses)
        bits, speed = loss * self._bits_per_nat, self._tokens / self._seconds
        entry = {
            "step": trainer.step,
            "tokens": trainer.tokens,
            "seconds": round(trainer.seconds, 1),
            "phase": result.phase,
            "loss": round(loss, 4),
            f"bits_per_{self._unit}": round(bits, 4),
            "learning_rate": result.learning_rate,
            "tokens_per_second": round(speed),
        }
        figures = f"loss {loss:.3f}  {bits:.3f} bits/{self._unit}  {speed:,.0f} tokens/s"
        done = trainer.done
        left = trainer.seconds / done * (1 - done) if done > 0 else None
        self._progress.update(self._task, completed=done, step=trainer.step, figures=figures, seconds_left=left)
        if self._seconds >= _LOG_SECONDS or trainer.progress.phase_index > result.phase:
            self._write(entry)
            if not self._console.is_terminal:
                self.message(f"step {trainer.step:,}  {done:.1%}  {figures}")
            self._losses, self._tokens, self._seconds = [], 0, 0.0

    def validated(self, trainer: Trainer, bits: dict[str, float]) -> None:
        """After validation data was read."""
        if not bits:
            return
        self._write({"step": trainer.step, "tokens": trainer.tokens, f"validation_bits_per_{self._unit}": bits})
        figures = ", ".join(f"{name} {value:.4f}" for name, value in bits.items())
        self.message(f"step {trainer.step:,}  validation, bits/{self._unit}: {figures}")

    def draw(self) -> None:
        """Draws the plot anew."""
        draw_plot(self._directory / LOG_FILE, self._directory / PLOT_FILE, self._unit, self._phases)

    def message(self, text: str) -> None:
        """A line above the progress bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _write(self, entry: dict[str, Any]) -> None:
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()
