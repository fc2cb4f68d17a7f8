"""When steps are recorded and when they are replayed, with recording played by a stand-in: there is no GPU here."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from reformer_core import decode_graphs
from reformer_core.decode_graphs import DecodeSteps
from reformer_core.incremental import decode_step
from reformer_core.session import Session
from tests.core.tiny import open_session, random_tokens, tiny_model

TAIL = 16


class Recorder:
    """Instead of CUDA's graphs: notes what runs while it records, and runs it again when it is replayed."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.recording = False
        self.fails = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        recorder = self

        class Graph:
            def pool(self) -> str:
                return "pool"

            def replay(self) -> None:
                recorder.log.append("replay")
                decode_step(*self.step)

        @contextmanager
        def record(graph: Graph, pool: str | None) -> Iterator[None]:
            recorder.log.append(f"record in {pool}")
            if recorder.fails:
                raise RuntimeError("operation not permitted when stream is capturing")
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
        steps._use_graphs = True
        with pytest.MonkeyPatch.context() as patch:  # pinned memory needs a GPU, too
            patch.setattr(torch, "tensor", _unpinned(torch.tensor))
            found = logits_after(steps, session, ids[:3])
            assert recorder.log == ["run", "record in None", "replay", "replay"]
            found = logits_after(steps, session, ids[3:], 2 * TAIL)
    assert recorder.log[4:] == ["run", "record in pool", "replay", "replay"], "another shape is another graph"
    assert torch.equal(found, expected)


def test_steps_run_on_if_they_cannot_be_recorded(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    recorder.fails = True
    with open_session(model, random_tokens(model, 20)) as session:
        steps = DecodeSteps(model, session.table)
        steps._use_graphs = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "tensor", _unpinned(torch.tensor))
            logits_after(steps, session, [1, 2, 3])
        assert session.length == 23
    assert recorder.log == ["run", "record in None", "run", "run"]
    assert "can't be recorded" in caplog.text


def test_on_a_cpu_nothing_is_recorded(recorder: Recorder) -> None:
    model = tiny_model()
    with open_session(model, random_tokens(model, 20)) as session:
        logits_after(DecodeSteps(model, session.table), session, [1, 2])
    assert recorder.log == ["run", "run"]


def _unpinned(tensor):  # type: ignore[no-untyped-def]
    def make(data: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        made: torch.Tensor = tensor(data, **options)
        return made

    return make
