"""Files that outlive a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from torafugu.files import drop_torn_line, force_to_disk, read_first_line, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What was there is replaced; where it cannot be, it stays, and nothing lies beside it."""
    path = tmp_path / "a"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]


@pytest.mark.parametrize(
    ("raw", "lines"),
    [(b"", []), (b"a\n", [b"a\n"]), (b"a\nb", [b"a\n"]), (b"ab", []), (b"a\n\nb\nc", [b"a\n", b"\n", b"b\n"])],
)
def test_a_torn_line_is_taken_off(raw: bytes, lines: list[bytes], tmp_path: Path) -> None:
    """Whole lines stay as they are, on the disk too."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    assert drop_torn_line(path) == lines
    assert path.read_bytes() == b"".join(lines)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """No file: no lines, no bytes, and none is made."""
    assert drop_torn_line(tmp_path / "none") == []
    assert force_to_disk(tmp_path / "none") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("raw", "first"), [(b"", None), (b"a\nb\n", b"a\n"), (b"mine", b"mine")])
def test_whose_file_it_is(raw: bytes, first: bytes | None, tmp_path: Path) -> None:
    """The first line is read without changing anything, be it torn."""
    path = tmp_path / "rows.jsonl"
    assert read_first_line(path) is None
    path.write_bytes(raw)
    assert read_first_line(path) == first
    assert path.read_bytes() == raw
