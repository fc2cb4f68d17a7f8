"""What is to be scored."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reformer_core import save_model
from reformer_core.tokenizers import ByteTokenizer
from reformer_server.batch.worker import Job
from reformer_server.settings import Settings
from tests.deploy.batch.corpora import TEXTS
from tests.server.conftest import MAX_TOKENS, tiny_served_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_served_model(ByteTokenizer()).model, folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents in two row groups; some can't be scored."""
    texts = [*TEXTS, None, b"", b"\xff", b"x" * (MAX_TOKENS + 1), b"y"]
    table = pa.table({"id": [f"document {number}" for number in range(len(texts))], "text": texts, "n": range(29)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=20)
    return tmp_path / "in.parquet"


@pytest.fixture
def job(corpus: Path, model_folder: Path) -> Job:
    settings = Settings(model=str(model_folder), dtype="float32", memory_bytes=2**28)
    return Job(
        str(corpus), str(corpus.with_name("out")), "text", settings, with_logprobs=True, shard_bytes=2000, worker_cpus=1
    )
