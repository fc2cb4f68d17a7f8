"""Settings of the core's tests: one thread, for tiny tensors gain nothing from more, and a silent transformers."""

import pytest
import torch
import transformers


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def silent_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
