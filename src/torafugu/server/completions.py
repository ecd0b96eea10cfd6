"""POST /v1/chat/completions: admit, read, run, answer. The one place where a run meets its client.

Every run has its id before it begins, is recorded from its first event on, and is named in the response headers, also
when it fails. Whoever asked for it is the only one who can end it early, by leaving; and this server, by stopping.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import time
import traceback
from collections.abc import Callable
from typing import TypeAlias

import msgspec
from starlette.types import Receive, Scope, Send

from ..errors import FuguError
from ..events import Called, Event, Stopped
from ..orchestrate import Budget, Caller, Policy, Recorder, Run, create_run_id, orchestrate
from ..types import Reply
from .auth import Client
from .chat import Chat, Chunks, parse_chat, run_to_body
from .config import ServerConfig
from .connection import Admission, ClientLeft, find_header, read_body, run_while_connected, send_error, send_json
from .errors import BudgetEndedError, HttpError, error_to_http
from .models import Models
from .stream import Stream

__all__ = ["Completions", "log_fault"]

logger = logging.getLogger(__name__)

Headers: TypeAlias = list[tuple[bytes, bytes]]

_SESSION_HEADERS = (b"x-session-id", b"session-id", b"x-claude-code-session-id")
_MAX_SESSION = 200
_UNSAFE_IN_HEADER = re.compile(r"[^\x21-\x7e]")


@dataclasses.dataclass(slots=True, kw_only=True)
class _Origin:
    key_id: str | None
    session: str | None
    body_sha256: str | None


class Completions:
    """The endpoint."""

    def __init__(
        self,
        *,
        models: Models,
        pool: Caller,
        recorder: Callable[[str], Recorder],
        admission: Admission,
        budget: Budget,
        config: ServerConfig,
    ) -> None:
        self._budget = budget
        self._models = models
        self._pool = pool
        self._recorder = recorder
        self._admission = admission
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        self._admission.enter()
        try:
            headers = scope["headers"]
            body = await read_body(headers, receive, max_bytes=self._config.max_body_bytes)
            chat = parse_chat(body)
            policy = self._models.find_policy(chat.request.model, client)
            if client.allowed is not None:
                request = msgspec.structs.replace(chat.request, allowed=client.allowed)
                chat = dataclasses.replace(chat, request=request)
            origin = _Origin(
                key_id=client.key_id,
                session=_find_session(headers, chat),
                body_sha256=hashlib.sha256(body).hexdigest(),
            )
            await self._answer(chat, policy, origin, receive, send)
        finally:
            self._admission.leave()

    async def _answer(self, chat: Chat, policy: Policy, origin: _Origin, receive: Receive, send: Send) -> None:
        run_id = create_run_id()
        created = int(time.time())
        seen = _Follower(self._recorder(run_id), self._admission, run_id=run_id, policy=policy.id)
        stream = self._open_stream(chat, seen, created, send) if chat.is_stream else None
        work = orchestrate(
            chat.request,
            policy,
            self._pool,
            budget=self._budget,
            recorder=seen,
            on_delta=stream.on_delta if stream else None,
            run_id=run_id,
            origin=origin,
        )
        try:
            run = await run_while_connected(work, receive, self._admission, beat=stream.beat if stream else None)
            reply = _answer_of(run)
            if stream:
                await stream.finish(run, reply, policy=policy.id)
            else:
                body = run_to_body(run, reply, created=created, policy=policy.id)
                await send_json(send, body, headers=[(b"content-type", b"application/json"), *seen.headers()])
        except ClientLeft:
            logger.info("run %s: the client left", run_id)
            return
        except FuguError as error:
            failure = error_to_http(error, run_id=run_id)
            if failure.status >= 500:
                logger.warning("run %s: %d %s, fault of %s", run_id, failure.status, error.code, error.fault)
        except Exception as error:  # noqa: BLE001  # the boundary: the client gets an answer, the log a trace
            failure = error_to_http(FuguError(""), run_id=run_id)
            log_fault(error, run_id=run_id)
        else:
            return
        await _send_failure(failure, seen, stream, send)

    def _open_stream(self, chat: Chat, seen: _Follower, created: int, send: Send) -> Stream:
        chunks = Chunks(run_id=seen.run_id, created=created, model=chat.request.model, include_usage=chat.include_usage)
        return Stream(send, chunks, head=seen.stream_headers, heartbeat_s=self._config.heartbeat_s)


class _Follower:
    """Passes the events of a run on to its record, and knows what of them belongs into the response's headers."""

    def __init__(self, recorder: Recorder, admission: Admission, *, run_id: str, policy: str) -> None:
        self._recorder = recorder
        self._admission = admission
        self.run_id = run_id
        self._policy = policy
        self._workers: dict[str, None] = {}
        self._stopped: Stopped | None = None

    def write(self, event: Event) -> None:
        if isinstance(event, Called):
            self._workers[event.worker] = None
        elif isinstance(event, Stopped):
            # The loop sees only that it was cancelled; who cancelled it is known here.
            if event.by == "client_closed" and self._admission.is_stopping:
                event = msgspec.structs.replace(event, by="interrupted")
            self._stopped = event
        self._recorder.write(event)

    async def wait_durable(self) -> None:
        await self._recorder.wait_durable()

    def headers(self) -> Headers:
        """Run and policy; who was called and for how much, as far as that is known yet."""
        headers = [
            (b"x-fugu-run-id", self.run_id.encode()),
            (b"x-request-id", self.run_id.encode()),  # where OpenAI's clients look for it
            (b"x-fugu-policy", _to_header(self._policy)),
        ]
        if self._workers:
            headers.append((b"x-fugu-workers", b",".join(map(_to_header, self._workers))))
        if self._stopped is not None and self._stopped.cost_usd is not None:
            headers.append((b"x-fugu-cost-usd", format(self._stopped.cost_usd, "f").encode()))
        return headers

    def stream_headers(self) -> Headers:
        return [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the events back
            *self.headers(),
        ]


def log_fault(error: Exception, *, run_id: str | None = None) -> None:
    """An error nobody meant to raise: its type and origin. Its message is left out, for it may quote a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("run %s: %s, a fault of this program\n%s", run_id, type(error).__name__, frames)


def _answer_of(run: Run) -> Reply:
    if run.answer is None:
        by = run.stopped.by if run.stopped else None
        raise BudgetEndedError(f"the run ended by {by!r} before any worker replied")
    return run.answer


async def _send_failure(failure: HttpError, seen: _Follower, stream: Stream | None, send: Send) -> None:
    if stream is not None and stream.is_open:
        await stream.break_off(failure.body)  # ends in `ClientLeft` when nobody reads it, which `_Guarded` knows
    else:
        await send_error(send, failure, seen.headers())


def _find_session(headers: Headers, chat: Chat) -> str | None:
    """What groups requests into a conversation, by the ladder of what clients send; never echoed to anyone."""
    session = next((v for name in _SESSION_HEADERS if (v := find_header(headers, name))), None)
    text = session.decode("latin-1") if session is not None else chat.cache_key
    if text is not None and len(text) > _MAX_SESSION:
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text or None


def _to_header(value: str) -> bytes:
    """Visible ASCII only; ids are nearly always that already, and a policy's may not break out of its header."""
    return _UNSAFE_IN_HEADER.sub("_", value).encode()
