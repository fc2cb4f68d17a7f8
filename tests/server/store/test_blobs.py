"""Named bytes: whole or not there, whatever the file system."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from reformer_server.errors import StoreUnavailableError
from reformer_server.store.blobs import UNFINISHED, Blobs


class FailingFile:
    def read(self, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def blobs(url: str) -> Blobs:
    return Blobs(url)


def test_there_when_committed(blobs: Blobs) -> None:
    writer = blobs.writer("one/two/a")
    writer.write(b"abc")
    writer.write(memoryview(b"def"))
    writer.commit()
    writer.discard()
    assert blobs.read("one/two/a", 100) == b"abcdef"
    assert blobs.read("one/two/a", 2) == b"ab"
    assert [(blob.name, blob.size) for blob in blobs.list()] == [("one/two/a", 6)]
    assert [blob.name for blob in blobs.list("one/two")] == ["one/two/a"]
    assert blobs.list("elsewhere") == []


def test_not_there_when_discarded(blobs: Blobs) -> None:
    blobs.write("a", b"before")
    writer = blobs.writer("b")
    writer.write(b"abc")
    writer.discard()
    writer.discard()
    assert [blob.name for blob in blobs.list()] == ["a"]
    with pytest.raises(FileNotFoundError):
        blobs.read("b", 1)


def test_a_change_shows_in_its_version(blobs: Blobs) -> None:
    blobs.write("a", b"one")
    [before] = blobs.list()
    blobs.write("a", b"two")
    [after] = blobs.list()
    assert before.version != after.version
    assert blobs.read("a", 9) == b"two"


def test_deleting_is_idempotent(blobs: Blobs) -> None:
    blobs.write("a", b"x")
    blobs.delete("a")
    blobs.delete("a")
    assert blobs.list() == []


def test_a_folder_knows_how_much_is_free(url: str, blobs: Blobs) -> None:
    assert (blobs.free_bytes is None) == url.startswith("memory")


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "store"

    @pytest.fixture
    def blobs(self, folder: Path) -> Blobs:
        return Blobs(str(folder))

    def test_an_earlier_version_stays_until_the_new_one_is_whole(self, blobs: Blobs) -> None:
        blobs.write("a", b"before")
        writer = blobs.writer("a")
        writer.write(b"half")
        assert blobs.read("a", 9) == b"before"
        assert sum(blob.name.endswith(UNFINISHED) for blob in blobs.list()) == 1
        writer.commit()
        assert blobs.read("a", 9) == b"half"
        assert len(blobs.list()) == 1

    def test_only_the_owner_can_read(self, folder: Path, blobs: Blobs) -> None:
        blobs.write("one/a", b"x")
        assert stat.S_IMODE((folder / "one/a").stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "one").stat().st_mode) == 0o700

    def test_a_folder_that_is_gone_is_not_made_again(self, folder: Path, blobs: Blobs) -> None:
        """A disk that isn't mounted must not fill the one below it."""
        folder.rmdir()
        for use in (
            lambda: blobs.read("a", 1),
            lambda: blobs.write("a", b"x"),
            lambda: blobs.writer("one/a"),
            lambda: blobs.delete("a"),
            lambda: blobs.list(),
            lambda: blobs.free_bytes,
        ):
            with pytest.raises(StoreUnavailableError, match="can't be used now"):
                use()
        assert not folder.exists()

    def test_a_folder_that_cant_be_read_is_not_an_empty_one(
        self, folder: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All contents would seem to be of no use, if the ids' folder did."""
        blobs.write("one/ids/a", b"x")
        scandir = os.scandir

        def broken(path: str) -> Any:
            if str(path).endswith("/ids"):
                raise OSError(errno.EIO, "Input/output error")
            return scandir(path)

        monkeypatch.setattr("os.scandir", broken)
        with pytest.raises(StoreUnavailableError, match="can't be used now"):
            blobs.list()

    def test_a_disk_that_breaks_while_it_is_read_is_an_unavailable_store(
        self, folder: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blobs.write("a", b"x")
        reader = blobs.open("a")
        monkeypatch.setattr(reader, "_file", FailingFile())
        with pytest.raises(StoreUnavailableError) as caught:
            reader.read(1)
        assert "Input/output error" in caught.value.reason

    def test_what_fails_leaves_nothing(self, blobs: Blobs) -> None:
        with pytest.raises(StoreUnavailableError) as caught:
            Blobs("/dev/null/store")
        assert "Not a directory" in caught.value.reason
        writer = blobs.writer("a")
        writer.write(b"x")
        for blob in blobs.list():
            blobs.delete(blob.name)
        with pytest.raises(FileNotFoundError):
            writer.commit()
        writer.discard()
        assert blobs.list() == []


@pytest.mark.parametrize("url", ["nosuch://x", "s3"])
def test_an_url_of_no_driver(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if url == "s3":  # a plain name is a folder
        Blobs(url).write("a", b"x")
        assert (tmp_path / "s3" / "a").read_bytes() == b"x"
        return
    with pytest.raises(StoreUnavailableError) as caught:
        Blobs(url)
    assert "nosuch" in caught.value.reason
