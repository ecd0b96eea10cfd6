"""One answer as server-sent events, and what keeps it honest.

The response head is held back until the first token or until a silence, since what fails before it gets a proper status
that clients can retry on. A stream that fails later ends with an error frame and, in most dialects, a connection that
closes without the end of the body: no `[DONE]`, no finish reason, no terminating chunk, for most clients take a clean
end for success.

Whatever is sent is put in one line first, in the order in which it happened; whoever then has its turn at the
connection sends all that waits. What is narrated waits there without holding up the run, for clients that read slowly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Send

from ..orchestrate import Run
from ..pool.backend import Delta
from ..types import Reply
from .connection import ClientLeft, Start
from .dialect import Frames
from .errors import HttpError

__all__ = ["Stream"]

_LAST_WRITE_S = 60.0  # the run is over by then, and its limit in seconds with it


class Stream:
    """Sends one answer. `head` gives the response headers when they are needed, knowing who was called by then."""

    def __init__(
        self, send: Send, frames: Frames, *, head: Callable[[], list[tuple[bytes, bytes]]], heartbeat_s: float
    ) -> None:
        self._send = send
        self._frames = frames
        self._head = head
        self._heartbeat_s = heartbeat_s
        self._clock = asyncio.get_running_loop().time
        self._last_sent_at = self._clock()
        self._has_text = self._has_reasoning = self._has_begun = False
        self._beginning: bytes | None = None
        """What goes ahead of everything; made before the frames that follow it, since some dialects count theirs."""
        self._is_mid_line = False
        """A worker's reasoning has ended within a line."""
        self._line: list[bytes] = []
        """Frames that wait, bounded by what a run does: its narration, and the piece of each worker that streams, which
        waits until its piece is sent."""
        self._turn = asyncio.Lock()  # who holds it may send; the line's beginning is theirs to remove
        self._has_news = asyncio.Event()
        self._start_beside: Start | None = None
        self.is_open = False
        """The status line is out: an error can no longer become one."""

    async def on_delta(self, delta: Delta) -> None:
        """Pass a piece of the answer on; returns when it is sent, so that a client that does not read is waited for."""
        if not delta.text and not delta.reasoning:
            return
        self._has_text |= bool(delta.text)
        self._has_reasoning |= bool(delta.reasoning)
        self._is_mid_line = bool(delta.reasoning) and not delta.reasoning.endswith("\n")
        self._put_delta(delta)
        await self._flush()

    def narrate(self, text: str) -> None:
        """Tell, as reasoning, what the run does. Never blocks: it is sent beside the run, or by whoever sends next.

        Once the answer has begun nothing more is told: clients show reasoning before the answer, not amid it.
        """
        if not text or self._has_text:
            return
        start, self._is_mid_line = "\n" if self._is_mid_line else "", False
        self._put_delta(Delta(reasoning=start + text))
        self._has_news.set()
        if self._start_beside is not None:  # most runs have nothing to tell, and spare the task
            self._start_beside(self._pump())
            self._start_beside = None

    def lend(self, start: Start) -> None:
        """Takes what starts a task beside the run."""
        self._start_beside = start

    async def _pump(self) -> None:
        while True:
            await self._has_news.wait()
            await self._flush()

    async def beat(self) -> float:
        """A comment, if the stream has been silent for long; returns when (in the loop's time) to look again."""
        now = self._clock()
        if self._turn.locked():  # not silent: the client does not read
            return now + self._heartbeat_s
        if now - self._last_sent_at >= self._heartbeat_s:
            self._line.append(self._frames.heartbeat)
            await self._flush()
        return self._last_sent_at + self._heartbeat_s

    async def finish(self, run: Run, reply: Reply, *, policy: str) -> None:
        """What of the answer was not streamed, and the end.

        Raises:
            ClientLeft: it does not read.
        """
        rest = Delta(
            text="" if self._has_text else reply.text,
            reasoning="" if self._has_reasoning else reply.reasoning or "",
        )
        if rest.text or rest.reasoning:
            self._put_delta(rest)
        self._begin()
        self._put(self._frames.tool_calls(reply.tool_calls) + self._frames.last(run, reply, policy=policy))
        await self._flush_last(more_body=False)

    async def break_off(self, problem: HttpError) -> None:
        """The error frame. Where the dialect wants that, the body stays open, so that the server closes the connection.

        Raises:
            ClientLeft: it does not read.
        """
        error = self._frames.error(problem)
        if self._beginning is None:
            self._line.append(error)
        else:
            self._put(error)
        await self._flush_last(more_body=self._frames.breaks_off)

    def _put_delta(self, delta: Delta) -> None:
        self._begin()
        self._put(self._frames.delta(delta))

    def _begin(self) -> None:
        if self._beginning is None:
            self._beginning = self._frames.first()

    def _put(self, frames: bytes) -> None:
        assert self._beginning is not None
        if not frames:  # the client has no use for it
            return
        if not self._has_begun:
            self._has_begun = True
            frames = self._beginning + frames
        self._line.append(frames)

    async def _flush_last(self, *, more_body: bool) -> None:
        try:
            async with asyncio.timeout(_LAST_WRITE_S):
                await self._flush(more_body=more_body)
        except TimeoutError:  # connected, but it does not read
            raise ClientLeft from None

    async def _flush(self, *, more_body: bool = True) -> None:
        async with self._turn:
            self._has_news.clear()
            count = len(self._line)
            if not count:  # another's turn took it along
                return
            if not self.is_open:
                await self._send({"type": "http.response.start", "status": 200, "headers": self._head()})
                self.is_open = True
            await self._send(
                {"type": "http.response.body", "body": b"".join(self._line[:count]), "more_body": more_body}
            )
            # Only now: a task that is cancelled while it waits for the client to read has sent nothing yet.
            del self._line[:count]
            self._last_sent_at = self._clock()
