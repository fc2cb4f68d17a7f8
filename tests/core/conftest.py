"""What the tests of the core share: one thread, for tiny tensors gain nothing from more; no logs; a checkpoint."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from reformer_core import memory_plan, save_model, session_table, slicing
from reformer_core.pages import PageLayout
from tests.core.models import random_model, small_config


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def silent_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A complete checkpoint of a small model."""
    directory = tmp_path / "model"
    save_model(random_model(small_config()), directory)
    return directory


@pytest.fixture
def many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices so short that a document takes many."""
    monkeypatch.setattr(slicing, "CPU_BOUNDS", replace(slicing.CPU_BOUNDS, most_tokens=64))


@pytest.fixture
def small_tails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pages of 16 tokens and tails of 32, so that little text fills them."""
    monkeypatch.setattr(PageLayout.__init__, "__defaults__", (16,))
    monkeypatch.setattr(session_table, "tail_capacity", lambda config: 32)
    monkeypatch.setattr(memory_plan, "tail_capacity", lambda config: 32)
    memory_plan._session_bytes.cache_clear()
    yield
    memory_plan._session_bytes.cache_clear()
