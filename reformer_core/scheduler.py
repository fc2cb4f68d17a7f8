"""The engine's loop: admit, decode, emit, read a slice. It knows where each request is, and ends each exactly once."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reformer_core.admission import Admission, holds, minus
from reformer_core.decoding import Choice, Decoding
from reformer_core.errors import DeadlineExceededError, OutOfMemoryError, QueueFullError, device_is_lost, lacks_memory
from reformer_core.events import Failed, Finished, FinishReason, Started, Token
from reformer_core.memory_plan import MemoryPlan
from reformer_core.pace import Pace
from reformer_core.requests import PrefillRequest, Request, Resources
from reformer_core.restore import RestoreRequest
from reformer_core.session_requests import GenerateRequest
from reformer_core.turns import Balance, Rotation, Shares, Stopwatch
from reformer_core.waiting import WaitingRequests

logger = logging.getLogger(__name__)


class Scheduler:
    """All requests that aren't over: waiting, reading (whatever goes slice by slice), or decoding."""

    def __init__(self, resources: Resources, admission: Admission, max_waiting: int) -> None:
        self._admission, self._decoding = admission, Decoding(resources)
        model = resources.model
        self._max_tokens = model.config.max_tokens
        self._step_bytes = MemoryPlan(model.config, model.dtype, 1, model.device).step_bytes(sessions=1)
        self._owners: Shares[Hashable] = Shares()
        self.waiting = WaitingRequests(max_waiting, self._owners)
        self.reading = Rotation(self._owners)
        self.decoding: list[GenerateRequest] = []
        self.decode_batch_size = 0
        self._balance, self._stopwatch, self._pace = Balance(), Stopwatch(resources.model.device), Pace()

    @property
    def running(self) -> list[Request]:
        """Requests that are worked on."""
        return [*self.reading, *self.decoding]

    @property
    def unfinished(self) -> list[Request]:
        """All requests."""
        return [*self.waiting, *self.running]

    def submit(self, request: Request) -> Request:
        """Queues a request, and returns it.

        Raises:
            QueueFullError: too many wait. If another owner has more than its share here, its latest one leaves instead.
            OutOfMemoryError: it couldn't begin even when all the others are over.
        """
        try:
            gives_way = self.waiting.to_give_way(request.owner)
            self._admission.check(request.needs, [other.needs for other in self.unfinished])
        except QueueFullError as error:
            request.free()
            error.retry_seconds = self.retry_seconds
            raise
        except OutOfMemoryError:
            request.free()
            raise
        if gives_way is not None:
            self.end(gives_way, QueueFullError(len(self.waiting), self.retry_seconds))
        self.waiting.add(request)
        self._owners.join(request.owner)
        return request

    @property
    def retry_seconds(self) -> float:
        """When those that wait now should have begun."""
        return self._pace.seconds_to_serve(len(self.waiting))

    @property
    def prefill_speed(self) -> float | None:
        """Tokens a second at which documents are read at most; None: not known yet."""
        return self._pace.reading_speed(PrefillRequest)

    def step(self) -> bool:
        """One turn. Returns whether anything could be done: if not, nothing runs, or all readers are behind."""
        with torch.inference_mode():
            self._end_overdue()
            admitted = self._admit()
            due = self._balance.decoding_is_due
            decoded = due and self._decode()
            read = self._read_slice()
            if not due and not read:  # those that read can't go on
                decoded = self._decode()
        return admitted or decoded or read

    def end(self, request: Request, outcome: FinishReason | Exception) -> None:
        """Takes a request out, frees what it holds, and tells its reader; nothing, if it is over already."""
        if request.phase == "done":
            return
        if request.phase != "waiting":
            self._pace.ended(request, time.monotonic(), well=isinstance(outcome, FinishReason))
        request.phase, timings = "done", request.timings
        everywhere: tuple[Any, ...] = (self.waiting, self.reading, self.decoding)
        for requests in everywhere:
            if request in requests:
                requests.remove(request)
        if all(other.owner != request.owner for other in self.unfinished):
            self._owners.leave(request.owner)
        if not self.unfinished:
            self._pace.idle()
        request.work = iter(())  # and with it, what the reading took besides pages
        try:
            request.free()
        except Exception as error:  # noqa: BLE001 -- a bug; its reader gets it
            outcome = error
        try:
            if isinstance(outcome, FinishReason):
                request.sink.emit(Finished(outcome, timings))
            else:
                needed_bytes = request.needs.workspace_bytes or self._step_bytes
                request.sink.emit(Failed(_as_memory_error(outcome, needed_bytes), timings))
        except Exception:
            logger.exception("a reader couldn't take its last event")

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for request in self.unfinished:
            if request.deadline is not None and now > request.deadline:
                self.end(request, DeadlineExceededError("the deadline passed before the request was finished"))

    def _admit(self) -> bool:
        """Begins the waiting requests that there is room for.

        In their order: what one of them waits for, those behind it can't take. They overtake it only if they need
        nothing of what it lacks, so that it doesn't wait any longer because of them.
        """
        admitted = False
        free = self._admission.free(request.needs for request in self.running)
        for request in list(self.waiting):
            if free[0] <= 0:  # as many run as may
                break
            taken = self._admission.room_for(request.needs)
            if request.phase != "waiting":  # another one's reader has cancelled it
                continue
            if self._would_lock_out(request):
                continue
            if holds(free, taken):
                if self._is_too_late(request):
                    continue
                admitted = True
                self.waiting.remove(request)
                with self._ended_by_error(request):
                    request.work = request.begin()
                    self.reading.add(request)
                    request.sink.emit(Started(request.note_start()))
            free = minus(free, taken)
        for request in self.waiting:
            request.had_to_wait = True
        return admitted

    def _would_lock_out(self, request: Request) -> bool:
        """Whether its document would take the room for good of one that was submitted before it, and still waits.

        That one was promised a place when it was submitted, but others have had their turns since.
        """
        if not request.needs.leaves_document:
            return False
        earlier = [other for other in self.waiting if other.submitted <= request.submitted]
        pages = max((other.needs.pages for other in earlier if not other.needs.leaves_document), default=0)
        return request.needs.pages + pages > self._admission.pages_not_kept(other.needs for other in self.running)

    def _is_too_late(self, request: Request) -> bool:
        """Ends a request that won't be over by its deadline: the time is better spent on others, if there are any.

        One that didn't have to wait gets its chance to be generated in part.
        """
        if request.deadline is None or not self.running:
            return False
        seconds, left = (
            self._pace.expected_seconds(request, decoding=request.had_to_wait),
            request.deadline - time.monotonic(),
        )
        if seconds <= left:
            return False
        self.end(request, DeadlineExceededError(f"it would take {seconds:.1f} s, but its deadline is in {left:.1f} s"))
        return True

    def _decode(self) -> bool:
        """A token for each generation whose reader has room: chosen, emitted, and appended where it goes on."""
        batch = []
        for request in list(self.decoding):
            if self._is_ready(request):
                batch.append(request)
            else:
                request.was_parked = True
        self.decode_batch_size = len(batch)
        self._stopwatch.start()
        self._together(self._choose, batch)
        self._together(self._append, [request for request in batch if request.phase == "decode"])
        seconds = self._stopwatch.seconds()
        self._balance.decoded(seconds)
        for owner, sessions in Counter(request.owner for request in batch).items():
            self._owners.took(owner, seconds * sessions / len(batch))
        return bool(batch)

    def _together(self, work: Callable[[list[GenerateRequest]], None], batch: list[GenerateRequest]) -> None:
        """Does it for all of them at once; where there is no memory for that, for one half after the other.

        An error that isn't that, or that ends the smallest batch, too, is their readers'.
        """
        try:
            work(batch)
            return
        except Exception as error:
            if len(batch) == 1 or not lacks_memory(error):
                for request in batch:
                    self.end(request, error)
                if device_is_lost(error):
                    raise
                return
        # Here, for within `except` what the failed work has allocated is still held.
        half = len(batch) // 2
        self._together(work, batch[:half])
        self._together(work, batch[half:])

    def _choose(self, batch: list[GenerateRequest]) -> None:
        for request, choice in self._decoding.choose(batch):
            with self._ended_by_error(request):
                self._emit(request, choice)

    def _emit(self, request: GenerateRequest, choice: Choice) -> None:
        """Tells the reader, and ends the request if this was its last token."""
        if request.phase != "decode":  # another one's reader has cancelled it
            return
        text, reason = request.output.push(choice.id)
        if reason is None and request.session.length == self._max_tokens:
            text, reason = text + request.output.finish(), FinishReason.POSITIONS_EXHAUSTED
        request.note_token(choice.id)
        request.sink.emit(Token(choice.id, choice.logprob, text, choice.top))
        if reason is not None:
            self.end(request, reason)

    def _append(self, batch: list[GenerateRequest]) -> None:
        self._decoding.append(batch)
        for request in batch:
            if request.has_to_merge:  # that takes a while, in which the others go on
                self.decoding.remove(request)
                request.work = request.merge_tail()
                self.reading.add(request)

    def _read_slice(self) -> bool:
        """One slice of the next request that can go on; they take turns."""
        for request in self.reading:
            if request.phase == "done":  # another one's reader has cancelled it
                continue
            could = True
            self._stopwatch.start()
            with self._ended_by_error(request):
                try:
                    could = next(request.work)
                except StopIteration:
                    self._finish_reading(request)
            if could:
                seconds = self._stopwatch.seconds()
                request.worked_seconds += seconds
                self.reading.took(request, seconds)
                self._balance.read(seconds)
                return True
            self.reading.passed(request)
        return False

    def _finish_reading(self, request: Request) -> None:
        if request.phase == "prefill":
            self._pace.read(request)
        if isinstance(request, GenerateRequest):
            if request.phase == "prefill":
                self._decoding.begin(request)
                request.note_decoding()
            self.reading.remove(request)
            self.decoding.append(request)
        else:
            if isinstance(request, PrefillRequest | RestoreRequest) and request.document is not None:
                self._admission.keep(request.document)
            self.end(request, FinishReason.DONE)

    def _is_ready(self, request: Request) -> bool:
        with self._ended_by_error(request):
            return request.sink.ready()
        return False

    @contextmanager
    def _ended_by_error(self, *requests: Request) -> Iterator[None]:
        """Whatever goes wrong inside ends these requests, and nobody else, unless the device is lost to all."""
        try:
            yield
        except Exception as error:
            for request in requests:
                self.end(request, error)
            if device_is_lost(error):
                raise


def _as_memory_error(error: Exception, needed_bytes: int) -> Exception:
    """The device's own lack of memory is an OutOfMemoryError, too."""
    return OutOfMemoryError(needed_bytes, 0) if lacks_memory(error) else error
