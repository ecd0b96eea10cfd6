"""The endpoint of every dialect: run, and answer whole or as a stream. A stream is told of a workflow as it happens."""

from __future__ import annotations

import time

from starlette.types import Receive, Send

from ..events import Event
from ..orchestrate import Run
from ..types import Reply
from .config import ServerConfig
from .connection import send_json
from .errors import BudgetEndedError
from .intake import Asked, Follower, Runner
from .narration import Narrator
from .stream import Stream

__all__ = ["Completions"]


class Completions:
    """The endpoint."""

    def __init__(self, runner: Runner, *, config: ServerConfig) -> None:
        self._runner = runner
        self._config = config

    async def answer(self, asked: Asked, receive: Receive, send: Send) -> None:
        created = int(time.time())
        seen = self._runner.follow(asked)
        if asked.parsed.is_stream:
            stream = self._open_stream(asked, seen, created, send)
            answering = self._stream(asked, seen, receive, stream)
            await self._runner.respond(answering, seen, send, dialect=asked.dialect, stream=stream)
        else:
            answering = self._send_whole(asked, seen, created, receive, send)
            await self._runner.respond(answering, seen, send, dialect=asked.dialect)

    async def _send_whole(self, asked: Asked, seen: Follower, created: int, receive: Receive, send: Send) -> None:
        run = await self._runner.run(asked, seen, receive)
        body = asked.parsed.form.to_body(run, _answer_of(run), created=created, policy=asked.policy.id)
        await send_json(send, body, headers=[(b"content-type", b"application/json"), *seen.headers()])

    async def _stream(self, asked: Asked, seen: Follower, receive: Receive, stream: Stream) -> None:
        run = await self._runner.run(asked, seen, receive, stream=stream)
        await stream.finish(run, _answer_of(run), policy=asked.policy.id)

    def _open_stream(self, asked: Asked, seen: Follower, created: int, send: Send) -> Stream:
        frames = asked.parsed.form.to_frames(run_id=seen.run_id, created=created)
        stream = Stream(send, frames, head=seen.stream_headers, heartbeat_s=self._config.heartbeat_s)
        if self._config.narrate:
            narrator = Narrator()

            def tell(event: Event) -> None:
                stream.narrate(narrator.tell(event))

            seen.listen = tell
        return stream


def _answer_of(run: Run) -> Reply:
    if run.answer is None:
        by = run.stopped.by if run.stopped else None
        raise BudgetEndedError(f"the run ended by {by!r} before any worker replied")
    return run.answer
