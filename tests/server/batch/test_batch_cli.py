"""`reformer score-corpus` where Ray isn't installed."""

import sys

import pytest
from click.testing import CliRunner

from reformer_server.batch.cli import score_corpus


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ray", "pyarrow")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [
        name for name in sys.modules if name.startswith("reformer_server.batch.") and not name.endswith(".cli")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = CliRunner().invoke(score_corpus, ["in.parquet", "out"])
    assert result.exit_code == 1
    assert "needs more than the server" in result.output
    assert 'pip install "reformer-serve[ray]"' in result.output
