"""Decode steps that are recorded once and then repeated: on a GPU as CUDA graphs, on a CPU as lists of kernels.

A step has fixed shapes and looks at no value, so that what was recorded can be repeated for any sessions: the table's
rows, and a buffer for the token ids, are where they were. There is a recording for each batch size; a smaller batch
isn't padded, for the rows after it are other sessions'. On a CPU large steps aren't recorded, and just run.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from reformer_core.errors import lacks_memory
from reformer_core.incremental import decode_step, tail_capacity_for, undo_decode_step
from reformer_core.memory_plan import MemoryPlan
from reformer_core.model import ReformerModel
from reformer_core.recorded_kernels import RECORDED_WORK, Recording
from reformer_core.session_table import SessionTable
from reformer_core.transfers import to_device

# Multiply-adds of a step that more threads of a CPU make a few per cent faster, while nobody else wants their cores.
# Where somebody does, as a server's event loop does for each token, waiting for them makes the step half as long again.
ONE_THREAD_WORK = 2**24
OFTEN = 64  # recording a step takes as long as a few steps

logger = logging.getLogger(__name__)


class DecodeSteps:
    """Takes decode steps for one model and table, by graphs where the device has them."""

    def __init__(self, model: ReformerModel, table: SessionTable) -> None:
        self._model, self._table = model, table
        self._token_ids = torch.zeros(table.sessions, dtype=torch.long, device=model.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._recordings: OrderedDict[tuple[int, int], Recording] = OrderedDict()  # by batch and tail capacity
        self._recorded_bytes = MemoryPlan(model.config, model.dtype, 1, model.device).recorded_bytes(table.sessions)
        self._row_bytes = 0.0  # of the latest recording, for each session of its batch
        self._use_graphs = model.device.type == "cuda"
        self._is_on_cpu = model.device.type == "cpu"
        self._parameters = model.num_parameters
        self._steps_without: Counter[int] = Counter()  # steps of a batch size that has no graph yet
        self._runs: Counter[tuple[int, int]] = Counter()

    def tail_capacity(self, tokens: int) -> int:
        """Places of tails to look at, if the longest has so many tokens.

        All of them with graphs: that costs a GPU next to nothing, and a batch size has one graph for all tails.
        """
        most = self._table.tail_capacity
        return most if self._use_graphs else tail_capacity_for(tokens, most)

    def take(self, token_ids: list[int], tail_capacity: int) -> None:
        """One step of the first rows, as `decode_step`, which says more."""
        batch = len(token_ids)
        self._token_ids[:batch] = to_device(token_ids, self._token_ids.device)
        if (graph := self._graphs.get(batch)) is not None:
            graph.replay()
            return
        self._run(batch, tail_capacity)
        if self._use_graphs:
            self._steps_without[batch] += 1
            if self._steps_without[batch].bit_count() == 1:  # 1, 2, 4, …: memory may be short for long
                self._record(batch, tail_capacity)

    def _run(self, batch: int, tail_capacity: int) -> None:
        work = batch * self._parameters
        with one_thread() if work <= ONE_THREAD_WORK else nullcontext():
            if self._is_on_cpu and work <= RECORDED_WORK:
                self._repeat(batch, tail_capacity)
            else:
                self._step(batch, tail_capacity)

    def _step(self, batch: int, tail_capacity: int) -> None:
        decode_step(self._model, self._table, self._token_ids[:batch], tail_capacity)

    def _repeat(self, batch: int, tail_capacity: int) -> None:
        """Takes a step on a CPU as the first one of its shape was taken, which is recorded.

        Where others must go for that, those that were used longest ago, it is done for a shape that comes often.
        """
        shape, recordings, most = (batch, tail_capacity), self._recordings, self._recorded_bytes
        if (known := recordings.get(shape)) is not None:
            recordings.move_to_end(shape)
            known.replay()
            return
        self._runs[shape] += 1
        needed = int(batch * self._row_bytes)
        if needed > most or (self._kept_bytes + needed > most and self._runs[shape] % OFTEN):
            self._step(batch, tail_capacity)
            return
        self._drop_recordings(most - needed)
        try:
            recording = Recording(lambda: self._step(batch, tail_capacity))
        except ValueError:  # slower without, but not wrong
            logger.exception("a decode step of %d sessions can't be recorded; steps aren't any more", batch)
            self._is_on_cpu = False
            recordings.clear()
            undo_decode_step(self._table, batch, tail_capacity)
            self._step(batch, tail_capacity)
            return
        recordings[shape] = recording
        self._row_bytes = recording.nbytes / batch
        self._drop_recordings(most)

    @property
    def _kept_bytes(self) -> int:
        return sum(recording.nbytes for recording in self._recordings.values())

    def _drop_recordings(self, most: int) -> None:
        """Those that were used longest ago, until the others keep so many bytes at most."""
        while self._kept_bytes > most:
            self._recordings.popitem(last=False)

    def _record(self, batch: int, tail_capacity: int) -> None:
        """Records the step that was just taken, which has warmed the kernels up; recording takes no step."""
        graph = torch.cuda.CUDAGraph()
        others = next(iter(self._graphs.values()), None)
        try:
            # Graphs are never replayed at the same time, so they can share their scratch memory.
            pool = None if others is None else others.pool()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # what other threads do is fine
                self._run(batch, tail_capacity)
        except RuntimeError as error:  # slower without, but not wrong
            if lacks_memory(error):
                if self._steps_without[batch] == 1:
                    logger.warning("no memory to record a decode step of %d sessions; later ones try again", batch)
                return
            logger.exception("a decode step of %d sessions can't be recorded; steps run without graphs now", batch)
            self._use_graphs = False
            self._graphs.clear()
        else:
            self._graphs[batch] = graph


@contextmanager
def one_thread() -> Iterator[None]:
    """What torch computes on the CPU inside takes no more threads than the caller's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
