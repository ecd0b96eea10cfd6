"""A conversation in the order and form that one kind of server takes. Nothing of it is lost, and order is kept.

Servers differ in what they refuse: system messages that come late, two turns of one side in a row, images in the result
of a tool, ids of calls that others made. What is moved or marked says so in brackets or tags, for the model to read.
What one message becomes depends on those before it and on its own turn only, so that prompt caches stay warm.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from ..types import ImagePart, Message, OtherPart, Part, Role, TextPart, ToolCall
from .documents import FILE_KINDS, to_plain

__all__ = ["Shape", "arrange"]

_SYSTEM = ("system", "developer")
_BRIDGE = "[results received]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a kind of server takes."""

    call_id: re.Pattern[str]
    """Ids of tool calls. Nine hexadecimal digits have to fit."""
    rich_roles: frozenset[Role]
    """Whose messages may hold more than text."""
    own_kinds: frozenset[str] = frozenset()
    """Kinds of parts that stay as they are, though they hold only text."""
    late_system: Literal["anywhere", "before_answers", "never"] = "never"
    """Where system messages may stand. before_answers: between the user and the assistant, or at the end."""
    is_alternating: bool = False
    """Two messages of the user have to be one."""
    is_bridged: bool = False
    """The user may not speak right after a tool."""


def arrange(messages: Iterable[Message], shape: Shape) -> list[Message]:
    """The messages as a server of this shape takes them.

    Leading system messages are one, with role `system`, unless they may stand anywhere. Calls of tools whose results
    are missing, and results of calls that nobody made, stay as they are: it is the server that refuses them.
    """
    said = [_say_plainly(message, shape.own_kinds) for message in messages if not _is_blank_system(message)]
    said = said or [Message(role="user", content="")]  # no server takes a conversation of no turns
    moved = _move_parts(_pair(_merge(said, "assistant"), shape.call_id), shape.rich_roles)
    placed = moved if shape.late_system == "anywhere" else _place_system(moved, shape)
    if shape.is_alternating:
        placed = _merge(placed, "user")
    return _bridge(placed) if shape.is_bridged else placed


def _say_plainly(message: Message, own_kinds: frozenset[str]) -> Message:
    """Documents that are only text as text."""
    if not isinstance(message.content, tuple):
        return message
    parts: list[Part] = []
    for part in message.content:
        plain = to_plain(part) if isinstance(part, OtherPart) and part.kind not in own_kinds else None
        parts += [part] if plain is None else plain
    return msgspec.structs.replace(message, content=tuple(parts))


# --- turns ---


def _merge(messages: Sequence[Message], role: Role) -> list[Message]:
    """Neighbours of one role, and of one name, become one message."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is None or not message.role == last.role == role or message.name != last.name:
            merged.append(message)
            continue
        calls = (*last.tool_calls, *message.tool_calls)
        content = _join(last.content, message.content)
        merged[-1] = msgspec.structs.replace(last, content=content, tool_calls=calls)
    return merged


def _join(first: str | tuple[Part, ...] | None, second: str | tuple[Part, ...] | None) -> str | tuple[Part, ...] | None:
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return (*_parts_of(first), *_parts_of(second))


def _parts_of(content: str | tuple[Part, ...]) -> tuple[Part, ...]:
    return (TextPart(text=content),) if isinstance(content, str) else content


def _bridge(messages: Sequence[Message]) -> list[Message]:
    bridged: list[Message] = []
    for message in messages:
        if bridged and bridged[-1].role == "tool" and message.role == "user":
            bridged.append(Message(role="assistant", content=_BRIDGE))
        bridged.append(message)
    return bridged


# --- tool calls ---


def _pair(messages: Sequence[Message], call_id: re.Pattern[str]) -> list[Message]:
    """Results stand right behind the turn that made the calls; ids are unique, and such as the server takes."""
    paired: list[Message] = []
    taken: set[str] = set()
    i = 0
    while i < len(messages):
        message, start = messages[i], i + 1
        i = start
        if not message.tool_calls:
            paired.append(message)
            continue
        while i < len(messages) and messages[i].role != "assistant":
            i += 1
        calls, waiting = _name_calls(message.tool_calls, call_id, taken)
        results, others = [], []
        for other in messages[start:i]:
            ids = waiting.get(other.tool_call_id or "") if other.role == "tool" else None
            if ids:
                results.append(msgspec.structs.replace(other, tool_call_id=ids.popleft()))
            else:
                others.append(other)
        paired += [msgspec.structs.replace(message, tool_calls=calls), *results, *others]
    return paired


def _name_calls(
    calls: Sequence[ToolCall], call_id: re.Pattern[str], taken: set[str]
) -> tuple[tuple[ToolCall, ...], dict[str, deque[str]]]:
    """The calls with their new ids, and these by the old ones. Some servers count from 0 again in every turn."""
    named: list[ToolCall] = []
    waiting: dict[str, deque[str]] = {}
    for call in calls:
        name, n = call.id, 0
        while name in taken or not call_id.fullmatch(name):
            name = hashlib.sha256(f"{n}:{call.id}".encode("utf-8", "surrogatepass")).hexdigest()[:9]
            n += 1
        taken.add(name)
        waiting.setdefault(call.id, deque()).append(name)
        named.append(msgspec.structs.replace(call, id=name))
    return tuple(named), waiting


# --- parts ---


def _move_parts(messages: Sequence[Message], rich_roles: frozenset[Role]) -> list[Message]:
    """What a message may not hold follows in one of the user's, behind all results of the turn."""
    arranged: list[Message] = []
    moved: list[Part] = []
    for message in messages:
        if moved and message.role in ("user", "assistant"):
            arranged.append(Message(role="user", content=tuple(moved)))
            moved = []
        if isinstance(message.content, tuple) and message.role not in rich_roles:
            texts: list[str] = []
            for part in message.content:
                if isinstance(part, TextPart):
                    texts.append(part.text)
                    continue
                what = _what_is(part)
                texts.append(f"[{what}: see the user's next message]")
                moved += [TextPart(text=f"[{what} of {_origin_of(message)}]"), part]
            message = msgspec.structs.replace(message, content="\n".join(text for text in texts if text))
        arranged.append(message)
    return [*arranged, Message(role="user", content=tuple(moved))] if moved else arranged


def _what_is(part: Part) -> str:
    if isinstance(part, OtherPart):
        return "document" if part.kind in FILE_KINDS else part.kind
    return "image" if isinstance(part, ImagePart) else "text"


def _origin_of(message: Message) -> str:
    if message.role == "tool":
        return f"tool call {message.tool_call_id}"
    return "the assistant's message" if message.role == "assistant" else "the system message"


# --- system messages ---


def _place_system(messages: Sequence[Message], shape: Shape) -> list[Message]:
    """The leading ones as one; later ones where they may stand, or marked in a message of the user's."""
    start = next((i for i, message in enumerate(messages) if message.role not in _SYSTEM), len(messages))
    head = _text_of(messages[:start])
    if start == len(messages) and head:  # nobody says anything else: then it is what is asked
        return [Message(role="user", content=head)]
    placed = [Message(role="system", content=head)] if head else []
    i = start
    while i < len(messages):
        end = i
        while end < len(messages) and messages[end].role in _SYSTEM:
            end += 1
        if end == i:
            placed.append(messages[i])
            i += 1
            continue
        text = _text_of(messages[i:end])
        is_before_answer = end == len(messages) or messages[end].role == "assistant"
        has_asker = messages[i - 1].role in ("user", "tool")
        if shape.late_system == "before_answers" and is_before_answer and has_asker:
            placed.append(Message(role="system", content=text))
        else:
            placed.append(Message(role="user", content=f"<system_message>\n{text}\n</system_message>"))
        i = end
    return placed


def _text_of(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.text for message in messages)


def _is_blank_system(message: Message) -> bool:
    """Left where it is, it would part what belongs together."""
    holds_text = not isinstance(message.content, tuple) or all(isinstance(part, TextPart) for part in message.content)
    return message.role in _SYSTEM and holds_text and not message.text.strip()
