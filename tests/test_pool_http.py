"""Workers behind endpoints, against a server that plays every fault: both dialects, streaming and not."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from torafugu.errors import ConfigError, WorkerError
from torafugu.pool import Pool, PoolSpec, Query, Timeouts, WorkerSpec, open_pool
from torafugu.pool.anthropic import WIRE as ANTHROPIC
from torafugu.pool.backend import Completion, Delta
from torafugu.pool.http import Caps, HttpBackend, read_key
from torafugu.pool.openai import WIRE as OPENAI
from torafugu.types import Message, Usage
from upstream import Asked, Play, Upstream, Writer, chunk, head, respond

KEY = "very-secret-0123456789"
SMALL_CAPS = Caps(answer_bytes=50_000, stream_bytes=50_000, event_bytes=20_000)
both_dialects = pytest.mark.parametrize("dialect", ["openai", "anthropic"])
both_modes = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


# --- what a server that is well says ---


def whole_answer(dialect: str, text: str = "Hello") -> dict[str, Any]:
    if dialect == "openai":
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        return {"id": "c1", "model": "m-1", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    usage = {"input_tokens": 7, "output_tokens": 2}
    content = [{"type": "text", "text": text}]
    return {"id": "c1", "model": "m-1", "content": content, "stop_reason": "end_turn", "usage": usage}


def text_event(dialect: str, text: str) -> bytes:
    if dialect == "openai":
        return event({"choices": [{"delta": {"content": text}}]})
    return event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})


def finish_event(dialect: str) -> bytes:
    if dialect == "openai":
        return event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}})


def end_events(dialect: str) -> bytes:
    if dialect == "openai":
        return event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}) + b"data: [DONE]\n\n"
    return event({"type": "message_stop"})


def start_events(dialect: str) -> bytes:
    if dialect == "openai":
        return event({"id": "c1", "model": "m-1", "choices": [{"delta": {"role": "assistant", "content": ""}}]})
    message = {"id": "c1", "model": "m-1", "content": [], "usage": {"input_tokens": 7, "output_tokens": 1}}
    return event({"type": "message_start", "message": message})


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def whole_stream(dialect: str, pieces: Sequence[str] = ("Hel", "lo")) -> list[bytes]:
    texts = [text_event(dialect, piece) for piece in pieces]
    return [start_events(dialect), *texts, finish_event(dialect), end_events(dialect)]


async def answer_well(asked: Asked, out: Writer) -> None:
    dialect = "openai" if asked.path.endswith("/chat/completions") else "anthropic"
    if not asked.body.get("stream"):
        respond(out, 200, whole_answer(dialect))
        return
    head(out)
    for piece in whole_stream(dialect):
        chunk(out, piece)
    chunk(out, b"")


def saying(status: int, body: bytes | dict[str, Any], **headers: str) -> Play:
    async def play(asked: Asked, out: Writer) -> None:
        respond(out, status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return play


def streaming(*pieces: bytes, then: str = "end") -> Play:
    """`then`: end cleanly, cut the connection, or hang."""

    async def play(asked: Asked, out: Writer) -> None:
        head(out)
        for piece in pieces:
            chunk(out, piece)
        await out.drain()
        if then == "end":
            chunk(out, b"")
        elif then == "cut":
            await asyncio.sleep(0.02)  # let what was written arrive
            out.transport.abort()
        else:
            await asyncio.Event().wait()

    return play


async def hang(asked: Asked, out: Writer) -> None:
    await asyncio.Event().wait()


# --- asking it ---


def spec_for(dialect: Any, url: str, **fields: Any) -> WorkerSpec:
    return WorkerSpec(id="w", dialect=dialect, model="m", base_url=url, **fields)


@asynccontextmanager
async def backend_for(spec: WorkerSpec) -> AsyncIterator[HttpBackend]:
    wire = {"openai": OPENAI, "anthropic": ANTHROPIC}[spec.dialect]
    async with aiohttp.ClientSession() as session:
        yield HttpBackend(spec, wire, session, key=KEY, caps=SMALL_CAPS)


PATIENT = Timeouts()
QUERY = Query(messages=(Message(role="user", content="hi"),))


class Outcome:
    """What one attempt came to."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.completion: Completion | None = None
        self.error: WorkerError | None = None

    @property
    def failure(self) -> WorkerError:
        assert self.error is not None, f"no failure but {self.completion}"
        return self.error

    @property
    def answer(self) -> Completion:
        assert self.completion is not None, f"no answer but {self.error!r}: {self.error}"
        return self.completion


def ask(play: Play, dialect: str, *, stream: bool, timeouts: Timeouts = PATIENT) -> Outcome:
    async def run() -> Outcome:
        outcome = Outcome()

        async def on_delta(delta: Delta) -> None:
            outcome.deltas.append(delta)

        async with (
            Upstream(play) as upstream,
            backend_for(spec_for(dialect, upstream.url, timeouts=timeouts)) as backend,
        ):
            try:
                outcome.completion = await backend.complete(QUERY, on_delta if stream else None)
            except WorkerError as error:
                outcome.error = error
        return outcome

    return asyncio.run(asyncio.wait_for(run(), 20))


# --- the matrix ---


@both_dialects
@both_modes
def test_an_answer_comes_back_with_its_usage_and_receipts(dialect: str, stream: bool) -> None:
    """A well server's answer is read, with what was sent and received."""
    outcome = ask(answer_well, dialect, stream=stream)
    answer = outcome.answer
    assert answer.text == "Hello"
    assert answer.usage == Usage(input_tokens=7, output_tokens=2)
    assert (answer.provider_model, answer.provider_id) == ("m-1", "c1")
    assert answer.sent_bytes is not None
    assert answer.sent_bytes > 50
    assert len(answer.sent_sha256 or "") == 64
    assert (answer.received_bytes or 0) > 50
    assert (answer.first_token_ms is not None) == stream
    assert [delta.text for delta in outcome.deltas] == (["Hel", "lo"] if stream else [])


@both_dialects
@both_modes
@pytest.mark.parametrize(
    ("status", "headers", "code", "retry_after_s"),
    [
        (429, {"Retry_After": "3"}, "rate_limited", 3.0),
        (429, {"retry_after_ms": "1500"}, "rate_limited", 1.5),
        (429, {}, "rate_limited", None),
        (500, {}, "server_error", None),
        (502, {}, "server_error", None),
        (503, {"Retry_After": "9"}, "overloaded", 9.0),
        (529, {}, "overloaded", None),
        (400, {}, "rejected", None),
        (401, {}, "auth", None),
        (403, {}, "auth", None),
        (404, {}, "rejected", None),
        (422, {}, "rejected", None),
    ],
)
def test_a_status_decides_the_failure(
    dialect: str, stream: bool, status: int, headers: dict[str, str], code: str, retry_after_s: float | None
) -> None:
    """Every refusal has its code, and the pause that the provider asked for."""
    failure = ask(saying(status, {"error": {"message": "no"}}, **headers), dialect, stream=stream).failure
    assert (failure.code, failure.retry_after_s, failure.worker) == (code, retry_after_s, "w")
    assert not failure.partial


@both_dialects
@both_modes
def test_context_overflow_is_told_from_other_refusals(dialect: str, stream: bool) -> None:
    """A prompt that is too long is not a bad request."""
    failure = ask(saying(400, {"error": {"message": "prompt is too long: 9 > 8"}}), dialect, stream=stream).failure
    assert failure.code == "context_overflow"


@both_dialects
@both_modes
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<html><body>Welcome to the captive portal</body></html>" * 200, {}),
        (b'{"choices": [', {"Content_Type": "application/json"}),
        (b"[" * 40_000, {"Content_Type": "application/json"}),
        (b'{"id": "\xff\xfe"}', {"Content_Type": "application/json"}),
        (b'"just text"', {"Content_Type": "application/json"}),
        (b"{}", {"Content_Type": "application/json"}),
        (b"hello", {"Content_Type": "text/plain"}),
    ],
    ids=["html", "cut", "deep", "not utf-8", "not an object", "empty object", "text"],
)
def test_what_is_not_understood_is_malformed(dialect: str, stream: bool, body: bytes, headers: dict[str, str]) -> None:
    """A 200 with a wrong content type or broken JSON is a failure, quoted with a bound."""
    failure = ask(saying(200, body, **headers), dialect, stream=stream).failure
    assert failure.code == "malformed"
    assert len(failure.message) < 2048


@both_dialects
@both_modes
def test_an_error_in_a_200_is_a_failure(dialect: str, stream: bool) -> None:
    """OpenRouter answers 200 with an error inside; so does a stream's first event."""
    failure = ask(saying(200, {"error": {"message": "no", "code": 429}}), dialect, stream=stream).failure
    assert failure.code == "rate_limited"


@both_dialects
@both_modes
def test_a_decompression_bomb_meets_the_cap(dialect: str, stream: bool) -> None:
    """A small body that unpacks to a huge one is cut by its decoded size."""
    bomb = gzip.compress(b" " * 8_000_000)
    assert len(bomb) < SMALL_CAPS.answer_bytes
    kind = "text/event-stream" if stream else "application/json"
    failure = ask(saying(200, bomb, Content_Encoding="gzip", Content_Type=kind), dialect, stream=stream).failure
    assert failure.code == "too_large"


@both_dialects
@both_modes
def test_bytes_that_are_not_what_their_encoding_says_are_malformed(dialect: str, stream: bool) -> None:
    """Broken compression is a broken answer, not a broken connection."""
    kind = "text/event-stream" if stream else "application/json"
    play = saying(200, b"this is not gzip", Content_Encoding="gzip", Content_Type=kind)
    assert ask(play, dialect, stream=stream).failure.code == "malformed"


@both_dialects
def test_a_body_that_announces_too_much_is_not_read(dialect: str) -> None:
    """The announced length is believed when it is too large."""
    play = saying(200, b"{", Content_Length="999999999", Content_Type="application/json")
    assert ask(play, dialect, stream=False).failure.code == "too_large"


@both_dialects
def test_an_endless_stream_meets_the_cap(dialect: str) -> None:
    """A worker that never stops talking is cut, and what it said had been passed on."""

    async def talk(asked: Asked, out: Writer) -> None:
        head(out)
        chunk(out, text_event(dialect, "la"))
        await asyncio.sleep(0.02)
        while True:
            chunk(out, text_event(dialect, "la " * 100))
            await out.drain()

    outcome = ask(talk, dialect, stream=True)
    assert (outcome.failure.code, outcome.failure.partial) == ("too_large", True)
    assert outcome.deltas


@both_dialects
def test_an_endless_event_meets_the_cap(dialect: str) -> None:
    """One line without end is cut too."""
    failure = ask(streaming(b"data: " + b"x" * 30_000), dialect, stream=True).failure
    assert (failure.code, failure.partial) == ("too_large", False)


@both_dialects
@both_modes
def test_a_connection_cut_before_the_answer_is_truncated(dialect: str, stream: bool) -> None:
    """A server that takes the request and hangs up has failed; whether it bills is unknown."""

    async def hang_up(asked: Asked, out: Writer) -> None:
        out.transport.abort()

    failure = ask(hang_up, dialect, stream=stream).failure
    assert (failure.code, failure.partial) == ("truncated", False)


@both_dialects
def test_a_whole_answer_cut_short_is_truncated(dialect: str) -> None:
    """Fewer bytes than announced are no answer."""

    async def play(asked: Asked, out: Writer) -> None:
        respond(out, 200, b'{"id": "c1', {"Content-Type": "application/json", "Content-Length": "500"})
        await out.drain()
        out.close()

    assert ask(play, dialect, stream=False).failure.code == "truncated"


@both_dialects
@pytest.mark.parametrize("then", ["cut", "end"])
@pytest.mark.parametrize("texts", [0, 2])
def test_a_stream_without_its_finish_is_truncated(dialect: str, then: str, texts: int) -> None:
    """A stream that breaks, or ends cleanly without saying why, is a failure; `partial` says if tokens went out."""
    pieces = [start_events(dialect), *[text_event(dialect, "x")] * texts]
    outcome = ask(streaming(*pieces, then=then), dialect, stream=True)
    assert (outcome.failure.code, outcome.failure.partial) == ("truncated", texts > 0)
    assert len(outcome.deltas) == texts


@both_dialects
def test_a_stream_that_ends_within_an_event_is_truncated(dialect: str) -> None:
    """Half an event is not a malformed one."""
    failure = ask(streaming(text_event(dialect, "x")[:-9]), dialect, stream=True).failure
    assert failure.code == "truncated"


@both_dialects
@pytest.mark.parametrize("texts", [0, 1])
def test_broken_json_within_a_stream_is_malformed(dialect: str, texts: int) -> None:
    """An event that cannot be read ends the attempt: what it held is unknown."""
    pieces = [*[text_event(dialect, "x")] * texts, b'data: {"choices": [}\n\n', *whole_stream(dialect)]
    failure = ask(streaming(*pieces), dialect, stream=True).failure
    assert (failure.code, failure.partial) == ("malformed", texts > 0)


@both_dialects
@pytest.mark.parametrize("texts", [0, 1])
@pytest.mark.parametrize("named", [True, False])
def test_an_error_event_ends_the_attempt(dialect: str, texts: int, named: bool) -> None:
    """An error inside a stream is the failure it names, after tokens too."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": f"busy, {KEY}"}}
    pieces = [*[text_event(dialect, "x")] * texts, (b"event: error\n" if named else b"") + event(error)]
    failure = ask(streaming(*pieces, then="hang"), dialect, stream=True).failure
    assert (failure.code, failure.partial) == ("overloaded", texts > 0)
    assert "busy" in failure.message
    assert KEY not in failure.message


FAST = Timeouts(first_token_s=0.15)
BRISK = Timeouts(idle_s=0.25)


@both_dialects
@pytest.mark.parametrize("play", [hang, streaming(then="hang")], ids=["no headers", "no events"])
def test_a_worker_that_never_begins_is_given_up(dialect: str, play: Play) -> None:
    """Accepted and silent, with or without headers: no first token in time."""
    failure = ask(play, dialect, stream=True, timeouts=FAST).failure
    assert (failure.code, failure.partial) == ("timeout_first_token", False)


@both_dialects
def test_heartbeats_do_not_put_off_the_first_token(dialect: str) -> None:
    """Comments, pings and empty deltas are life signs, not tokens."""

    async def beat(asked: Asked, out: Writer) -> None:
        head(out)
        while True:
            chunk(out, b": PROCESSING\n\n" + event({"type": "ping"}) + start_events(dialect))
            await asyncio.sleep(0.03)

    assert ask(beat, dialect, stream=True, timeouts=FAST).failure.code == "timeout_first_token"


@both_dialects
def test_a_worker_that_falls_silent_is_given_up(dialect: str) -> None:
    """A gap between tokens longer than allowed ends the attempt."""
    pieces = [start_events(dialect), text_event(dialect, "x")]
    outcome = ask(streaming(*pieces, then="hang"), dialect, stream=True, timeouts=BRISK)
    assert (outcome.failure.code, outcome.failure.partial) == ("timeout_idle", True)


@both_dialects
def test_a_slow_worker_that_keeps_talking_is_heard_out(dialect: str) -> None:
    """The gap counts, not the sum of gaps."""

    async def drawl(asked: Asked, out: Writer) -> None:
        head(out)
        for piece in whole_stream(dialect, ["a"] * 4):
            chunk(out, piece)
            await asyncio.sleep(0.06)
        chunk(out, b"")

    assert ask(drawl, dialect, stream=True, timeouts=BRISK).answer.text == "aaaa"


@both_dialects
def test_a_slow_reader_is_not_the_worker_s_fault(dialect: str) -> None:
    """The time that passing a token on takes does not count as silence."""

    async def run() -> Completion:
        async def on_delta(delta: Delta) -> None:
            await asyncio.sleep(0.3 if delta.text == "Hel" else 0)

        async with (
            Upstream(answer_well) as upstream,
            backend_for(spec_for(dialect, upstream.url, timeouts=BRISK)) as backend,
        ):
            return await backend.complete(QUERY, on_delta)

    assert asyncio.run(run()).text == "Hello"


@both_dialects
@pytest.mark.parametrize("then", ["cut", "end", "hang"])
def test_an_answer_that_has_said_why_it_stopped_is_complete(dialect: str, then: str) -> None:
    """What goes wrong after the finish costs the end marker, not the answer."""
    pieces = [start_events(dialect), text_event(dialect, "x"), finish_event(dialect)]
    answer = ask(streaming(*pieces, then=then), dialect, stream=True, timeouts=BRISK).answer
    assert (answer.text, answer.finish_reason) == ("x", "stop")


def test_done_without_a_finish_reason_is_an_end() -> None:
    """Some servers only say [DONE]."""
    answer = ask(streaming(text_event("openai", "x"), b"data:[DONE]\n\n"), "openai", stream=True).answer
    assert (answer.text, answer.finish_reason) == ("x", "stop")


@both_dialects
def test_a_worker_that_ignores_streaming_is_heard_all_the_same(dialect: str) -> None:
    """A whole answer to a streamed request is passed on in one piece."""
    outcome = ask(saying(200, whole_answer(dialect)), dialect, stream=True)
    assert outcome.answer.text == "Hello"
    assert outcome.deltas == [Delta(text="Hello")]


@both_dialects
@both_modes
@pytest.mark.parametrize("fault", ["refused", "no such name", "no TLS"])
def test_what_cannot_be_reached_has_failed_to_connect(dialect: str, stream: bool, fault: str) -> None:
    """Refused, unknown and non-TLS addresses cost nothing, and are told so."""

    async def run() -> WorkerError:
        async def on_delta(delta: Delta) -> None:
            raise AssertionError

        async with Upstream(hang) as upstream:
            port = upstream.port
        async with Upstream(hang) as upstream:
            url = {
                "refused": f"http://127.0.0.1:{port}/v1",
                "no such name": "http://no-such-host.invalid/v1",
                "no TLS": upstream.url.replace("http:", "https:"),
            }[fault]
            async with backend_for(
                spec_for(dialect, url, timeouts=Timeouts(connect_s=0.1 if fault == "no TLS" else 5.0))
            ) as backend:
                with pytest.raises(WorkerError) as caught:
                    await backend.complete(QUERY, on_delta if stream else None)
                return caught.value

    expected = {
        "refused": {"connect_failed"},
        "no such name": {"connect_failed", "timeout_connect"},  # some resolvers think long
        "no TLS": {"timeout_connect"},  # the server waits for a request, the client for a greeting
    }
    assert asyncio.run(run()).code in expected[fault]


@both_dialects
def test_a_certificate_that_nobody_vouches_for_is_refused(dialect: str, tmp_path: Any) -> None:
    """TLS failures are failures to connect, and are never downgraded."""
    ssl_context = self_signed(tmp_path)

    async def run() -> WorkerError:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=ssl_context)
        port = server.sockets[0].getsockname()[1]
        async with server, backend_for(spec_for(dialect, f"https://127.0.0.1:{port}/v1")) as backend:
            with pytest.raises(WorkerError) as caught:
                await backend.complete(QUERY, None)
            return caught.value

    assert asyncio.run(run()).code == "connect_failed"


def self_signed(folder: Any) -> Any:
    import shutil
    import ssl
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(make.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_waiting_for_a_connection_is_bounded() -> None:
    """The connect timeout holds until the connection stands, queueing for it included."""

    async def run() -> str:
        arrived = asyncio.Event()

        async def play(asked: Asked, out: Writer) -> None:
            arrived.set()
            await asyncio.Event().wait()

        async with (
            Upstream(play) as upstream,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        ):
            spec = spec_for("openai", upstream.url, timeouts=Timeouts(connect_s=0.2))
            backend = HttpBackend(spec, OPENAI, session, key=None)
            first = asyncio.create_task(backend.complete(QUERY, None))
            await arrived.wait()
            with pytest.raises(WorkerError) as caught:
                await backend.complete(QUERY, None)
            first.cancel()
            return caught.value.code

    assert asyncio.run(run()) == "timeout_connect"


@both_dialects
@both_modes
def test_a_redirect_is_not_followed_and_takes_no_key_along(dialect: str, stream: bool) -> None:
    """Neither the key nor the conversation goes to an address that the pool file does not name."""

    async def run() -> tuple[WorkerError, int]:
        async with Upstream(answer_well) as elsewhere:
            play = saying(307, b"", Location=elsewhere.url + "/chat/completions")
            async with Upstream(play) as upstream, backend_for(spec_for(dialect, upstream.url)) as backend:
                with pytest.raises(WorkerError, match="redirect") as caught:
                    await backend.complete(QUERY, _ignore if stream else None)
            return caught.value, len(elsewhere.asked)

    failure, asked_elsewhere = asyncio.run(run())
    assert (failure.code, asked_elsewhere) == ("rejected", 0)


async def _ignore(delta: Delta) -> None:
    del delta


@both_dialects
@both_modes
@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_server_that_echoes_the_key_does_not_get_it_into_an_error(
    dialect: str, stream: bool, status: int, kind: str
) -> None:
    """Whatever a provider writes, the worker's key stays out of the message and of the operator's note."""
    body = json.dumps({"error": {"message": f"your key is {KEY}, Authorization: Bearer {KEY}"}}).encode()
    failure = ask(saying(status, body, Content_Type=kind), dialect, stream=stream).failure
    shown = failure.message + "".join(getattr(failure, "__notes__", []))
    assert KEY not in shown
    assert failure.__cause__ is None
    assert failure.__suppress_context__ or failure.__context__ is None


@both_dialects
def test_the_request_is_authenticated_as_its_dialect_wants(dialect: str) -> None:
    """Bearer for one, x-api-key and a version for the other, each to its own path."""

    async def run() -> Asked:
        async with Upstream(answer_well) as upstream, backend_for(spec_for(dialect, upstream.url + "/")) as backend:
            await backend.complete(QUERY, None)
            return upstream.asked[0]

    asked = asyncio.run(run())
    if dialect == "openai":
        assert asked.path == "/v1/chat/completions"
        assert asked.headers["authorization"] == f"Bearer {KEY}"
    else:
        assert asked.path == "/v1/messages"
        assert asked.headers["x-api-key"] == KEY
        assert asked.headers["anthropic-version"] == "2023-06-01"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["accept-encoding"] == "identity"  # compression would hold tokens back


def test_a_large_body_is_sent_whole() -> None:
    """Inline images of megabytes leave without a warning."""

    async def run() -> int:
        query = Query(messages=(Message(role="user", content="x" * 3_000_000),))
        async with Upstream(answer_well) as upstream, backend_for(spec_for("openai", upstream.url)) as backend:
            completion = await backend.complete(query, None)
            assert completion.sent_bytes == int(upstream.asked[0].headers["content-length"])
            return len(upstream.asked[0].body["messages"][0]["content"])

    assert asyncio.run(run()) == 3_000_000


@both_dialects
@both_modes
def test_calls_share_a_connection(dialect: str, stream: bool) -> None:
    """A call that ended well leaves its connection for the next."""

    async def run() -> int:
        async with Upstream(answer_well) as upstream, backend_for(spec_for(dialect, upstream.url)) as backend:
            for _ in range(3):
                await backend.complete(QUERY, _ignore if stream else None)
            return upstream.connections

    assert asyncio.run(run()) == 1


@both_dialects
@pytest.mark.parametrize("error", [ConnectionResetError("client is gone"), TimeoutError("client is slow")])
def test_an_error_of_the_caller_s_own_is_not_the_worker_s(dialect: str, error: OSError) -> None:
    """What `on_delta` raises comes out as it is, even where it looks like a network failure."""

    async def run() -> None:
        async def on_delta(delta: Delta) -> None:
            raise error

        async with Upstream(answer_well) as upstream, backend_for(spec_for(dialect, upstream.url)) as backend:
            with pytest.raises(type(error)) as caught:
                await backend.complete(QUERY, on_delta)
            assert caught.value is error

    asyncio.run(run())


@both_dialects
@both_modes
def test_a_cancelled_call_hangs_up(dialect: str, stream: bool) -> None:
    """Cancelling a call closes its connection, so that the worker can stop."""

    async def run() -> None:
        began = asyncio.Event()

        async def play(asked: Asked, out: Writer) -> None:
            head(out)
            chunk(out, start_events(dialect))
            began.set()
            await asyncio.Event().wait()

        async with Upstream(play) as upstream, backend_for(spec_for(dialect, upstream.url)) as backend:
            call = asyncio.create_task(backend.complete(QUERY, _ignore if stream else None))
            await began.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            async with asyncio.timeout(1):
                await upstream.gone.wait()

    asyncio.run(run())


# --- through an opened pool ---


def complete(pool: Pool, *, stream: bool = False, events: list[Any] | None = None) -> Any:
    record = (events if events is not None else []).append
    return pool.complete(QUERY, step=0, workers=["w"], record=record, on_delta=_ignore if stream else None)


@both_dialects
@both_modes
def test_an_opened_pool_asks_and_prices(dialect: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come from the named variable, prices from the list, and proxies of the environment are not asked."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def run() -> tuple[Any, Asked]:
        async with Upstream(answer_well) as upstream:
            worker = spec_for(dialect, upstream.url, key_env="W_KEY")
            async with open_pool(PoolSpec(worker=(worker,)), environ={"W_KEY": f" {KEY}\n"}) as pool:
                return await complete(pool, stream=stream), upstream.asked[0]

    reply, asked = asyncio.run(run())
    assert reply.text == "Hello"
    assert reply.cost_usd is None  # a local address that nobody prices
    assert KEY in asked.headers.get("authorization", "") + asked.headers.get("x-api-key", "")
    assert "cookie" not in asked.headers


@both_dialects
@both_modes
def test_an_attempt_is_bounded_in_all(dialect: str, stream: bool) -> None:
    """Whatever else a worker does in time, the total ends it."""

    async def talk(asked: Asked, out: Writer) -> None:
        head(out, "text/event-stream" if stream else "application/json")
        while True:
            chunk(out, text_event(dialect, "x") if stream else b" ")
            await asyncio.sleep(0.02)

    async def run() -> WorkerError:
        async with Upstream(talk) as upstream:
            worker = spec_for(dialect, upstream.url, timeouts=Timeouts(total_s=0.4))
            async with open_pool(PoolSpec(worker=(worker,)), environ={}) as pool:
                with pytest.raises(WorkerError) as caught:
                    await complete(pool, stream=stream)
                return caught.value

    failure = asyncio.run(run())
    assert (failure.code, failure.partial) == ("timeout_total", stream)


@pytest.mark.parametrize("environ", [{}, {"W_KEY": "  "}, {"W_KEY": "two words"}, {"W_KEY": "line\nbreak"}])
def test_a_missing_or_impossible_key_is_found_before_anything_is_asked(environ: dict[str, str]) -> None:
    """The error names the worker and the variable, never the value."""
    spec = spec_for("openai", "http://127.0.0.1:9/v1", key_env="W_KEY")
    with pytest.raises(ConfigError, match=r"worker 'w'.*'W_KEY'") as caught:
        read_key(spec, environ)
    assert "words" not in str(caught.value)
    assert "break" not in str(caught.value)


def test_a_pool_without_its_key_does_not_open() -> None:
    """A missing key is a ConfigError when the pool opens."""

    async def run() -> None:
        async with open_pool(PoolSpec(worker=(spec_for("openai", "http://h/v1", key_env="W_KEY"),)), environ={}):
            raise AssertionError("it opened")

    with pytest.raises(ConfigError, match="W_KEY"):
        asyncio.run(run())


def test_a_recorded_worker_cannot_be_declared() -> None:
    """Recorded pools come from their data folder, and the error says so."""

    async def run() -> None:
        async with open_pool(PoolSpec(worker=(WorkerSpec(id="w", dialect="recorded", model="m"),)), environ={}):
            raise AssertionError("it opened")

    with pytest.raises(ConfigError, match="data folder"):
        asyncio.run(run())


def test_a_scripted_worker_of_a_pool_file_answers_without_a_key() -> None:
    """Its text comes from extra_body, in pieces when streamed; without one it repeats the question."""

    async def run() -> tuple[str, str]:
        workers = (
            WorkerSpec(id="w", dialect="scripted", model="m", extra_body={"text": "fixed"}),
            WorkerSpec(id="echo", dialect="scripted", model="m"),
        )
        async with open_pool(PoolSpec(worker=workers), environ={}) as pool:
            fixed = await complete(pool, stream=True)
            echo = await pool.complete(QUERY, step=1, workers=["echo"], record=[].append, on_delta=None)
            return fixed.text, echo.text

    assert asyncio.run(run()) == ("fixed", "hi")


def test_a_scripted_worker_with_an_unknown_option_does_not_open() -> None:
    """Options of a script are checked like every other key."""

    async def run() -> None:
        worker = WorkerSpec(id="w", dialect="scripted", model="m", extra_body={"texts": "x"})
        async with open_pool(PoolSpec(worker=(worker,)), environ={}):
            raise AssertionError("it opened")

    with pytest.raises(ConfigError, match="'texts'"):
        asyncio.run(run())
