"""A model server on a real socket that plays faults: raw bytes, so that it can break any rule of HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Asked", "Play", "Upstream", "Writer", "chunk", "head", "respond"]

Writer = asyncio.StreamWriter


@dataclass
class Asked:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Play = Callable[[Asked, Writer], Awaitable[None]]


@dataclass
class Upstream:
    """Answers every request as `play` does, on as many connections as come."""

    play: Play
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """A client closed its connection."""

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while (asked := await self._read(reader)) is not None:
                self.asked.append(asked)
                playing = asyncio.ensure_future(self.play(asked, writer))
                leaving = asyncio.ensure_future(self._watch(reader))
                try:
                    await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for half in (playing, leaving):
                        half.cancel()
                    await asyncio.gather(playing, leaving, return_exceptions=True)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.gone.set()
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        while not reader.at_eof():  # noqa: ASYNC110  # a reader tells its end only to who reads
            await asyncio.sleep(0.005)
        self.gone.set()

    async def _read(self, reader: asyncio.StreamReader) -> Asked | None:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = raw.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Asked(path=first.split()[1], headers=headers, body=json.loads(body) if body else {})


def respond(out: Writer, status: int, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> None:
    """A whole response; a dict is sent as JSON."""
    kind = "application/json" if isinstance(body, dict) else "text/html"
    payload = json.dumps(body).encode() if isinstance(body, dict) else body
    fields = {"Content-Type": kind, "Content-Length": str(len(payload))} | (headers or {})
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in fields.items())]
    out.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)


def head(out: Writer, kind: str = "text/event-stream", **headers: str) -> None:
    """Status 200 and headers of a chunked response."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    out.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n{more}\r\n".encode())


def chunk(out: Writer, data: bytes) -> None:
    """A piece of a chunked response; an empty one ends it."""
    out.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
