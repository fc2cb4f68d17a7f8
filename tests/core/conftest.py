"""What the tests of the core share: one thread, for tiny tensors gain nothing from more; no logs; a checkpoint."""

from pathlib import Path

import pytest
import torch
import transformers

from reformer_core import save_model
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
