"""Server-sent events from bytes, whatever the chunks they arrive in.

Works on bytes throughout, so a character cut in two by a chunk boundary is no special case. Invariant: any chunking of
a stream gives the same events.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SseEvent", "SseReader"]


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its name (`message` when the stream gives none) and its data lines, joined by a newline."""

    name: bytes
    data: bytes


class SseReader:
    """Feed it chunks, get events. `max_event_bytes` bounds what it holds of an unfinished event."""

    def __init__(self, *, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._unfinished: list[bytes] = []  # pieces of the last line, joined once: a long line stays linear
        self._held_bytes = 0
        self._name = b""
        self._data: list[bytes] = []
        self._ended_with_cr = False
        self._is_first_line = True

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that end within `chunk`.

        Raises:
            OverflowError: an event is larger than `max_event_bytes`.
        """
        if self._ended_with_cr and chunk:
            self._ended_with_cr = False
            if chunk.startswith(b"\n"):  # the second half of a CRLF whose first half ended the line
                chunk = chunk[1:]
        self._held_bytes += len(chunk)
        if b"\n" not in chunk and b"\r" not in chunk:
            self._unfinished.append(chunk)
            self._check_size()
            return []
        self._unfinished.append(chunk)
        lines = b"".join(self._unfinished).splitlines(keepends=True)
        self._unfinished = [lines.pop()] if lines[-1][-1:] not in (b"\n", b"\r") else []
        self._ended_with_cr = chunk.endswith(b"\r")
        events: list[SseEvent] = []
        for line in lines:
            self._read_line(line.rstrip(b"\r\n"), events)
        self._held_bytes = sum(map(len, self._data)) + sum(map(len, self._unfinished))
        self._check_size()
        return events

    def finish(self) -> list[SseEvent]:
        """What the stream's end leaves: an event that no blank line ended."""
        events: list[SseEvent] = []
        if self._unfinished:
            self._read_line(b"".join(self._unfinished), events)
            self._unfinished = []
        self._read_line(b"", events)
        return events

    def _check_size(self) -> None:
        if self._held_bytes > self._max_event_bytes:
            raise OverflowError(f"an event of more than {self._max_event_bytes} bytes")

    def _read_line(self, line: bytes, events: list[SseEvent]) -> None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                events.append(SseEvent(self._name or b"message", b"\n".join(self._data)))
            self._name, self._data = b"", []
            return
        field, _, value = line.partition(b":")  # a comment has the empty field
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
