"""JSON with comments, as text that a person wrote: members are put in and taken out, all else keeps its bytes.

What is put in is one piece of text, so that taking out that piece restores the file. Where a program has written the
file anew since, members are taken out by name instead. Reads what JavaScript tools read: `//` and `/* */` comments and
commas before a closing bracket.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..types import Json

__all__ = ["Member", "Node", "find", "parse", "put_members", "take_member"]

_SPACE = re.compile(r"(?:[ \t\r\n]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_BARE = re.compile(r"[-+.\w]+")
_DEPTH_LIMIT = 100
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A value and where it stands: from `start` to `end`, exclusive."""

    start: int
    end: int
    value: Json
    members: Mapping[str, Member] = field(default_factory=dict)
    """Of an object; of two with one name, the last, which is the one that counts."""

    @property
    def is_object(self) -> bool:
        return isinstance(self.value, dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A name and its value, with the commas around it."""

    start: int
    node: Node
    comma_before: int | None
    comma_after: int | None


def parse(text: str) -> Node:
    """The value that a text holds.

    Raises:
        ValueError: it is not JSON with comments; says where.
    """
    start = _skip(text, 1 if text.startswith(_BOM) else 0)
    node = _read(text, start, 0)
    if (rest := _skip(text, node.end)) < len(text):
        raise _wrong(text, rest, "the end of the file")
    return node


def find(node: Node, path: Sequence[str]) -> Node | None:
    """The value under these names; None when there is none."""
    for name in path:
        if name not in node.members:
            return None
        node = node.members[name].node
    return node


def put_members(text: str, path: Sequence[str], members: Mapping[str, Json]) -> tuple[str, str]:
    """Puts members into the object at `path`, first in it, and makes the objects on the way that are not there.
    Returns the text, and the piece of it that is new.

    Raises:
        ValueError: the text is not JSON with comments, or something on the way is no object.
    """
    top = parse(text)
    node = top
    for i, name in enumerate(path):
        if name not in node.members:
            for missing in reversed(path[i:]):
                members = {missing: members}
            break
        node = node.members[name].node
        if not node.is_object:
            raise ValueError(f"{'.'.join(path[: i + 1])} is no object")
    if not node.is_object:
        raise ValueError("the file holds no object")
    at = node.start + 1
    piece = _render(text, top, node, members)
    return text[:at] + piece + text[at:], piece


def take_member(text: str, path: Sequence[str]) -> str:
    """Takes out the member at `path`; a text without it stays as it is."""
    holder = find(parse(text), path[:-1])
    if holder is None or path[-1] not in holder.members:
        return text
    member = holder.members[path[-1]]
    start = member.start
    while text[start - 1] in " \t\r\n":
        start -= 1
    if member.comma_after is not None:
        return text[:start] + text[member.node.end : member.comma_after] + text[member.comma_after + 1 :]
    if member.comma_before is not None:
        return text[: member.comma_before] + text[member.comma_before + 1 : start] + text[member.node.end :]
    return text[:start] + text[member.node.end :]


def _render(text: str, top: Node, node: Node, members: Mapping[str, Json]) -> str:
    """Indented as what stands there already is."""
    is_empty = not node.members
    newline = "\r\n" if "\r\n" in text else "\n"
    if not is_empty and newline not in text[node.start : node.end]:  # all on one line
        return json.dumps(dict(members), ensure_ascii=False)[1:-1] + ", "
    closing = _indentation(text, node.start)
    unit = _first_indentation(text, top) or "  "
    inner = closing + unit if is_empty else _indentation(text, min(m.start for m in node.members.values()))
    lines = json.dumps(dict(members), ensure_ascii=False, indent=unit).split("\n")[1:-1]
    body = newline + newline.join(inner + line.removeprefix(unit) for line in lines)
    if not is_empty:
        return f"{body},"
    return body if newline in text[node.start : node.end] else body + newline + closing


def _first_indentation(text: str, top: Node) -> str:
    starts = [member.start for member in top.members.values()]
    return _indentation(text, min(starts)) if starts else ""


def _indentation(text: str, at: int) -> str:
    """Of the line in which `at` is."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _read(text: str, at: int, depth: int) -> Node:
    if depth > _DEPTH_LIMIT:
        raise ValueError(f"nested more than {_DEPTH_LIMIT} deep")
    if text.startswith("{", at):
        return _read_object(text, at, depth)
    if text.startswith("[", at):
        return _read_array(text, at, depth)
    match = _STRING.match(text, at) or _BARE.match(text, at)
    if match is None:
        raise _wrong(text, at, "a value")
    try:
        return Node(start=at, end=match.end(), value=json.loads(match[0]))
    except json.JSONDecodeError:
        raise _wrong(text, at, "a value") from None


def _read_object(text: str, start: int, depth: int) -> Node:
    found: list[tuple[str, int, Node]] = []
    commas: list[int] = []
    at = _skip(text, start + 1)
    while not text.startswith("}", at):
        name = _STRING.match(text, at)
        if name is None:
            raise _wrong(text, at, "a name in double quotes, or }")
        colon = _skip(text, name.end())
        if not text.startswith(":", colon):
            raise _wrong(text, colon, ":")
        node = _read(text, _skip(text, colon + 1), depth + 1)
        found.append((json.loads(name[0], strict=False), at, node))
        at = _skip(text, node.end)
        if text.startswith(",", at):
            commas.append(at)
            at = _skip(text, at + 1)
        elif not text.startswith("}", at):
            raise _wrong(text, at, ", or }")
    members = {
        name: Member(
            start=begin,
            node=node,
            comma_before=commas[i - 1] if i else None,
            comma_after=commas[i] if i < len(commas) else None,
        )
        for i, (name, begin, node) in enumerate(found)
    }
    return Node(start=start, end=at + 1, value={name: m.node.value for name, m in members.items()}, members=members)


def _read_array(text: str, start: int, depth: int) -> Node:
    values = []
    at = _skip(text, start + 1)
    while not text.startswith("]", at):
        node = _read(text, at, depth + 1)
        values.append(node.value)
        at = _skip(text, node.end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            raise _wrong(text, at, ", or ]")
    return Node(start=start, end=at + 1, value=values)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches nothing too
    return match.end()


def _wrong(text: str, at: int, expected: str) -> ValueError:
    line = text.count("\n", 0, at) + 1
    shown = repr(text[at : at + 20]) if at < len(text) else "the end of the file"
    return ValueError(f"line {line}: {shown} where {expected} was expected")
