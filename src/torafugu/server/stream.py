"""One answer as server-sent events, and what keeps it honest.

The response head is held back until the first token or until a silence, since what fails before it gets a proper status
that clients can retry on. A stream that fails later ends with an error frame and a connection that closes without the
end of the body: no `[DONE]`, no finish reason, no terminating chunk, for most clients take a clean end for success.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Send

from ..orchestrate import Run
from ..pool.backend import Delta
from ..types import Reply
from .chat import Chunks
from .connection import ClientLeft

__all__ = ["Stream"]

_LAST_WRITE_S = 60.0  # the run is over by then, and its limit in seconds with it
_HEARTBEAT = b": still working\n\n"


class Stream:
    """Sends one answer. `head` gives the response headers when they are needed, knowing who was called by then."""

    def __init__(
        self, send: Send, chunks: Chunks, *, head: Callable[[], list[tuple[bytes, bytes]]], heartbeat_s: float
    ) -> None:
        self._send = send
        self._chunks = chunks
        self._head = head
        self._heartbeat_s = heartbeat_s
        self._clock = asyncio.get_running_loop().time
        self._last_sent_at = self._clock()
        self._has_text = self._has_reasoning = self._has_role = False
        self.is_open = False
        """The status line is out: an error can no longer become one."""

    async def on_delta(self, delta: Delta) -> None:
        """Pass a piece of the answer on."""
        if not delta.text and not delta.reasoning:
            return
        self._has_text |= bool(delta.text)
        self._has_reasoning |= bool(delta.reasoning)
        await self._write(self._with_role(self._chunks.delta(delta)))

    async def beat(self) -> float:
        """A comment, if the stream has been silent for long; returns when (in the loop's time) to look again."""
        if self._clock() - self._last_sent_at >= self._heartbeat_s:
            await self._write(_HEARTBEAT)
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
        frames = self._chunks.delta(rest) if rest.text or rest.reasoning else b""
        frames += self._chunks.tool_calls(reply.tool_calls) + self._chunks.last(run, reply, policy=policy)
        await self._write_last(self._with_role(frames), more_body=False)

    async def break_off(self, error: bytes) -> None:
        """The error frame. The caller returns without ending the body, whereupon the server closes the connection.

        Raises:
            ClientLeft: it does not read.
        """
        await self._write_last(b"data: " + error + b"\n\n", more_body=True)

    def _with_role(self, frames: bytes) -> bytes:
        if self._has_role:
            return frames
        self._has_role = True
        return self._chunks.first() + frames

    async def _write_last(self, frames: bytes, *, more_body: bool) -> None:
        try:
            async with asyncio.timeout(_LAST_WRITE_S):
                await self._write(frames, more_body=more_body)
        except TimeoutError:  # connected, but it does not read
            raise ClientLeft from None

    async def _write(self, frames: bytes, *, more_body: bool = True) -> None:
        self._last_sent_at = self._clock()
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._head()})
        await self._send({"type": "http.response.body", "body": frames, "more_body": more_body})
