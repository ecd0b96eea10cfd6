"""What a request needs of its connection: the body within bounds, and to notice that the client has left.

The web server tells of a departure only to those who listen (`receive`), and sending to a departed client succeeds
silently; so every run, streamed or not, is raced against `receive`. Losing the race cancels the run and its calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from starlette.types import Receive, Send

from ..errors import RequestError
from .errors import HttpError, OverloadedError

__all__ = [
    "Admission",
    "ClientLeft",
    "Start",
    "find_header",
    "read_body",
    "run_while_connected",
    "send_error",
    "send_json",
]

T = TypeVar("T")
Beat = Callable[[], Awaitable[float]]
Start: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]

_BODY_TIMEOUT_S = 60.0
_STOPPED = "the server stops"


class ClientLeft(Exception):  # not an error
    """The client closed its connection; there is nobody to answer."""


class Admission:
    """How many runs may go on at once, and that none may begin once the server is to stop.

    There is no queue: one run too many is refused at once, because its client can wait as well as we can.
    """

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._watches: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0
        self.is_draining = False
        """No run may begin; those that have may end."""
        self.is_stopping = False
        """Those that have are broken off, too."""

    def enter(self) -> None:
        """
        Raises:
            OverloadedError: no place is free, or the server is stopping.
        """
        if self.is_draining:
            raise OverloadedError("this server is stopping: try again", code="server_stopping")
        if self.in_flight >= self._max_in_flight:
            raise OverloadedError(f"{self.in_flight} requests are in flight, which is the limit: try again")
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()

    def stop_all(self) -> None:
        """Break off every run; each answers its client with an error."""
        self.is_draining = self.is_stopping = True
        for watch in list(self._watches):
            watch.cancel(_STOPPED)

    def add(self, watch: asyncio.Task[None]) -> None:
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)


async def run_while_connected(
    work: Awaitable[T],
    receive: Receive,
    admission: Admission,
    *,
    beat: Beat | None = None,
    lend: Callable[[Start], None] | None = None,
) -> T:
    """The result of `work`, which is cancelled when the client leaves. `beat` is called when it asked to be; `lend` is
    given what starts tasks that run beside the work and are cancelled at its end.

    Raises:
        ClientLeft: the client left first.
        OverloadedError: the server had to stop first.
    """
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(receive, beat), name="watch client")
            admission.add(watch)
            beside = [watch]
            if lend is not None:
                lend(lambda coroutine: beside.append(group.create_task(coroutine, name="beside a run")))
            result = await work
            for task in beside:
                task.cancel()
        return result
    except BaseExceptionGroup as failures:
        ends = [e for e in failures.exceptions if isinstance(e, ClientLeft | OverloadedError)]
        failure = (ends or failures.exceptions)[0]
    raise failure  # outside of `except`, so that it keeps its own cause


async def _watch(receive: Receive, beat: Beat | None) -> None:
    try:
        while True:
            if beat is None:
                message = await receive()
            else:
                look_again_at = await beat()
                try:
                    async with asyncio.timeout_at(look_again_at):
                        message = await receive()
                except TimeoutError:
                    continue
            if message["type"] == "http.disconnect":
                raise ClientLeft
    except asyncio.CancelledError as error:
        if error.args == (_STOPPED,):  # by `stop_all`: an ending of this run like the client's leaving
            raise OverloadedError("this server is stopping: try again", code="server_stopping") from None
        raise


async def read_body(headers: list[tuple[bytes, bytes]], receive: Receive, *, max_bytes: int) -> bytes:
    """The request's body.

    Raises:
        RequestError: it is compressed (415), longer than `max_bytes` (413), or does not arrive (408).
        ClientLeft: the client left before it was all there.
    """
    if find_header(headers, b"content-encoding") not in (None, b"identity"):
        raise RequestError("compressed bodies are not read: send it as it is", code="unsupported_encoding", status=415)
    length = find_header(headers, b"content-length")
    if length is not None and int(length) > max_bytes:  # the server's parser has checked that it is a number
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                size += len(message["body"])
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(message["body"])
                if not message["more_body"]:
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {_BODY_TIMEOUT_S:.0f} s", code="timeout", status=408
        ) from None


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body is longer than {max_bytes} bytes", code="body_too_large", status=413)


def find_header(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header, whose name is given in lower case; None when it was not sent."""
    for key, value in headers:
        if key == name:
            return value
    return None


async def send_json(send: Send, body: bytes, *, status: int = 200, headers: list[tuple[bytes, bytes]]) -> None:
    """A complete response."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_error(
    send: Send, error: HttpError, headers: list[tuple[bytes, bytes]], *, body: bytes | None = None
) -> None:
    """An error as a complete response, `body` in place of OpenAI's shape; `headers` are added to its own."""
    await send_json(send, error.body if body is None else body, status=error.status, headers=[*error.headers, *headers])
