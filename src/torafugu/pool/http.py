"""One attempt over HTTP: what both wire dialects share. A dialect is a `Wire`: pure functions; the network is here.

Here: sending, byte caps (of decoded bytes, so that a decompression bomb meets them) and the timeouts that only the wire
can tell apart. The total time of an attempt is bounded by the pool. Invariants: a key goes to its worker's own address
only (no redirects, no proxies); what leaves by exception is a `WorkerError`, except what `on_delta` raises: that is
the caller's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec

from ..errors import ConfigError, WorkerCode, WorkerError
from ..types import Json
from .backend import Completion, Delta, OnDelta, Query
from .faults import BAD_JSON, FOREIGN, error_of_answer, mapped, redact
from .spec import DEFAULT_BASE_URL, WorkerSpec
from .sse import SseEvent, SseReader

__all__ = ["Assembler", "Caps", "HttpBackend", "Wire", "read_key"]

COMPLETE_GRACE_S = 5.0
"""How long a stream that has said why it stopped may take over its usage numbers and its end."""
REUSE_GRACE_S = 0.05
"""Waiting for the end of the body saves the next call a TLS handshake; it rarely takes a millisecond."""
ERROR_BODY_S = 10.0
ERROR_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Decoded bytes that an answer may have. A stream spends about 300 bytes on a token of 4."""

    answer_bytes: int = 32 * 2**20
    stream_bytes: int = 128 * 2**20
    event_bytes: int = 16 * 2**20


class Assembler(Protocol):
    """Puts a streamed answer together. `feed` is given each event's decoded data."""

    has_begun: bool
    """Something of the answer has arrived: text, reasoning or a piece of a tool call."""
    is_complete: bool
    """The worker has said why it stopped; what may still come is its usage."""
    is_over: bool
    """The end marker has come."""

    def feed(self, data: Any) -> Delta | None:
        """What there is to pass on of this event."""
        ...

    def completion(self) -> Completion:
        """The whole answer; only once `is_complete`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A wire dialect, free of the network."""

    path: str
    headers: Callable[[str | None], dict[str, str]]
    """From the key."""
    build: Callable[[WorkerSpec, Query, bool], dict[str, Json]]
    """The request's body; the flag asks for a stream."""
    answers: msgspec.json.Decoder[Any]
    """Of a whole answer; the type has a field `error`."""
    read: Callable[[Any, str], Completion]
    """From a decoded answer and the worker's id."""
    events: msgspec.json.Decoder[Any]
    """Of an event's data; the type has a field `error`."""
    assemble: Callable[[str], Assembler]
    """From the worker's id."""


class HttpBackend:
    """A worker behind an endpoint. Shares its session with others and does not close it."""

    def __init__(
        self,
        spec: WorkerSpec,
        wire: Wire,
        session: aiohttp.ClientSession,
        *,
        key: str | None,
        caps: Caps = Caps(),
    ) -> None:
        base_url = spec.base_url or DEFAULT_BASE_URL[spec.dialect]
        self._spec = spec
        self._wire = wire
        self._session = session
        self._caps = caps
        self._url = base_url.rstrip("/") + wire.path
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **wire.headers(key)}
        self._secrets = (key,) if key else ()
        connect_s = spec.timeouts.connect_s
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_s, sock_connect=connect_s)

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        """One attempt. See `Backend`."""
        body = msgspec.json.encode(self._wire.build(self._spec, query, on_delta is not None))
        if on_delta is None:
            completion = await self._ask(body)
        else:
            completion = await self._stream(body, on_delta)
        return msgspec.structs.replace(completion, sent_bytes=len(body), sent_sha256=hashlib.sha256(body).hexdigest())

    async def close(self) -> None:
        """Nothing: the session is closed by who made it."""

    async def _ask(self, body: bytes) -> Completion:
        response = await self._post(body)
        try:
            return await self._read_whole(response)
        finally:
            response.release()

    async def _stream(self, body: bytes, on_delta: OnDelta) -> Completion:
        progress = _Progress(started=time.perf_counter(), assembler=self._wire.assemble(self._spec.id))
        timeouts = self._spec.timeouts
        try:
            async with asyncio.timeout(timeouts.first_token_s) as limit:
                response = await self._post(body)
                try:
                    whole = await self._pump(response, progress, on_delta, limit)
                finally:
                    response.release()
            if whole is not None:
                return whole
        except TimeoutError:
            if not limit.expired():  # the caller's own, out of `on_delta`
                raise
            if not progress.assembler.is_complete:
                raise self._timed_out(progress) from None
        except WorkerError as error:
            if not progress.assembler.is_complete:
                error.partial = progress.is_partial
                raise
        if not progress.assembler.is_complete:
            raise self._error("truncated", "the stream ended without saying why", partial=progress.is_partial)
        try:
            completion = progress.assembler.completion()
        except WorkerError as error:
            error.partial = progress.is_partial
            raise
        return msgspec.structs.replace(
            completion, first_token_ms=progress.first_token_ms, received_bytes=progress.received_bytes
        )

    async def _pump(
        self, response: aiohttp.ClientResponse, progress: _Progress, on_delta: OnDelta, limit: asyncio.Timeout
    ) -> Completion | None:
        """Feeds the assembler to the stream's end. A worker that ignores `stream` answers whole: that is returned."""
        if "json" in response.content_type:
            whole = await self._read_whole(response)
            limit.reschedule(None)
            if whole.text or whole.reasoning:
                progress.is_partial = True
                await on_delta(Delta(text=whole.text, reasoning=whole.reasoning or ""))
            return whole
        await self._check_type(response, "event-stream")
        reader = SseReader(max_event_bytes=self._caps.event_bytes)
        while not progress.assembler.is_over:
            chunk = await self._read_chunk(response)
            deadline = limit.when()
            limit.reschedule(None)  # the time that `on_delta` takes is not the worker's
            progress.received_bytes += len(chunk)
            for event in self._events(reader, chunk, progress):
                delta = self._feed(progress, event, is_last=not chunk)
                if delta is not None:
                    progress.is_partial = True
                    await on_delta(delta)
            if not chunk:
                return None
            limit.reschedule(self._next_deadline(progress, deadline))
        with suppress(*FOREIGN):
            async with asyncio.timeout(REUSE_GRACE_S):
                await response.content.readany()
        return None

    def _events(self, reader: SseReader, chunk: bytes, progress: _Progress) -> list[SseEvent]:
        if progress.received_bytes > self._caps.stream_bytes:
            raise self._error("too_large", f"a stream of more than {self._caps.stream_bytes} bytes")
        try:
            return reader.feed(chunk) if chunk else reader.finish()
        except OverflowError as error:
            raise self._error("too_large", str(error)) from None

    def _feed(self, progress: _Progress, event: SseEvent, *, is_last: bool) -> Delta | None:
        if event.data == b"[DONE]":
            progress.assembler.is_over = progress.assembler.is_complete = True
            return None
        if event.name == b"error":
            raise error_of_answer(_json_or_text(event.data), worker=self._spec.id, status=None, secrets=self._secrets)
        try:
            data = self._wire.events.decode(event.data)
        except BAD_JSON:
            if is_last:  # cut within the line, not written badly
                return None
            raise self._error("malformed", "an event that is not understood", sample=event.data) from None
        if data.error:
            raise error_of_answer({"error": data.error}, worker=self._spec.id, status=None, secrets=self._secrets)
        delta = progress.assembler.feed(data)
        if progress.first_token_ms is None and progress.assembler.has_begun:
            progress.first_token_ms = (time.perf_counter() - progress.started) * 1e3
        return delta

    def _next_deadline(self, progress: _Progress, deadline: float | None) -> float | None:
        if not progress.assembler.has_begun:
            return deadline  # heartbeats do not put off the first token
        idle_s = self._spec.timeouts.idle_s
        if progress.assembler.is_complete:
            idle_s = min(idle_s, COMPLETE_GRACE_S)
        return asyncio.get_running_loop().time() + idle_s

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        """The response's head, status 200; anything else is raised."""
        try:
            response = await self._session.post(
                self._url,
                data=body if len(body) < 2**20 else io.BytesIO(body),  # sent in pieces: aiohttp warns of large bytes
                headers=self._headers,
                allow_redirects=False,
                timeout=self._timeout,
            )
        except FOREIGN as error:
            raise mapped(error, worker=self._spec.id, secrets=self._secrets) from None
        if response.status == 200:
            return response
        try:
            raise await self._refusal(response)
        finally:
            response.release()

    async def _refusal(self, response: aiohttp.ClientResponse) -> WorkerError:
        data = b""
        with suppress(*FOREIGN):  # the status alone says enough
            async with asyncio.timeout(ERROR_BODY_S):
                while len(data) < ERROR_BODY_BYTES and (chunk := await response.content.read(ERROR_BODY_BYTES)):
                    data += chunk
        body = _json_or_text(data)
        if 300 <= response.status < 400:
            body = "a redirect, which is not followed: correct base_url"
        return error_of_answer(
            body, worker=self._spec.id, status=response.status, headers=response.headers, secrets=self._secrets
        )

    async def _read_whole(self, response: aiohttp.ClientResponse) -> Completion:
        await self._check_type(response, "json")
        chunks: list[bytes] = []
        received_bytes = response.content_length or 0
        while received_bytes <= self._caps.answer_bytes and (chunk := await self._read_chunk(response)):
            chunks.append(chunk)
            received_bytes = sum(map(len, chunks))
        if received_bytes > self._caps.answer_bytes:
            raise self._error("too_large", f"an answer of more than {self._caps.answer_bytes} bytes")
        data = b"".join(chunks)
        try:
            answer = self._wire.answers.decode(data)
        except BAD_JSON:
            raise self._error("malformed", "an answer that is not understood", sample=data) from None
        if answer.error:
            raise error_of_answer({"error": answer.error}, worker=self._spec.id, status=None, secrets=self._secrets)
        return msgspec.structs.replace(self._wire.read(answer, self._spec.id), received_bytes=len(data))

    async def _read_chunk(self, response: aiohttp.ClientResponse) -> bytes:
        """Whatever has arrived; empty at the end."""
        try:
            return await response.content.readany()
        except FOREIGN as error:
            raise mapped(error, worker=self._spec.id, secrets=self._secrets) from None

    async def _check_type(self, response: aiohttp.ClientResponse, wanted: str) -> None:
        kind = response.content_type
        if wanted in kind or "Content-Type" not in response.headers:
            return
        sample = await self._read_chunk(response)
        raise self._error("malformed", f"content type {kind[:100]!r}, expected {wanted}", sample=sample)

    def _timed_out(self, progress: _Progress) -> WorkerError:
        timeouts = self._spec.timeouts
        if not progress.assembler.has_begun:
            what = f"no token within {timeouts.first_token_s:g} s"
            return self._error("timeout_first_token", what, partial=progress.is_partial)
        return self._error("timeout_idle", f"nothing for {timeouts.idle_s:g} s", partial=progress.is_partial)

    def _error(self, code: WorkerCode, what: str, *, sample: bytes = b"", partial: bool = False) -> WorkerError:
        if sample:
            what += f": {redact(sample[:4096].decode(errors='replace'), self._secrets)}"
        return WorkerError(f"worker {self._spec.id!r}: {what}", worker=self._spec.id, code=code, partial=partial)


@dataclass(slots=True)
class _Progress:
    """How far one stream has come."""

    started: float
    assembler: Assembler
    received_bytes: int = 0
    first_token_ms: float | None = None
    is_partial: bool = False


def _json_or_text(data: bytes) -> Json:
    try:
        return msgspec.json.decode(data)
    except BAD_JSON:
        return data.decode(errors="replace")


def read_key(spec: WorkerSpec, environ: Mapping[str, str]) -> str | None:
    """The worker's key; None when its endpoint wants none.

    Raises:
        ConfigError: the variable is not set, or what it holds cannot be a key.
    """
    if spec.key_env is None:
        return None
    where = f"worker {spec.id!r}: environment variable {spec.key_env!r}"
    key = environ.get(spec.key_env, "").strip()
    if not key:
        raise ConfigError(f"{where} is not set: put the provider's key there, or remove the worker from the pool file")
    if not (key.isascii() and key.isprintable()) or " " in key:  # it becomes a header
        raise ConfigError(f"{where} holds characters that no key has: expected one line of printable ASCII")
    return key
