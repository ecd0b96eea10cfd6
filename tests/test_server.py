"""The server on a real socket: what clients get, also when things fail, and that nobody works for a client who left."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from starlette.routing import Route

from serving import HI, KEY, Server, read_all, running
from torafugu.config import read_table
from torafugu.errors import ConfigError, FuguError, PlanError, RequestError, StoreError, WorkerCode, WorkerError
from torafugu.orchestrate import Budget, Run
from torafugu.pool.backend import Backend, Completion, Delta, OnDelta, Query
from torafugu.pool.pool import Member, Pool
from torafugu.pool.scripted import Failing, Scripted
from torafugu.pool.spec import WorkerSpec
from torafugu.server import KeySpec, ServerConfig, create_app, serve
from torafugu.server.app import OPEN_PATHS
from torafugu.server.auth import Keyring
from torafugu.server.errors import error_to_http
from torafugu.store import open_store
from torafugu.types import Answer, Plan, Step, ToolCall, Usage

OTHER_KEY = "sk-test-" + "o" * 32
USAGE = Usage(input_tokens=11, cached_input_tokens=3, output_tokens=7, reasoning_tokens=2)
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TERMINATOR = b"0\r\n\r\n"


# --- workers and policies ---


class Waiting:
    """A worker that, after some deltas, never answers; tells when it was called and when that call was cancelled."""

    def __init__(self, *, deltas: int = 0) -> None:
        self.called, self.cancelled, self._deltas = threading.Event(), threading.Event(), deltas

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        if on_delta is not None:
            for i in range(self._deltas):
                await on_delta(Delta(text=f"piece {i} "))
        self.called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def close(self) -> None:
        return


class Thinking:
    """A worker that streams reasoning, then text, then asks for tools."""

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        if on_delta is not None:
            await on_delta(Delta(reasoning="let me "))
            await on_delta(Delta(reasoning="see"))
            await on_delta(Delta(text="Adding."))
        calls = tuple(ToolCall(id=f"call_{i}", name="add", arguments=f'{{"a":{i}}}') for i in range(2))
        return Completion(
            text="Adding.", reasoning="let me see", tool_calls=calls, finish_reason="tool_calls", usage=USAGE
        )

    async def close(self) -> None:
        return


class Broken:
    """A worker with a programming error."""

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        raise ZeroDivisionError(query.messages[-1].text)

    async def close(self) -> None:
        return


class Ranked:
    """A policy that asks the allowed workers in a fixed order; its id would break out of a careless header."""

    def __init__(self, *workers: str, id: str = "fugu@1f2e") -> None:
        self.workers, self.id = workers, id

    async def decide(self, run: Run) -> Plan | Answer:
        if run.replies:
            return Answer(step=0)
        allowed = [w for w in self.workers if run.request.allowed is None or w in run.request.allowed]
        if not allowed:
            raise PlanError("no worker is allowed")
        return Plan(steps=(Step(id=0, worker=allowed[0], alternates=tuple(allowed[1:]), is_final=True),))


def worker_error(code: WorkerCode, retry_after_s: float | None = None) -> Failing:
    return Failing(WorkerError(f"worker 'x': upstream said {code}", worker="x", code=code, retry_after_s=retry_after_s))


def echo(query: Query) -> str:
    return f"echo: {query.messages[-1].text}"


def workers() -> dict[str, Backend]:
    return {
        "echo": Scripted(echo, pieces=4, usage=USAGE),
        "lab/model:1.5": Scripted(echo),
        "thinks": Thinking(),
        "dies": Failing("die", deltas=2),
        "broken": Broken(),
        "refuses": worker_error("rejected"),
        **{code: worker_error(code, 6.2 if code in ("rate_limited", "overloaded") else None) for code in CODES},
    }


CODES: tuple[WorkerCode, ...] = get_args(WorkerCode)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    policies = {
        "fugu": Ranked("echo", "thinks"),
        "fallback": Ranked("refuses", "echo", id="fallback@1"),
        "evil": Ranked("echo", id="evil@1\r\nset-cookie: x=1"),
    }
    with running(tmp_path_factory.mktemp("server"), workers(), policies=policies) as it:
        yield it


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as it:
        yield it


# --- answers ---


def test_openai_client(client: openai.OpenAI) -> None:
    """OpenAI's client gets a whole answer with usage; the headers say which run it was, who replied, for how much."""
    raw = client.chat.completions.with_raw_response.create(model="fugu", messages=HI)
    completion = raw.parse()
    assert completion.choices[0].message.content == "echo: hi"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "fugu"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 18
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 3
    run_id = raw.headers["x-fugu-run-id"]
    assert completion.id == f"chatcmpl-{run_id}"
    assert raw.headers["x-request-id"] == run_id
    assert raw.headers["x-fugu-policy"] == "fugu@1f2e"
    assert raw.headers["x-fugu-workers"] == "echo"
    assert Decimal(raw.headers["x-fugu-cost-usd"]) > 0


def test_worker_by_its_own_id(server: Server) -> None:
    """A worker's id as the model name calls that worker, however the id is spelt; without prices no cost is told."""
    status, headers, body = server.ask("lab/model:1.5")
    assert (status, body["choices"][0]["message"]["content"]) == (200, "echo: hi")
    assert headers["x-fugu-policy"] == "direct:lab/model:1.5"
    assert "x-fugu-cost-usd" not in headers
    assert body["fugu"]["cost_usd"] is None
    assert body["usage"] is None


def test_openai_client_stream(client: openai.OpenAI) -> None:
    """A streamed answer begins with the role, ends with a reason, and has no chunk without choices unless asked for."""
    raw = client.chat.completions.with_raw_response.create(model="fugu", messages=HI, stream=True)
    chunks = list(raw.parse())
    assert all(chunk.choices for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "echo: hi"
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) == 4
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert raw.headers["x-fugu-workers"] == "echo"
    extension = chunks[-1].model_extra["fugu"]
    assert extension["run_id"] == raw.headers["x-fugu-run-id"]
    assert (extension["workers"], extension["stopped_by"]) == (["echo"], "answer")
    assert extension["cost_usd"] > 0


def test_stream_with_usage(client: openai.OpenAI) -> None:
    """Usage comes in a last chunk of its own when it was asked for."""
    stream = client.chat.completions.create(
        model="fugu", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    *others, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 7
    assert all(chunk.usage is None for chunk in others)


def test_async_client(server: Server) -> None:
    """Many clients at once each get their own answer, streamed and not."""

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0) as client:

            async def ask(i: int) -> None:
                messages: Any = [{"role": "user", "content": f"number {i}"}]
                whole = await client.chat.completions.create(model="fugu", messages=messages)
                assert whole.choices[0].message.content == f"echo: number {i}"
                stream = await client.chat.completions.create(model="fugu", messages=messages, stream=True)
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
                assert "".join(pieces) == f"echo: number {i}"

            async with asyncio.TaskGroup() as group:
                for i in range(20):
                    group.create_task(ask(i))

    asyncio.run(main())


def test_tool_calls(client: openai.OpenAI) -> None:
    """Tool calls arrive whole, with the reasoning before them under both names that clients read."""
    choice = client.chat.completions.create(model="thinks", messages=HI, tools=[TOOL]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [(c.id, c.function.arguments) for c in choice.message.tool_calls or [] if c.type == "function"] == [
        ("call_0", '{"a":0}'),
        ("call_1", '{"a":1}'),
    ]
    assert choice.message.model_extra is not None
    assert choice.message.model_extra["reasoning_content"] == "let me see"


def test_streamed_tool_calls(client: openai.OpenAI) -> None:
    """The client's own accumulator rebuilds the same message from the stream."""
    with client.chat.completions.stream(model="thinks", messages=HI, tools=[TOOL]) as stream:
        events = list(stream)
        message = stream.get_final_completion().choices[0].message
    assert message.content == "Adding."
    assert [c.function.arguments for c in message.tool_calls or []] == ['{"a":0}', '{"a":1}']
    thoughts = [e.chunk.choices[0].delta.model_extra for e in events if e.type == "chunk"]
    assert "".join(t["reasoning_content"] for t in thoughts if t and "reasoning_content" in t) == "let me see"


def test_failover_is_told(server: Server) -> None:
    """Headers name every worker that was called, in order, also the one that failed."""
    status, headers, body = server.ask("fallback")
    assert (status, headers["x-fugu-workers"]) == (200, "refuses,echo")
    assert body["fugu"]["workers"] == ["refuses", "echo"]


def test_header_injection(server: Server) -> None:
    """Line breaks in what becomes a header do not begin a new one."""
    status, headers, _ = server.ask("evil")
    assert (status, headers["x-fugu-policy"]) == (200, "evil@1__set-cookie:_x=1")
    assert "set-cookie" not in headers


# --- errors ---

STATUSES = {
    "rate_limited": (429, "rate_limit_exceeded"),
    "overloaded": (503, "overloaded"),
    "unavailable": (503, "unavailable"),
    "timeout_connect": (504, "timeout_connect"),
    "timeout_first_token": (504, "timeout_first_token"),
    "timeout_idle": (504, "timeout_idle"),
    "timeout_total": (504, "timeout_total"),
    "context_overflow": (400, "context_length_exceeded"),
    "rejected": (400, "rejected"),
    "content_filter": (400, "content_filter"),
    "auth": (502, "worker_auth"),
}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_worker_faults(server: Server, code: WorkerCode, is_stream: bool) -> None:
    """Every fault of a worker before its first token has its status and code, streamed or not, and names the run."""
    status, headers, body = server.ask(code, stream=is_stream)
    assert (status, body["error"]["code"]) == STATUSES.get(code, (502, code))
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert headers["x-fugu-run-id"].startswith("run_")
    assert ("retry-after" in headers) == (status in (429, 503))
    if code in ("rate_limited", "overloaded"):
        assert headers["retry-after"] == "7"
    if code == "auth":
        assert "upstream" not in body["error"]["message"]
    else:
        assert code in body["error"]["message"] or code == "context_overflow"


def test_openai_client_errors(client: openai.OpenAI) -> None:
    """OpenAI's client raises its own typed errors from ours."""
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="rate_limited", messages=HI)
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-99", messages=HI, stream=True)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fugu", messages=HI, n=2)
    assert (bad.value.code, bad.value.param) == ("unsupported", "n")


def test_our_own_fault(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A programming error is a 500 that names the run; neither answer nor log tells what the error said."""
    with caplog.at_level(logging.INFO):
        status, headers, body = server.ask("broken", messages=[{"role": "user", "content": "secret prompt"}])
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert headers["x-fugu-run-id"] in body["error"]["message"]
    assert "ZeroDivisionError" in caplog.text
    assert "secret prompt" not in caplog.text + json.dumps(body)


def test_bad_plan(tmp_path: Path) -> None:
    """A policy's fault is a 502 that clients are told not to repeat."""
    with running(tmp_path, workers(), policies={"fugu": Ranked("nobody")}) as server:
        status, headers, body = server.ask("fugu")
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (502, "bad_plan", "false")
    assert "'nobody'" in body["error"]["message"]


def test_budget_ends_before_an_answer(tmp_path: Path) -> None:
    """A run whose time is up before any reply is a 504 that clients are told not to repeat; the call is cancelled."""
    waiting = Waiting()
    with running(tmp_path, {"waits": waiting}, budget=Budget(seconds=0.05)) as server:
        status, headers, body = server.ask("waits")
        assert server.wait_status(headers["x-fugu-run-id"], "budget")["run"]["stopped_by"] == "budget:seconds"
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (504, "budget_exhausted", "false")
    assert waiting.cancelled.is_set()


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b'{"model":', {}, (400, "invalid_json", None)),
        ({"model": "fugu", "messages": []}, {}, (400, "invalid_request", "messages")),
        ({"model": "gpt-99", "messages": HI}, {}, (404, "model_not_found", "model")),
        (b"\x1f\x8b", {"content-encoding": "gzip"}, (415, "unsupported_encoding", None)),
    ],
)
def test_bad_requests(server: Server, body: Any, headers: dict[str, str], expected: tuple[int, str, str]) -> None:
    """What is wrong with a request is told by status, code and field, and leaves no run behind."""
    before = server.newest_run()
    status, _, answer = server.request("POST", "/v1/chat/completions", body, headers)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == expected
    assert server.newest_run() == before


def test_unknown_model_names_the_choices(server: Server) -> None:
    """An unknown model is told which there are; another version of a known one, which is loaded."""
    assert "fugu, fallback, evil, echo, lab/model:1.5" in server.ask("gpt-99")[2]["error"]["message"]
    status, _, body = server.ask("fugu@0000")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "'fugu@1f2e'" in body["error"]["message"]
    assert server.ask("fugu@1f2e")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/healthz/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-99", 404, "model_not_found"),
        ("GET", "/v1/runs/run_0", 404, "run_not_found"),
        ("GET", "/v1/runs?limit=0", 400, "invalid_request"),
        ("GET", "/v1/runs?limit=1e3", 400, "invalid_request"),
        ("GET", "/v1/runs?status=done", 400, "invalid_request"),
        ("GET", "/v1/runs?key=x", 400, "invalid_request"),
    ],
)
def test_unrouted(server: Server, method: str, path: str, status: int, code: str) -> None:
    """Unknown paths, wrong methods and wrong parameters have OpenAI's error shape, and no page may read an answer."""
    got, headers, body = server.request(method, path)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert not [name for name in headers if name.startswith("access-control")]


def test_body_limit(tmp_path: Path) -> None:
    """A body that is too long is refused, whether it says so beforehand or not."""
    with running(tmp_path, workers(), max_body_bytes=1000) as server:
        assert server.ask("echo")[0] == 200
        status, _, body = server.ask("echo", user="x" * 1000)
        assert (status, body["error"]["code"]) == (413, "body_too_large")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1001\r\n\r\n"
        assert server.send(head).startswith(b"HTTP/1.1 413 ")  # without waiting for the body
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
            connection.sendall(head + (b"200\r\n" + b" " * 512 + b"\r\n") * 3)
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_head_limit(server: Server) -> None:
    """A request whose head does not end is cut off."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"x-filler: " + b"x" * 1000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            received = connection.recv(100)
            assert received == b"" or received.startswith(b"HTTP/1.1 400 ")


def test_overload(tmp_path: Path) -> None:
    """One request more than the limit is refused at once, with Retry-After, and costs nobody their place."""
    waiting = Waiting()
    with running(tmp_path, {"waits": waiting, "echo": Scripted(echo)}, max_in_flight=1) as server:
        with server.connect({"model": "waits", "messages": HI}):
            assert waiting.called.wait(5)
            status, headers, body = server.ask("echo")
            assert (status, body["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
        assert waiting.cancelled.wait(5)
        for _ in range(100):
            if server.ask("echo")[0] == 200:
                return
        raise AssertionError("the place was not given back")


# --- streams that fail, clients that leave ---


def test_death_in_midstream(server: Server) -> None:
    """A stream that breaks ends with an error frame and a body that never ends: no reason, no [DONE], no terminator."""
    with server.connect({"model": "dies", "messages": HI, "stream": True}) as connection:
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"piece 0" in received
    assert b"piece 1" in received
    last = json.loads(received.rpartition(b"data: ")[2].partition(b"\n\n")[0])
    assert (last["error"]["code"], last["error"]["type"]) == ("truncated", "server_error")
    assert TERMINATOR not in received
    assert b"[DONE]" not in received
    assert b'"finish_reason":"' not in received


def test_openai_client_sees_the_death(client: openai.OpenAI) -> None:
    """OpenAI's client raises when a stream breaks, after what had come."""
    stream = client.chat.completions.create(model="dies", messages=HI, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", "piece 0 ", "piece 1 "]
    with pytest.raises(openai.APIError, match="the stream broke"):
        next(stream)


def test_our_own_fault_in_midstream(tmp_path: Path) -> None:
    """A programming error in a stream that has begun breaks it off in the same way."""

    class Late(Waiting):
        async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
            assert on_delta is not None
            await on_delta(Delta(text="so far"))
            raise ZeroDivisionError

    with (
        running(tmp_path, {"late": Late()}) as server,
        server.connect({"model": "late", "messages": HI, "stream": True}) as connection,
    ):
        received = read_all(connection)
    assert b"so far" in received
    assert b'"code":"internal_error"' in received
    assert TERMINATOR not in received


@pytest.mark.parametrize("deltas", [0, 2])
@pytest.mark.parametrize("is_stream", [False, True])
def test_client_leaves(tmp_path: Path, is_stream: bool, deltas: int) -> None:
    """When the client leaves, the worker's call is cancelled within a second and the record says why."""
    waiting = Waiting(deltas=deltas)
    with running(tmp_path, {"waits": waiting}) as server:
        with server.connect({"model": "waits", "messages": HI, "stream": is_stream}):
            assert waiting.called.wait(5)
        assert waiting.cancelled.wait(1)
        record = server.wait_status(server.newest_run(), "client_closed")
    kinds = [event["event"]["kind"] for event in record["events"]]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "stopped"
    assert record["events"][-1]["event"]["by"] == "client_closed"


def test_heartbeats(tmp_path: Path) -> None:
    """A silent stream sends comments; an error after them can no longer be a status and comes as a frame."""
    waiting = Waiting()
    with (
        running(tmp_path, {"waits": waiting}, heartbeat_s=0.02) as server,
        server.connect({"model": "waits", "messages": HI, "stream": True}) as connection,
    ):
        received = b""
        while received.count(b"\n: ") < 3:
            received += connection.recv(65536)
        server.stop()
        server.stop()
        received += read_all(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"code":"server_stopping"' in received
    assert TERMINATOR not in received


def test_head_is_held_back(server: Server) -> None:
    """Before the first token or silence nothing is sent, so a late failure still has its own status."""
    with server.connect({"model": "server_error", "messages": HI, "stream": True}) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 502 ")


# --- stopping ---


def test_drain(tmp_path: Path) -> None:
    """Asked to stop, the server says so, refuses new work, and lets the runs in flight end."""
    may_end = asyncio.Event()

    class Patient(Waiting):
        async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
            self.called.set()
            await may_end.wait()
            return Completion(text="done", finish_reason="stop")

    patient = Patient()
    with running(tmp_path, {"patient": patient}) as server:
        with server.connect({"model": "patient", "messages": HI}) as connection:
            assert patient.called.wait(5)
            server.stop()
            while server.request("GET", "/readyz")[0] == 200:
                time.sleep(0.005)
            status, headers, body = server.ask("patient")
            assert (status, body["error"]["code"]) == (503, "server_stopping")
            assert "retry-after" in headers
            server.loop.call_soon_threadsafe(may_end.set)
            received = read_all(connection)
        server.thread.join(5)
        assert not server.thread.is_alive()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"content":"done"' in received


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("drain_s", [0.0, 600.0])
def test_break_off(tmp_path: Path, drain_s: float, is_stream: bool) -> None:
    """When the time is up, or asked a second time, the runs left are broken off: 503, and `interrupted` on record."""
    waiting = Waiting()
    with running(tmp_path, {"waits": waiting}, drain_s=drain_s) as server:
        with server.connect({"model": "waits", "messages": HI, "stream": is_stream}) as connection:
            assert waiting.called.wait(5)
            run_id = server.newest_run()
            server.stop()
            if drain_s:
                server.stop()
            received = read_all(connection)
        server.thread.join(5)
        assert not server.thread.is_alive()
    assert received.startswith(b"HTTP/1.1 503 ")
    assert waiting.cancelled.is_set()

    async def status() -> str:
        async with open_store(tmp_path / "runs.db") as store:
            stored = await store.get_run(run_id)
            assert stored is not None
            return stored.run.status

    assert asyncio.run(status()) == "interrupted"


def test_cancelled_server(tmp_path: Path) -> None:
    """A server whose task is cancelled frees its port and leaves no task behind."""

    async def main() -> None:
        config = ServerConfig(port=0)
        async with open_store(tmp_path / "runs.db") as store:
            pool = Pool([])
            app = create_app(policies={}, pool=pool, store=store, config=config)
            ready = asyncio.Event()
            ports: list[int] = []

            def on_ready(url: str, stop: Callable[[], None]) -> None:
                ports.append(int(url.rpartition(":")[2]))
                ready.set()

            task = asyncio.create_task(serve(app, config, on_ready=on_ready))
            await ready.wait()
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", ports[0])
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


SIGNALLED = """
import sys
from pathlib import Path
from torafugu.pool import Member, Pool, Scripted, WorkerSpec
from torafugu.server import ServerConfig, create_app, run_in_uvloop, serve
from torafugu.store import open_store

async def main(record, latency_s):
    spec = WorkerSpec(id="slow", dialect="scripted", model="m")
    pool = Pool([Member(spec=spec, backend=Scripted(["done"], latency_s=latency_s))])
    config = ServerConfig(port=0)
    async with open_store(Path(record)) as store:
        app = create_app(policies={}, pool=pool, store=store, config=config)
        await serve(app, config, on_ready=lambda url, stop: print(url, flush=True))
    print("closed", flush=True)

run_in_uvloop(main(sys.argv[1], float(sys.argv[2])))
"""


@pytest.mark.parametrize(("latency_s", "signals", "status"), [(0.5, 1, 200), (60.0, 2, 503)])
def test_signals(tmp_path: Path, latency_s: float, signals: int, status: int) -> None:
    """SIGTERM lets the run in flight end, a second one breaks it off; the program then goes on to close its store."""
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "runs.db"), str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        server = Server(url, None, lambda: None, threading.current_thread(), None)  # type: ignore[arg-type]
        with server.connect({"model": "slow", "messages": HI}) as connection:
            while not server.request("GET", "/v1/runs")[2]["data"]:
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            while server.request("GET", "/readyz")[0] == 200:
                time.sleep(0.005)
            if signals == 2:
                process.send_signal(signal.SIGTERM)
            received = read_all(connection)
        assert process.stdout.read() == "closed\n"
        assert process.wait(5) == 0
    assert received.startswith(b"HTTP/1.1 %d " % status)


# --- the record ---


def test_runs(server: Server) -> None:
    """A run can be read back whole: what was asked, who was called and why, at what cost, under which session."""
    question = {"model": "fallback", "messages": HI, "user": "u", "prompt_cache_key": "cache"}
    body = json.dumps(question).encode()
    _, headers, _ = server.request("POST", "/v1/chat/completions", body, {"x-session-id": "s-1"})
    run_id = headers["x-fugu-run-id"]
    record = server.wait_status(run_id, "answered")
    assert record["run"]["session"] == "s-1"
    assert record["run"]["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert record["run"]["workers"] == ["refuses", "echo"]
    kinds = [entry["event"]["kind"] for entry in record["events"]]
    assert kinds == ["accepted", "planned", "called", "failed", "called", "replied", "answered", "stopped"]
    assert record["events"][0]["event"]["request"]["ignored"] == ["user"]
    assert record["events"][-1]["event"]["cost_usd"] == Decimal(headers["x-fugu-cost-usd"])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "cache"),
        ({"session-id": "b"}, "b"),
        ({"x-claude-code-session-id": "c", "session-id": ""}, "c"),
        ({"x-session-id": "x" * 300}, "sha256:" + hashlib.sha256(b"x" * 300).hexdigest()),
    ],
)
def test_session(server: Server, headers: dict[str, str], expected: str) -> None:
    """The session comes from the first header that names one, else from the prompt cache key; a long one is hashed."""
    question = {"model": "echo", "messages": HI, "prompt_cache_key": "cache"}
    _, answered, _ = server.request("POST", "/v1/chat/completions", question, headers)
    assert server.wait_status(answered["x-fugu-run-id"], "answered")["run"]["session"] == expected


def test_run_pages(server: Server) -> None:
    """Runs are listed youngest first, page by page, and by status."""
    ids = [server.ask("echo")[1]["x-fugu-run-id"] for _ in range(3)]
    server.wait_status(ids[-1], "answered")
    first = server.request("GET", "/v1/runs?limit=2&status=answered")[2]
    assert [row["id"] for row in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"] is True
    second = server.request("GET", f"/v1/runs?limit=1&before={ids[1]}")[2]
    assert [row["id"] for row in second["data"]] == [ids[0]]


def test_failed_run_is_on_record(server: Server) -> None:
    """A run that failed says whose fault it was."""
    run_id = server.ask("malformed")[1]["x-fugu-run-id"]
    record = server.wait_status(run_id, "failed")
    assert record["events"][-1]["event"]["error"]["fault"] == "worker"
    assert record["run"]["error_code"] == "malformed"


class RefusingStore:
    """A store whose disk is full, as the server sees it."""

    healthy = False

    def recorder(self, run_id: str) -> Any:
        raise StoreError("store 'x': disk full")

    async def list_runs(self, limit: int, **filters: Any) -> Any:
        raise StoreError("store 'x': disk full")

    async def get_run(self, id: str) -> Any:
        raise StoreError("store 'x': disk full")


class NeverDurable(RefusingStore):
    """A store that takes events and cannot keep them."""

    def recorder(self, run_id: str) -> Any:
        return self

    def write(self, event: Any) -> None:
        return

    async def wait_durable(self) -> None:
        raise StoreError("store 'x': disk full")


@pytest.mark.parametrize("store", [RefusingStore(), NeverDurable()])
def test_store_refuses(store: Any) -> None:
    """When the record cannot be kept, work is refused with 503 and Retry-After before any worker is asked."""
    worker = Scripted(echo)
    pool = Pool([Member(spec=WorkerSpec(id="echo", dialect="scripted", model="m"), backend=worker)])

    async def main() -> None:
        config = ServerConfig(port=0)
        app = create_app(policies={}, pool=pool, store=store, config=config)

        async def check(url: str, stop: Callable[[], None]) -> None:
            server = Server(url, store, stop, threading.current_thread(), asyncio.get_running_loop())
            status, headers, body = await asyncio.to_thread(server.ask, "echo")
            assert (status, body["error"]["code"]) == (503, "store_unavailable")
            assert "retry-after" in headers
            assert (await asyncio.to_thread(server.request, "GET", "/readyz"))[0] == 503
            assert (await asyncio.to_thread(server.request, "GET", "/healthz"))[0] == 200
            assert (await asyncio.to_thread(server.request, "GET", "/v1/runs"))[0] == 503
            stop()

        async with asyncio.TaskGroup() as group:
            await serve(app, config, on_ready=lambda url, stop: (group.create_task(check(url, stop)), None)[1])

    asyncio.run(main())
    assert worker.queries == []


# --- models ---


def test_models(client: openai.OpenAI) -> None:
    """Policies are listed first, then every worker, and each can be asked for by its id, slashes and all."""
    models = list(client.models.list())
    assert [model.id for model in models][:5] == ["fugu", "fallback", "evil", "echo", "lab/model:1.5"]
    model = client.models.retrieve("lab/model:1.5")
    assert (model.owned_by, (model.model_extra or {})["context_length"]) == ("scripted", 1000)
    pinned = client.models.retrieve("fugu")
    assert (pinned.model_extra or {})["fugu"] == {"kind": "policy", "policy": "fugu@1f2e"}


def test_model_names_are_unique() -> None:
    """A policy and a worker of one name cannot be told apart, so the server does not start."""
    pool = Pool([Member(spec=WorkerSpec(id="fugu", dialect="scripted", model="m"), backend=Scripted([]))])
    with pytest.raises(ConfigError, match="fugu"):
        create_app(policies={"fugu": Ranked()}, pool=pool, store=RefusingStore(), config=ServerConfig())


# --- keys ---

KEYS = (
    KeySpec(name="all", sha256=hashlib.sha256(KEY.encode()).hexdigest()),
    KeySpec(name="some", env="OTHER", workers=("thinks",)),
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTHER", OTHER_KEY)
        policies = {"fugu": Ranked("echo", "thinks")}
        with running(tmp_path_factory.mktemp("keys"), workers(), policies=policies, keys=KEYS) as it:
            yield it


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_route_asks_for_a_key(guarded: Server) -> None:
    """No route answers without a key but those listed as open, whichever the method."""
    pool = Pool([])
    app = create_app(policies={}, pool=pool, store=RefusingStore(), config=ServerConfig())
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) == len(app.routes) >= 8
    for route in routes:
        path = route.path.replace("{id:path}", "echo").replace("{id}", "run_1")
        for method in route.methods or ():
            status, headers, body = guarded.request(method, path, b"{}" if method == "POST" else None)
            if route.path in OPEN_PATHS:
                assert status == 200
            else:
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert method == "HEAD" or body["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearer(KEY), 200),
        ({"authorization": f"bearer  {KEY} "}, 200),
        ({"x-api-key": KEY}, 200),
        ({"x-api-key": "wrong", **bearer(KEY)}, 200),
        ({"authorization": "Basic eDp5", "x-api-key": KEY}, 200),
        (bearer(OTHER_KEY), 200),
        (bearer(KEY[:-1]), 401),
        (bearer(""), 401),
        (bearer(hashlib.sha256(KEY.encode()).hexdigest()), 401),
        ({"authorization": KEY}, 401),
        (bearer("\xff\xfe"), 401),
        ({"cookie": f"key={KEY}"}, 401),
    ],
)
def test_keys(guarded: Server, headers: dict[str, str], status: int) -> None:
    """A key is accepted as a bearer token or as x-api-key, whole, and in no other way."""
    got, _, body = guarded.request("GET", "/v1/models", headers=headers)
    assert got == status
    assert KEY not in json.dumps(body, default=str)


def test_key_with_some_workers(guarded: Server) -> None:
    """Workers that a key may not call do not exist for it, and a policy does not choose them."""
    headers = bearer(OTHER_KEY)
    listed = guarded.request("GET", "/v1/models", headers=headers)[2]["data"]
    assert [model["id"] for model in listed] == ["fugu", "thinks"]
    assert guarded.request("GET", "/v1/models/echo", headers=headers)[0] == 404
    question = {"model": "echo", "messages": HI}
    status, _, body = guarded.request("POST", "/v1/chat/completions", question, headers)
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "expected one of fugu, thinks" in body["error"]["message"]
    question = {"model": "fugu", "messages": HI, "tools": [TOOL]}
    status, answered, _ = guarded.request("POST", "/v1/chat/completions", question, headers)
    assert (status, answered["x-fugu-workers"]) == (200, "thinks")


def test_runs_belong_to_their_key(guarded: Server) -> None:
    """A key sees its own runs; another's does not exist for it, neither by id nor by the beginning of one."""
    ids = {}
    for key in (KEY, OTHER_KEY, KEY):
        question = {"model": "fugu", "messages": HI, "tools": [TOOL]}
        ids[key] = guarded.request("POST", "/v1/chat/completions", question, bearer(key))[1]["x-fugu-run-id"]
    for key, stranger in ((KEY, OTHER_KEY), (OTHER_KEY, KEY)):
        own = guarded.request("GET", f"/v1/runs/{ids[key]}", headers=bearer(key))
        assert own[0] == 200
        assert own[2]["run"]["key_id"] in ("all", "some")
        assert guarded.request("GET", f"/v1/runs/{ids[key]}", headers=bearer(stranger))[0] == 404
        assert guarded.request("GET", f"/v1/runs/{ids[key][:16]}", headers=bearer(stranger))[0] == 404
        listed = guarded.request("GET", "/v1/runs?limit=1000", headers=bearer(stranger))[2]["data"]
        assert ids[key] not in [row["id"] for row in listed]
        assert ids[stranger] in [row["id"] for row in listed]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost"}, 200),
        ({"host": "127.0.0.1:8377"}, 200),
        ({"host": "[::1]:1"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "evil.example@127.0.0.1"}, 200),  # the host of that is 127.0.0.1
        ({"host": "[::1"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_loopback_without_keys(server: Server, headers: dict[str, str], status: int) -> None:
    """Without keys, a page that made its name resolve to loopback, or that sends cross-site requests, is refused."""
    assert server.request("GET", "/v1/models", headers=headers)[0] == status


@pytest.mark.parametrize("hosts", [b"", b"host: localhost\r\nhost: evil.example\r\n"])
def test_loopback_needs_one_host(server: Server, hosts: bytes) -> None:
    """Without keys, a request that names no host, or several, is refused."""
    received = server.send(b"GET /v1/models HTTP/1.0\r\n" + hosts + b"\r\n")
    assert received.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))


def test_keys_are_needed_beyond_loopback() -> None:
    """A server that others can reach does not start without keys."""
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ConfigError, match="keys"):
            ServerConfig(host=host)
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        ServerConfig(host=host)


def test_unset_key_variable() -> None:
    """A variable that is unset, or holds something guessable, is an error that names it and not its value."""
    config = ServerConfig(keys=(KeySpec(name="ci", env="FUGU_KEY"),))
    with pytest.raises(ConfigError, match="'FUGU_KEY' is not set"):
        Keyring(config, env={})
    with pytest.raises(ConfigError, match="fewer than 16") as caught:
        Keyring(config, env={"FUGU_KEY": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_key_for_unknown_worker() -> None:
    """A key that allows a worker which the pool does not have is an error."""
    config = ServerConfig(keys=(KeySpec(name="k", sha256="0" * 64, workers=("ghost",)),))
    with pytest.raises(ConfigError, match="ghost"):
        create_app(policies={}, pool=Pool([]), store=RefusingStore(), config=config)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"prot": 1}, "unknown key 'prot'"),
        ({"port": 70000}, "port"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"drain_s": -1}, "drain_s"),
        ({"narrate": 1}, "narrate"),
        ({"keys": [{"name": "a"}]}, "either `env` or `sha256`"),
        ({"keys": [{"name": "a", "sha256": "abc"}]}, "64 lower-case hex"),
        ({"keys": [{"name": "a b", "env": "X"}]}, "key name"),
        ({"keys": [{"name": "a", "env": "X"}, {"name": "a", "env": "Y"}]}, "share a name"),
        ({"keys": [{"name": "a", "env": "X", "workers": []}]}, "allows none"),
    ],
)
def test_bad_config(table: dict[str, Any], match: str) -> None:
    """A wrong `[server]` table is an error that names the key."""
    with pytest.raises(ConfigError, match=match):
        read_table(ServerConfig, table, where="server")


def test_config_is_read() -> None:
    """A whole `[server]` table becomes a config."""
    table = {"host": "0.0.0.0", "drain_s": 5, "keys": [{"name": "a", "env": "X", "workers": ["w"]}]}
    config = read_table(ServerConfig, table, where="server")
    assert config.keys == (KeySpec(name="a", env="X", workers=("w",)),)
    assert (config.host, config.drain_s) == ("0.0.0.0", 5.0)


# --- the mapping of errors ---


@pytest.mark.parametrize("code", CODES)
def test_every_worker_code_is_mapped(code: WorkerCode) -> None:
    """Every code that a worker's error can have is mapped on purpose, and every 429 and 503 has Retry-After."""
    mapped = error_to_http(WorkerError("m", worker="w", code=code))
    assert (mapped.status, json.loads(mapped.body)["error"]["code"]) == STATUSES.get(code, (502, code))
    assert (b"retry-after" in dict(mapped.headers)) == (mapped.status in (429, 503))


@pytest.mark.parametrize(("asked", "told"), [(None, b"1"), (0.0, b"1"), (2.01, b"3"), (float("inf"), b"60")])
def test_retry_after(asked: float | None, told: bytes) -> None:
    """Retry-After is whole seconds, at least one."""
    mapped = error_to_http(WorkerError("m", worker="w", code="rate_limited", retry_after_s=asked))
    assert dict(mapped.headers)[b"retry-after"] == told


def test_our_faults_are_not_described() -> None:
    """What is our own fault is named by its run only."""
    mapped = error_to_http(FuguError("path /secret"), run_id="run_1")
    assert mapped.status == 500
    assert b"secret" not in mapped.body
    assert b"run_1" in mapped.body


def test_client_errors_keep_their_status() -> None:
    """A client's error goes out with its own status, code and field."""
    mapped = error_to_http(RequestError("m", code="c", status=413, param="p"))
    assert mapped.status == 413
    assert json.loads(mapped.body)["error"] == {
        "message": "m",
        "type": "invalid_request_error",
        "code": "c",
        "param": "p",
    }
