"""Texts of any length are made of real ones."""

from pathlib import Path

from benchmarks.texts import read_bytes


def test_bytes_of_texts_stay_utf_8(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("Elton")
    second.write_text("née")
    assert read_bytes([first, second], 15) == "Elton\nnéeElton".encode()
    for count in range(1, 40):
        content = read_bytes([first, second], count)
        assert len(content) == count
        content.decode()
    assert read_bytes([second], 2) == b"n "
