"""Which part of a conversation is read, and in which pieces. Pure: the tokeniser comes as a function.

A window is at most WINDOW_PIECES word pieces of one message between [CLS] and [SEP]. Windows start at the message's
start, so those of old messages stay as they are while a conversation grows, and their hidden states can be kept. System
and developer messages are not read: a harness's long constant prompt would drown the task. Nor are tool calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..types import Message

__all__ = ["MAX_WINDOWS", "WINDOW_PIECES", "Cut", "Tokenise", "Window", "cut"]

WINDOW_PIECES = 254  # with [CLS] and [SEP] the 256 tokens at which the model's authors cut
MAX_WINDOWS = 8  # 0.2 s when none is cached
# Of a longer message only these ends are tokenised, in 10 ms: as many windows of English as can be read, or more.
HEAD_CHARS, TAIL_CHARS = 4_096, 12_288
CLS, SEP = 101, 102

Window: TypeAlias = tuple[int, ...]
Tokenise: TypeAlias = Callable[[str], list[int]]
"""Text -> word pieces, without [CLS] and [SEP]. Never given a lone surrogate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is read of a conversation, oldest first; at least one window."""

    windows: tuple[Window, ...]
    pieces_read: int
    pieces_total: int | None
    """None when not all of the text was tokenised."""


def cut(messages: Sequence[Message], tokenise: Tokenise) -> Cut:
    """All windows of the conversation if they are at most MAX_WINDOWS; else the newest, the first of which gives way to
    the first window of the first user message: the task, as a rule.

    Tokenises no more messages than that takes, so that a late turn of a session costs what an early one does.
    """
    read = [message for message in messages if message.role not in ("system", "developer")]
    first_user = next((i for i, message in enumerate(read) if message.role == "user"), 0)
    newest: list[Window] = []  # newest first
    pieces: int | None = 0
    unread = len(read)  # read[unread:] is in `newest`
    while unread and len(newest) < MAX_WINDOWS:
        unread -= 1
        windows, is_whole = _windows_of(read[unread].text, tokenise)
        newest.extend(reversed(windows))
        pieces = pieces + _count(windows) if is_whole and pieces is not None else None
    kept = newest[MAX_WINDOWS - 1 :: -1]
    if unread > first_user or len(newest) > MAX_WINDOWS:
        opening = _windows_of(read[first_user].text, tokenise)[0][:1]
        if opening and opening[0] not in kept:
            kept = opening + kept[1:]
    kept = kept or [(CLS, SEP)]
    return Cut(windows=tuple(kept), pieces_read=_count(kept), pieces_total=None if unread else pieces)


def _windows_of(text: str, tokenise: Tokenise) -> tuple[list[Window], bool]:
    """The windows of one message, and whether all of it was tokenised. None for a text without word pieces."""
    is_whole = len(text) <= HEAD_CHARS + TAIL_CHARS
    spans = [text] if is_whole else [text[:HEAD_CHARS], text[-TAIL_CHARS:]]
    windows = []
    for span in spans:
        pieces = tokenise(span.encode("utf-8", "replace").decode())  # lone surrogates become "?"
        windows += [
            (CLS, *pieces[start : start + WINDOW_PIECES], SEP) for start in range(0, len(pieces), WINDOW_PIECES)
        ]
    return windows, is_whole


def _count(windows: Iterable[Window]) -> int:
    return sum(len(window) - 2 for window in windows)
