"""Our part of configuration files that belong to other programs: put in, replaced, taken out; the rest keeps its bytes.

Where a format has comments, ours is a block, from a marker line to a marker at the end of our last line. (A marker on a
line of its own at the end of a file wanders: programs that rewrite TOML put what they add before it.) JSON has none:
there ours are members that nobody else has set, and a file beside it, `.fugu-connect`, says which. Everything is worked
out and checked before anything is written; what a file held before is kept as `.fugu-backup`. No secret is written.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..types import Json
from .jsonc import Node, find, parse, put_members, take_member

__all__ = ["Block", "Change", "Members", "Part", "apply_changes", "holds_ours", "plan_put", "plan_take"]

_BEGIN = "# >>> fugu connect: `fugu connect --remove` takes these lines out >>>"
_BEGIN_ON_OWN_LINE = "# >>> fugu connect: `fugu connect --remove` takes these lines out, and the line break before >>>"
_END = "# <<< fugu connect <<<"
_BACKUP, _SIDECAR = ".fugu-backup", ".fugu-connect"
_OWNER_ONLY = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Lines for a file that has `#` comments."""

    path: Path
    lines: str
    """Without a line break at the end, none of them blank."""
    check: Callable[[str, str], None]
    """Is given the text without our block, and the text with it. Raises ConfigError if they do not go together."""
    is_at_top: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Members of a JSON file, by the path of the object that they are in; () is the top."""

    path: Path
    members: Mapping[tuple[str, ...], Mapping[str, Json]]


Part = Block | Members


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a file is to hold; None: it is not to be there."""

    path: Path
    before: str | None
    after: str | None

    @property
    def is_needed(self) -> bool:
        return self.before != self.after


class _Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What we put into a JSON file."""

    pieces: list[str]
    """As text, in the order in which they were put in."""
    members: list[list[str]]
    """Their paths."""
    made: list[list[str]]
    """Paths of objects that were not there, outermost first."""
    is_made: bool
    """There was no object before: no file, or a blank one."""
    held: str | None
    """What a blank one held."""


def plan_put(part: Part) -> list[Change]:
    """
    Raises:
        ConfigError: the file cannot be read, or somebody else has set what we would set.
    """
    return _put_block(part) if isinstance(part, Block) else _put_members(part)


def plan_take(part: Part) -> list[Change]:
    """
    Raises:
        ConfigError: the file cannot be read.
    """
    path = part.path
    before = _read(path)
    if isinstance(part, Block):
        rest = None if before is None else _without_block(before, path)
        if rest == "" and before != "":
            rest = _read(path.with_name(path.name + _BACKUP))  # None, unless it was there and empty
        return _with_backup(path, before, rest, is_taken=True)
    sidecar_path, sidecar = _read_sidecar(path)
    if sidecar is None:
        return []
    rest = None if before is None else _without_members(before, sidecar, path)
    if rest is not None and sidecar.is_made and parse(rest).value == {}:
        rest = sidecar.held
    gone = Change(path=sidecar_path, before=_read(sidecar_path), after=None)
    return [*_with_backup(path, before, rest, is_taken=True), gone]


def holds_ours(path: Path) -> bool:
    """Whether members of ours were put into a JSON file."""
    return path.with_name(path.name + _SIDECAR).exists()


def apply_changes(changes: list[Change]) -> None:
    """Each file whole or not at all, with the permissions that it had; links stay links."""
    for change in changes:
        if not change.is_needed:
            continue
        path = change.path.resolve()
        if change.after is None:
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o7777 if path.exists() else _OWNER_ONLY
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(change.after.encode())
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


# --- blocks ---


def _put_block(block: Block) -> list[Change]:
    before = _read(block.path)
    text = before or ""
    place = _find_block(text, block.path)
    if place is not None:
        start, end, begin = place
        rest = text[:start] + text[end:]
        after = text[: text.index(begin)] + _frame(begin, block.lines) + text[end:]
    elif block.is_at_top:
        rest, after = text, _frame(_BEGIN, block.lines) + text
    else:
        is_joined = text != "" and not text.endswith("\n")
        frame = "\n" + _frame(_BEGIN_ON_OWN_LINE, block.lines) if is_joined else _frame(_BEGIN, block.lines)
        rest, after = text, text + frame
    block.check(rest, after)
    return _with_backup(block.path, before, after, is_taken=False, was_ours=place is not None)


def _frame(begin: str, lines: str) -> str:
    return f"{begin}\n{lines}  {_END}\n"


def _without_block(text: str, path: Path) -> str:
    place = _find_block(text, path)
    return text if place is None else text[: place[0]] + text[place[1] :]


def _find_block(text: str, path: Path) -> tuple[int, int, str] | None:
    """Start, end, and the marker that it begins with."""
    found = [(text.find(begin), begin) for begin in (_BEGIN, _BEGIN_ON_OWN_LINE) if begin in text]
    if not found:
        return None
    (start, begin), *more = found
    end = text.find(_END, start)
    inside = text[start:end].splitlines()[2:]  # after the marker and our first line, which may be a table's header
    is_whole = not more and end >= 0 and text.count(begin) == text.count(_END) == 1
    if not is_whole or any(not line.strip() or line.startswith("[") for line in inside):
        raise ConfigError(
            f"{path}: what `fugu connect` had put there, from {begin!r} to {_END!r}, is not as it was: take it out by "
            "hand"
        )
    end += len(_END)
    end += text.startswith("\n", end)
    is_break_ours = (
        begin == _BEGIN_ON_OWN_LINE and text[start - 1 : start] == "\n" and text[end : end + 1] in ("", "\n")
    )
    return start - is_break_ours, end, begin


# --- members of JSON ---


def _put_members(part: Members) -> list[Change]:
    path = part.path
    before = _read(path)
    sidecar_path, sidecar = _read_sidecar(path)
    text, held = before or "", before
    if sidecar is not None and text.strip():
        text, held = _without_members(text, sidecar, path), sidecar.held
    is_made = not text.strip() or (sidecar is not None and sidecar.is_made)
    if not text.strip():
        text = "{}\n"
    top = _parse(text, path)
    names = [[*holder, name] for holder, members in part.members.items() for name in members]
    if taken := [".".join(name) for name in names if find(top, name) is not None]:
        raise ConfigError(
            f"{path}: {', '.join(taken)} {'is' if len(taken) == 1 else 'are'} set already, and not by us: take it out "
            "first, or use --print and put in by hand what is missing"
        )
    made = _missing(top, part.members)
    pieces = []
    for holder, members in part.members.items():
        try:
            text, piece = put_members(text, holder, members)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
        pieces.append(piece)
    put = _Sidecar(pieces=pieces, members=names, made=made, is_made=is_made, held=held if is_made else None)
    note = Change(
        path=sidecar_path,
        before=_read(sidecar_path),
        after=msgspec.json.format(msgspec.json.encode(put), indent=2).decode() + "\n",
    )
    # The note first: members that nothing tells are ours would be taken for somebody else's.
    return [note, *_with_backup(path, before, text, is_taken=False, was_ours=sidecar is not None)]


def _missing(top: Node, members: Mapping[tuple[str, ...], object]) -> list[list[str]]:
    paths = {holder[:i]: None for holder in members for i in range(1, len(holder) + 1)}
    return [list(path) for path in paths if find(top, path) is None]


def _without_members(text: str, sidecar: _Sidecar, path: Path) -> str:
    """By the pieces, if the file is as we left it; else by name."""
    by_piece = text
    for piece in reversed(sidecar.pieces):
        if by_piece.count(piece) != 1:
            break
        by_piece = by_piece.replace(piece, "")
    else:
        with contextlib.suppress(ValueError):
            top = parse(by_piece)
            if all(find(top, member) is None for member in sidecar.members):
                return by_piece
    _parse(text, path)
    for member in sidecar.members:
        text = take_member(text, member)
    for made in reversed(sidecar.made):
        node = find(parse(text), made)
        if node is not None and node.value == {}:
            text = take_member(text, made)
    return text


def _parse(text: str, path: Path) -> Node:
    try:
        node = parse(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not node.is_object:
        raise ConfigError(f"{path}: expected a JSON object")
    return node


def _read_sidecar(path: Path) -> tuple[Path, _Sidecar | None]:
    where = path.with_name(path.name + _SIDECAR)
    text = _read(where)
    if text is None:
        return where, None
    try:
        return where, msgspec.json.decode(text, type=_Sidecar)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where}: cannot be read: {error}: it says what `fugu connect` put into {path}") from None


# --- files ---


def _with_backup(
    path: Path, before: str | None, after: str | None, *, is_taken: bool, was_ours: bool = False
) -> list[Change]:
    """The change, and what becomes of the backup: made before the first touch, kept unless it is what is there."""
    change = Change(path=path, before=before, after=after)
    backup = path.with_name(path.name + _BACKUP)
    kept = _read(backup)
    if is_taken:
        return [change, *([Change(path=backup, before=kept, after=None)] if kept is not None and kept == after else [])]
    if before is None or kept is not None or was_ours:
        return [change]
    return [Change(path=backup, before=None, after=before), change]


def _read(path: Path) -> str | None:
    """Raises ConfigError: it is there and cannot be read."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
