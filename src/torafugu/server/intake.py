"""What every request that becomes a run has in common: let in, read, followed into the record, answered or failed.

Every run has its id before it begins, is recorded from its first event on, and is named in the response headers, also
when it fails. Whoever asked for it is the only one who can end it early, by leaving; and this server, by stopping.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import msgspec
from starlette.types import Receive, Scope, Send

from ..errors import FuguError
from ..events import Called, Event, Stopped
from ..orchestrate import Budget, Caller, Direct, Policy, Recorder, Run, create_run_id, orchestrate
from ..pool.prices import Price
from ..pool.spec import WorkerSpec
from ..types import Json, Pending, Request
from .auth import Client
from .config import ServerConfig
from .connection import Admission, ClientLeft, read_body, run_while_connected, send_error
from .dialect import Dialect, Parsed
from .errors import HttpError, error_to_http
from .housekeeping import Housekeeper, choose_housekeeper, is_housekeeping
from .models import Models
from .sessions import Session, Sessions, find_label, find_session
from .stream import Stream
from .waiting import WaitingRuns

__all__ = ["Asked", "Follower", "Headers", "Intake", "Runner", "log_fault"]

logger = logging.getLogger(__name__)

Headers: TypeAlias = list[tuple[bytes, bytes]]

_UNSAFE_IN_HEADER = re.compile(r"[^\x21-\x7e]")


@dataclasses.dataclass(slots=True, kw_only=True)
class _Origin:
    key_id: str | None
    session: str | None
    body_sha256: str | None
    wire: Mapping[str, Json] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that was let in and understood."""

    parsed: Parsed
    policy: Policy
    origin: _Origin
    dialect: Dialect
    resume: Pending | None
    """The run that goes on with the tool results of this request."""
    session: Session | None
    """The conversation that it belongs to. None: it leaves nothing there that the next request could use."""


class Intake:
    """An endpoint that takes requests of one dialect: what comes before `answer`."""

    def __init__(
        self,
        answer: Callable[[Asked, Receive, Send], Awaitable[None]],
        *,
        dialect: Dialect,
        waiting: WaitingRuns,
        sessions: Sessions,
        specs: Mapping[str, WorkerSpec],
        price_of: Callable[[str], Price | None],
        models: Models,
        admission: Admission,
        config: ServerConfig,
    ) -> None:
        self._answer = answer
        self._dialect = dialect
        self._waiting = waiting
        self._sessions = sessions
        self._specs = specs
        self._price_of = price_of
        self._models = models
        self._admission = admission
        self._max_body_bytes = config.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        self._admission.enter()
        try:
            headers = scope["headers"]
            body = await read_body(headers, receive, max_bytes=self._max_body_bytes)
            parsed = await self._dialect.read(body, client)
            policy = self._models.find_policy(parsed.request.model, client)
            request = msgspec.structs.replace(parsed.request, allowed=client.allowed)
            session: Session | None = None
            housekeeper: Policy | None = None
            if not isinstance(policy, Direct):  # the client named the worker: there is nothing to weigh
                housekeeper = self._find_housekeeper(request, headers)
            if housekeeper is None and not isinstance(policy, Direct):
                session = find_session(headers, hint=parsed.session, request=request, tenant=client.key_id)
                request = msgspec.structs.replace(request, warm=self._sessions.warm(session))
            asked = Asked(
                parsed=dataclasses.replace(parsed, request=request),
                policy=housekeeper or policy,
                origin=_Origin(
                    key_id=client.key_id,
                    session=find_label(headers, hint=parsed.session),
                    body_sha256=hashlib.sha256(body).hexdigest(),
                    wire=parsed.wire,
                ),
                dialect=self._dialect,
                resume=None if housekeeper else await self._waiting.find(request, policy, client),
                session=session,
            )
            await self._answer(asked, receive, send)
        finally:
            self._admission.leave()

    def _find_housekeeper(self, request: Request, headers: Headers) -> Policy | None:
        """Who answers what an agent asks for itself, beside the conversation."""
        why = is_housekeeping(request, headers)
        worker = None if why is None else choose_housekeeper(self._specs, self._price_of, request)
        return None if why is None or worker is None else Housekeeper(worker, why=why)


class Runner:
    """Runs what was asked for, as long as the client is there."""

    def __init__(
        self,
        *,
        pool: Caller,
        recorder: Callable[[str], Recorder],
        admission: Admission,
        budget: Budget,
        sessions: Sessions,
    ) -> None:
        self._pool = pool
        self._sessions = sessions
        self._recorder = recorder
        self._admission = admission
        self._budget = budget

    def follow(self, asked: Asked) -> Follower:
        """A new run's id, and where its events go.

        Raises:
            StoreError: no new run is accepted now.
        """
        run_id = create_run_id()
        return Follower(self._recorder(run_id), self._admission, run_id=run_id, policy=asked.policy.id)

    async def run(
        self, asked: Asked, seen: Follower, receive: Receive, *, stream: Stream | None = None, only_plans: bool = False
    ) -> Run:
        """As `orchestrate`.

        Raises:
            ClientLeft: the client left before the end.
            OverloadedError: the server had to stop before the end.
        """
        work = orchestrate(
            asked.parsed.request,
            asked.policy,
            self._pool,
            budget=self._budget,
            recorder=seen,
            on_delta=stream.on_delta if stream else None,
            run_id=seen.run_id,
            origin=asked.origin,
            only_plans=only_plans,
            resume=asked.resume,
        )
        run = await run_while_connected(
            work,
            receive,
            self._admission,
            beat=stream.beat if stream else None,
            lend=stream.lend if stream else None,
        )
        if run.suspended or asked.origin.wire is not None:  # the client's next request refers to it
            await seen.wait_durable()
        if asked.session is not None and run.answer is not None and len(run.steps) == 1:
            self._sessions.note(asked.session, run.answer)
        return run

    async def respond(
        self,
        answering: Awaitable[None],
        seen: Follower,
        send: Send,
        *,
        dialect: Dialect,
        stream: Stream | None = None,
    ) -> None:
        """Wait for the answer to be sent; whatever fails becomes an error that the client can read."""
        try:
            await answering
        except ClientLeft:
            logger.info("run %s: the client left", seen.run_id)
            return
        except FuguError as error:
            failure = error_to_http(error, run_id=seen.run_id)
            if failure.status >= 500:
                logger.warning("run %s: %d %s, fault of %s", seen.run_id, failure.status, error.code, error.fault)
        except Exception as error:  # noqa: BLE001  # the boundary: the client gets an answer, the log a trace
            failure = error_to_http(FuguError(""), run_id=seen.run_id)
            log_fault(error, run_id=seen.run_id)
        else:
            return
        await _send_failure(failure, seen, stream, send, dialect)


class Follower:
    """Passes the events of a run on to its record, and knows what of them belongs into the response's headers."""

    def __init__(self, recorder: Recorder, admission: Admission, *, run_id: str, policy: str) -> None:
        self._recorder = recorder
        self._admission = admission
        self.run_id = run_id
        self.listen: Callable[[Event], None] | None = None
        """Told of every event, after its record; must neither block nor raise. None: nobody listens."""
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
        if self.listen is not None:
            self.listen(event)

    async def wait_durable(self) -> None:
        await self._recorder.wait_durable()

    def headers(self) -> Headers:
        """Run and policy; who was called, for how much, and which budget ended it, as far as that is known yet."""
        headers = [
            (b"x-fugu-run-id", self.run_id.encode()),
            (b"x-request-id", self.run_id.encode()),  # where OpenAI's clients look for it
            (b"request-id", self.run_id.encode()),  # and Anthropic's
            (b"x-fugu-policy", _to_header(self._policy)),
        ]
        if self._workers:
            headers.append((b"x-fugu-workers", b",".join(map(_to_header, self._workers))))
        if self._stopped is not None and self._stopped.cost_usd is not None:
            headers.append((b"x-fugu-cost-usd", format(self._stopped.cost_usd, "f").encode()))
        if self._stopped is not None and self._stopped.by.startswith("budget:"):
            headers.append((b"x-fugu-stopped-by", _to_header(self._stopped.by)))
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


async def _send_failure(
    failure: HttpError, seen: Follower, stream: Stream | None, send: Send, dialect: Dialect
) -> None:
    if stream is not None and stream.is_open:
        await stream.break_off(failure)  # ends in `ClientLeft` when nobody reads it, which `_Guarded` knows
    else:
        await send_error(send, failure, seen.headers(), body=dialect.error_body(failure, run_id=seen.run_id))


def _to_header(value: str) -> bytes:
    """Visible ASCII only; ids are nearly always that already, and a policy's may not break out of its header."""
    return _UNSAFE_IN_HEADER.sub("_", value).encode()
