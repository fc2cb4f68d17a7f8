"""A tokenizer's files from strangers: spiece.model and pixels.json. Usable, or refused with CheckpointError."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from reformer_core.errors import InvalidTextError
from reformer_core.tokenizers import load_tokenizer
from tests.fuzz.checkpoints import VALUES, refused_or_loaded
from tests.fuzz.target import Judge, of_bytes
from tests.fuzz.texts import foreign, lossless


def _loading(name: str) -> Callable[[], AbstractContextManager[Judge[bytes]]]:
    @contextmanager
    def judging() -> Iterator[Judge[bytes]]:
        with tempfile.TemporaryDirectory() as folder:

            def judge(content: bytes) -> None:
                (Path(folder) / name).write_bytes(content)
                refused_or_loaded(lambda: _use(Path(folder)))

            yield judge

    return judging


def _use(directory: Path) -> None:
    """What is loaded also works."""
    tokenizer = load_tokenizer(directory)
    try:
        ids = tokenizer.encode("a single man   “señor”\u2581!".encode()).tolist()
    except InvalidTextError:
        return  # a picture was expected
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    tokenizer.decode(ids).encode()


def _sizes() -> list[bytes]:
    return [json.dumps({"height": height, "width": 6}).encode() for height in VALUES]


PIECES = of_bytes(
    "pieces",
    "spiece.model files with bytes changed",
    10_000,
    lambda: [lossless().model, foreign().model],
    _loading("spiece.model"),
)
SIZES = of_bytes("sizes", "pixels.json files with bytes changed", 10_000, _sizes, _loading("pixels.json"))
