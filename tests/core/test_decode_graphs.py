"""When steps are recorded and when they are replayed, with recording played by a stand-in: there is no GPU here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from reformer_core import decode_graphs
from reformer_core.decode_graphs import DecodeSteps
from reformer_core.incremental import decode_step
from reformer_core.model import ReformerModel
from reformer_core.recorded_kernels import _Recorder
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from tests.core.models import random_model, small_config
from tests.core.tiny import open_session, random_tokens, read_document, tiny_model, tiny_pool

TAIL = 16
MODELS: tuple[dict[str, Any], ...] = (
    {},
    {"attn_layers": ("lsh", "lsh"), "num_hashes": 1, "num_buckets": (4, 8), "hidden_act": "gelu"},
    {"attn_layers": ("local", "local"), "hidden_act": "silu"},
    {"axial_pos_embds": False, "lsh_num_chunks_before": 2, "local_num_chunks_before": 0},
)


class Recorder:
    """Instead of CUDA's graphs: notes what runs while it records, and runs it again when it is replayed."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.recording = False
        self.fails: Exception | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        recorder = self

        class Graph:
            def pool(self) -> str:
                return "pool"

            def replay(self) -> None:
                recorder.log.append("replay")
                decode_step(*self.step)

        @contextmanager
        def record(graph: Graph, pool: str | None, capture_error_mode: str) -> Iterator[None]:
            recorder.log.append(f"record in {pool}")
            if recorder.fails is not None:
                raise recorder.fails
            recorder.recording = True
            yield
            graph.step = recorder.step
            recorder.recording = False

        def step(*arguments: object) -> None:
            recorder.step = arguments
            if not recorder.recording:
                recorder.log.append("run")
                decode_step(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", record)
        monkeypatch.setattr(decode_graphs, "decode_step", step)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    recorder.install(monkeypatch)
    return recorder


def logits_after(steps: DecodeSteps, session: Session, ids: list[int], tail: int = TAIL) -> torch.Tensor:
    for id in ids:
        session.reserve(1)
        steps.take([id], tail)
        session.appended(1)
    return session.table.next_logits[session.row].clone()


def test_a_step_runs_is_recorded_and_then_replayed(recorder: Recorder) -> None:
    model = tiny_model()
    ids = random_tokens(model, 6).tolist()
    text = random_tokens(model, 20, seed=2)
    with open_session(model, text) as session:
        expected = logits_after(DecodeSteps(model, session.table), session, ids)
    recorder.log.clear()
    with open_session(model, text) as session:
        steps = DecodeSteps(model, session.table)
        steps._use_graphs, steps._is_on_cpu = True, False
        found = logits_after(steps, session, ids)
        assert recorder.log == ["run", "record in None", *["replay"] * 5]
        recorder.log.clear()
        for _ in range(2):  # what lies in the second row doesn't matter here
            steps.take([1, 1], TAIL)
    assert recorder.log == ["run", "record in pool", "replay"], "another batch size is another graph"
    assert torch.equal(found, expected)


def test_steps_run_on_if_they_cannot_be_recorded(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    recorder.fails = RuntimeError("operation not permitted when stream is capturing")
    with open_session(model, random_tokens(model, 20)) as session:
        steps = DecodeSteps(model, session.table)
        steps._use_graphs, steps._is_on_cpu = True, False
        logits_after(steps, session, [1, 2, 3])
        assert session.length == 23
    assert recorder.log == ["run", "record in None", "run", "run"]
    assert "can't be recorded" in caplog.text


def test_without_memory_to_record_it_is_tried_again(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    recorder.fails = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    with open_session(model, random_tokens(model, 20)) as session:
        steps = DecodeSteps(model, session.table)
        steps._use_graphs, steps._is_on_cpu = True, False
        logits_after(steps, session, [1])
        recorder.fails = None
        logits_after(steps, session, [2, 3])
    assert recorder.log == ["run", "record in None", "run", "record in None", "replay"]
    [record] = caplog.records
    assert "no memory to record a decode step of 1 sessions" in record.message


def test_a_lack_of_memory_that_lasts_is_told_once(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """And not for each token; nor does each token pay for an attempt."""
    model = tiny_model()
    recorder.fails = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    with open_session(model, random_tokens(model, 20)) as session:
        steps = DecodeSteps(model, session.table)
        steps._use_graphs, steps._is_on_cpu = True, False
        logits_after(steps, session, [1] * 12)
    assert len(caplog.records) == 1
    assert recorder.log.count("run") == 12
    assert recorder.log.count("record in None") == 4, "after 1, 2, 4, 8 steps"


def test_graphs_look_at_whole_tails() -> None:
    """So that a batch size has one graph, however long the tails are."""
    model = tiny_model()
    steps = DecodeSteps(model, SessionTable(model.config, tiny_pool(model), 1, tail_tokens=256))
    assert [steps.tail_capacity(tokens) for tokens in (3, 64, 65, 256)] == [64, 64, 128, 256]
    steps._use_graphs, steps._is_on_cpu = True, False
    assert steps.tail_capacity(3) == 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("values", MODELS)
def test_on_a_cpu_small_steps_are_recorded(recorder: Recorder, values: dict[str, Any], dtype: torch.dtype) -> None:
    """Repeated, they do what `decode_step` does, bit for bit: for other tokens, longer tails, and other sessions."""
    model = random_model(small_config(**values)).to(dtype)
    recorded, run = (taken_steps(model, are_recorded=each) for each in (True, False))
    assert recorder.log == ["run"] * (3 + 16), "one for each batch size and tail"
    assert all(torch.equal(x, y) for x, y in zip(recorded, run, strict=True))


def taken_steps(model: ReformerModel, *, are_recorded: bool) -> list[torch.Tensor]:
    """The logits after each of sixteen steps, and all that the sessions hold in the end."""
    pool = tiny_pool(model)
    pool.entries.zero_()
    document = read_document(model, pool, random_tokens(model, 50))
    table = SessionTable(model.config, pool, 4, 4 * TAIL)
    steps = DecodeSteps(model, table)
    steps._is_on_cpu = are_recorded
    logits = []
    with Session(table, document) as first, Session(table, document) as second:
        document.close()  # lives as long as its sessions
        for sessions, tail in [([first], TAIL), ([first, second], TAIL), ([second], TAIL), ([second], 2 * TAIL)] * 4:
            table.arrange(sessions)
            for session in sessions:
                session.reserve(1)
            steps.take([len(logits) % 7 + session.row for session in sessions], tail)
            for session in sessions:
                session.appended(1)
            logits.append(table.next_logits.clone())
        return [
            *logits,
            *(x.clone() for x in vars(table).values() if isinstance(x, torch.Tensor)),
            table.pool.rows.clone(),
        ]


@pytest.mark.parametrize("kernels", [0, 30, 100])
def test_a_step_that_cannot_be_recorded_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, caplog: pytest.LogCaptureFixture, kernels: int
) -> None:
    """From its beginning, however far it had come; and later ones aren't tried."""
    model = tiny_model()
    text, ids = random_tokens(model, 20), random_tokens(model, 6, seed=2).tolist()
    with open_session(model, text) as session:
        expected = logits_after(DecodeSteps(model, session.table), session, ids)
    recorder.log.clear()
    record = _Recorder._record

    def refuse(self: _Recorder, *kernel: Any) -> None:
        if len(self._kernels) == kernels:
            raise ValueError("can't be recorded")
        record(self, *kernel)

    monkeypatch.setattr(_Recorder, "_record", refuse)
    with open_session(model, text) as session:
        assert torch.equal(logits_after(DecodeSteps(model, session.table), session, ids), expected)
    assert recorder.log == ["run"] * 7
    assert "can't be recorded" in caplog.text


def test_recordings_keep_little_memory(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    """Those of the longest ago go, for a shape that comes often; what is too large alone runs each time."""
    monkeypatch.setattr(decode_graphs, "OFTEN", 3)
    model = tiny_model()
    with open_session(model, random_tokens(model, 20)) as session:
        steps = DecodeSteps(model, session.table)
        logits_after(steps, session, [1])
        [recording] = steps._recordings.values()
        steps._recorded_bytes = 3 * recording.nbytes

        def recorded_after(*tails: int) -> list[int]:
            for tail in tails:
                logits_after(steps, session, [1], tail)
                assert sum(each.nbytes for each in steps._recordings.values()) <= 3 * recording.nbytes
            return [tail for _, tail in steps._recordings]

        assert recorded_after(32, 16) == [32, 16]
        assert recorded_after(64, 64, 16) == [32, 16], "there is no room yet for a third, whose tails are larger"
        assert recorded_after(64) == [16, 64]
        assert recorder.log == ["run"] * 5
        steps._recorded_bytes = recording.nbytes - 1
        assert recorded_after(128, 128, 128, 128) == [16, 64]
        assert recorder.log == ["run"] * 9


def test_large_steps_run_each_time(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    monkeypatch.setattr(decode_graphs, "RECORDED_WORK", 10)
    model = tiny_model()
    with open_session(model, random_tokens(model, 20)) as session:
        logits_after(DecodeSteps(model, session.table), session, [1, 2])
    assert recorder.log == ["run", "run"]


@pytest.mark.parametrize(("work", "threads"), [(10**9, 1), (10, 2)])
def test_small_steps_take_one_thread(monkeypatch: pytest.MonkeyPatch, work: int, threads: int) -> None:
    """And leave the number of threads as it was."""
    model = tiny_model()
    assert decode_graphs.ONE_THREAD_WORK < 100 * 10**6, "a step of a large model takes all"
    monkeypatch.setattr(decode_graphs, "ONE_THREAD_WORK", work)
    taken: list[int] = []

    def step(*arguments: object) -> None:
        taken.append(torch.get_num_threads())
        decode_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_graphs, "decode_step", step)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_session(model, random_tokens(model, 20)) as session:
            logits_after(DecodeSteps(model, session.table), session, [1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert taken == [threads]
