"""The reader of server-sent events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torafugu.pool.sse import SseEvent, SseReader


def read(chunks: list[bytes]) -> list[SseEvent]:
    reader = SseReader(max_event_bytes=10**6)
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return events + reader.finish()


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """Pieces of these sizes, again and again; of size 0 too."""
    pieces, start = [], 0
    for size in itertools.cycle([*sizes, 1]):
        if start >= len(stream):
            return pieces
        pieces.append(stream[start : start + size])
        start += size
    raise AssertionError


LINES = st.sampled_from(
    [b"data: {}", b"data:x", b"data", b": heartbeat", b"event: error", "data: näïve 猫 🐡".encode(), b"id: 7", b"", b""]
)
SIZES = st.lists(st.integers(0, 9), max_size=9)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=20), SIZES)
def test_any_chunking_gives_the_same_events(lines: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    """However a stream is cut, within a character or between CR and LF, its events are the same."""
    stream = b"".join(line + end for line, end in lines)
    assert read(cut(stream, sizes)) == read([stream])


@given(st.binary(max_size=200), SIZES)
def test_any_bytes_can_be_read(stream: bytes, sizes: list[int]) -> None:
    """Bytes that are no event stream raise nothing, and give the same events in any chunking."""
    assert read(cut(stream, sizes)) == read([stream])


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20), min_size=1, max_size=5),
    ENDS,
)
def test_an_event_is_read_back_as_it_was_written(lines: list[str], end: bytes) -> None:
    """The data lines of an event come back joined by newlines, for every line end."""
    stream = b"".join(b"data: " + line.encode() + end for line in lines) + end
    assert read([stream]) == [SseEvent(b"message", "\n".join(lines).encode())]


def test_an_event_is_given_as_soon_as_its_blank_line_arrives() -> None:
    """No event waits for the chunk after it, whichever the line ends are."""
    for end in (b"\n", b"\r\n", b"\r"):
        assert SseReader(max_event_bytes=100).feed(b"data: now" + end + end) == [SseEvent(b"message", b"now")]


def test_comments_names_and_a_byte_order_mark() -> None:
    """Comments are no events, an event's name is its own only, and a byte order mark is not part of the first field."""
    stream = b"\xef\xbb\xbfdata: a\n\n: ping\n\nevent: error\ndata: b\n\ndata: c\n\n"
    assert read([stream]) == [SseEvent(b"message", b"a"), SseEvent(b"error", b"b"), SseEvent(b"message", b"c")]


def test_an_event_that_the_end_of_the_stream_ends_is_given() -> None:
    """Servers that leave out the last blank line, or even the line end, lose nothing."""
    assert read([b"data: a\n\ndata: [DONE]"]) == [SseEvent(b"message", b"a"), SseEvent(b"message", b"[DONE]")]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 50, b"data: " + b"x" * 50 + b"\n"])
def test_an_event_without_end_is_refused(piece: bytes) -> None:
    """An event is not held beyond its bound, be it one long line or many."""
    reader = SseReader(max_event_bytes=1000)
    with pytest.raises(OverflowError, match="1000 bytes"):
        list(map(reader.feed, [piece] * 100))
