"""What a run tells: a progress bar (lines, where there is no terminal) and a log of JSON lines."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from reformer_core.train.trainer import StepResult, Trainer

LOG_FILE = "train.jsonl"
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

    def __init__(self, directory: Path, bytes_per_token: float, console: Console) -> None:
        """Args:
        directory: the log is appended to `train.jsonl` there.
        bytes_per_token: of the training texts.
        console: where to show.
        """
        self._log = (directory / LOG_FILE).open("a", encoding="utf-8")
        self._bits_per_nat_and_byte = 1 / math.log(2) / bytes_per_token
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
        entry = {
            "step": trainer.step,
            "tokens": trainer.tokens,
            "seconds": round(trainer.seconds, 1),
            "loss": round(loss, 4),
            "bits_per_byte": round(loss * self._bits_per_nat_and_byte, 4),
            "learning_rate": result.learning_rate,
            "tokens_per_second": round(self._tokens / self._seconds),
        }
        figures = "loss {loss:.3f}  {bits_per_byte:.3f} bits/byte  {tokens_per_second:,} tokens/s".format(**entry)
        done = trainer.done
        left = trainer.seconds / done * (1 - done) if done > 0 else None
        self._progress.update(self._task, completed=done, step=trainer.step, figures=figures, seconds_left=left)
        if self._seconds >= _LOG_SECONDS or done >= 1:
            self._write(entry)
            if not self._console.is_terminal:
                self.message(f"step {trainer.step:,}  {done:.1%}  {figures}")
            self._losses, self._tokens, self._seconds = [], 0, 0.0

    def validated(self, trainer: Trainer, bits_per_byte: dict[str, float]) -> None:
        """After the validation texts were read."""
        if not bits_per_byte:
            return
        self._write({"step": trainer.step, "validation_bits_per_byte": bits_per_byte})
        figures = ", ".join(f"{name} {value:.4f}" for name, value in bits_per_byte.items())
        self.message(f"step {trainer.step:,}  validation, bits/byte: {figures}")

    def message(self, text: str) -> None:
        """A line above the progress bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _write(self, entry: dict[str, Any]) -> None:
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()
