"""`fugu serve` as its users meet it: the real command over a real record, a head that chooses, workers that misbehave.

What one layer alone can prove stands in its own tests; here is what only the whole composition shows. Every worker is
the same local model server, which behaves by the model's name. The head sends each question below to the worker of
that name; whoever fails is followed by `good`, then by `spare`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torafugu.local import MiniLM
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.orchestrate.tri_head import Rules
from torafugu.store import open_store
from torafugu.store.rows import StoredRun
from trinity import save_trinity
from upstream import Asked, Play, Upstream, Writer, chunk, head, respond

CANARY = "canary/4f1c9b7e+no-known-shape-of-a-key"
"""The provider's key. No pattern knows it, and JSON writers may escape the slash."""
TELLING = "4f1c9b7e"
"""What nobody may see of it."""
KEYS = {"FUGU_KEY_ALL": "all-0123456789abcdef", "FUGU_KEY_SOME": "some-0123456789abcdef"}
MASKED = ("hangs", "good")
"""What the key `some` may not call."""
QUESTIONS = {
    "hangs": "Why does my old printer freeze when it warms up?",
    "dies": "Which rivers flow through Vienna and Budapest?",
    "garbage": "Translate 'good morning' into Portuguese.",
    "limited": "What is the integral of x squared?",
    "waits": "Write a limerick about a lighthouse keeper.",
    "echoes": "How much does a used bicycle cost?",
    "fails": "Name three painters of the Renaissance.",
}
WORKERS = (*QUESTIONS, "good", "spare")
FIRST, SECOND, LAST = (
    f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
    for choice in (
        {"delta": {"content": "so "}},
        {"delta": {"content": "far"}},
        {"delta": {}, "finish_reason": "stop"},
    )
)


@dataclass
class Provider:
    """The model server, on a thread of its own."""

    asked: list[str] = field(default_factory=list)
    """Models, in the order in which they were called."""
    called: threading.Event = field(default_factory=threading.Event)
    """`waits` has a request."""
    left: threading.Event = field(default_factory=threading.Event)
    """The connection of that request was closed under it."""
    errors: deque[Play] = field(default_factory=deque)
    """What `echoes` and `garbage` do next."""

    def run(self, started: Callable[[], None]) -> None:
        asyncio.run(self._run(started))

    async def _run(self, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._go_on = asyncio.Event(), asyncio.Event()
        async with Upstream(self._play) as upstream:
            self.url = upstream.url
            started()
            await self._stop.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def go_on(self) -> None:
        """`waits` says the rest."""
        self._loop.call_soon_threadsafe(self._go_on.set)

    def reset(self) -> None:
        self.asked.clear()
        self.errors.clear()
        self.called.clear()
        self.left.clear()
        self._loop.call_soon_threadsafe(self._go_on.clear)

    async def _play(self, asked: Asked, out: Writer) -> None:
        model = asked.body["model"]
        self.asked.append(model)
        assert asked.headers["authorization"] == f"Bearer {CANARY}"
        if model in ("good", "spare"):
            answer_well(asked, out, f"{model} says so")
        elif model == "hangs":
            await asyncio.Event().wait()
        elif model == "dies":
            head(out)
            chunk(out, FIRST)
            out.close()
        elif model == "limited":
            respond(out, 429, {"error": {"message": "slow down"}}, {"Retry-After": "90"})
        elif model == "fails":
            respond(out, 500, {"error": {"message": "out of order"}})
        elif model == "waits":
            await self._wait(asked, out)
        else:
            await self.errors.popleft()(asked, out)

    async def _wait(self, asked: Asked, out: Writer) -> None:
        if asked.body.get("stream"):
            head(out)
            chunk(out, FIRST)
        self.called.set()
        try:
            await self._go_on.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        for piece in (SECOND, LAST, b"data: [DONE]\n\n", b""):
            chunk(out, piece)


def answer_well(asked: Asked, out: Writer, text: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    if not asked.body.get("stream"):
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        respond(out, 200, {"id": "c", "model": "m", "choices": [choice], "usage": usage})
        return
    head(out)
    delta = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    for piece in (f"data: {json.dumps(delta)}\n\n".encode(), b"data: [DONE]\n\n", b""):
        chunk(out, piece)


def says(status: int, body: bytes | dict[str, Any]) -> Play:
    """A whole answer, whatever was asked."""

    async def play(asked: Asked, out: Writer) -> None:
        respond(out, status, body)

    return play


async def recover(asked: Asked, out: Writer) -> None:
    answer_well(asked, out, "well again")


def streams(*pieces: bytes) -> Play:
    async def play(asked: Asked, out: Writer) -> None:
        head(out)
        for piece in (*pieces, b""):
            chunk(out, piece)

    return play


# ---- the installation


def make_installation(folder: Path, url: str) -> Path:
    """fugu.toml, pool.toml and a head. Returns the first."""
    folder.mkdir()
    tables = [
        f'[[worker]]\nid = "{id}"\ndialect = "openai"\nmodel = "{id}"\nbase_url = "{url}"\nkey_env = "CANARY_KEY"\n'
        "prices = { input = 1, output = 2 }\n"
        + ("timeouts = { first_token_s = 0.2, total_s = 0.4 }\n" if id == "hangs" else "")
        for id in WORKERS
    ]
    (folder / "pool.toml").write_text("\n".join(tables))
    allowed = [id for id in WORKERS if id not in MASKED]
    (folder / "fugu.toml").write_text(
        'pool = "pool.toml"\npolicy = "policy"\n'
        '[[server.keys]]\nname = "all"\nenv = "FUGU_KEY_ALL"\n'
        f'[[server.keys]]\nname = "some"\nenv = "FUGU_KEY_SOME"\nworkers = {json.dumps(allowed)}\n'
    )
    make_head(folder / "policy", WORKERS)
    return folder / "fugu.toml"


def make_head(folder: Path, workers: Sequence[str]) -> None:
    """A worker scores by how near the question is to its own; `good` and `spare` are second and third to that."""
    encoder = MiniLM()
    own = encoder.encode_texts(list(QUESTIONS.values()))  # (k, dim), of length one
    features = FeatureMap(np.zeros(encoder.dim, np.float32), np.ascontiguousarray(own.T))
    weight = np.zeros((len(workers), len(QUESTIONS) + 1), np.float32)
    for row, worker in zip(weight, workers, strict=True):
        if worker in QUESTIONS:
            row[list(QUESTIONS).index(worker)] = 1
        else:
            row[-1] = {"good": 0.8, "spare": 0.7}.get(worker, 0)
    identities = tuple(WorkerIdentity(worker, worker) for worker in workers)
    card = Card(encoder=encoder.name, workers=identities, training={}, metrics={}, baselines={})
    Head.create(features, weight, card).save(folder)
    encoder.close()


def start(*arguments: str | Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torafugu.cli", "serve", "--port", "0", *map(str, arguments)],
        env={**os.environ, "CANARY_KEY": CANARY, **KEYS, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: str
    is_whole: bool

    @property
    def run(self) -> str:
        return self.headers["x-fugu-run-id"]

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


@dataclass
class Server:
    """A running `fugu serve`, and its clients."""

    process: subprocess.Popen[str]
    record: Path
    address: str
    log: list[str] = field(default_factory=list)
    responses: list[Answered] = field(default_factory=list)

    def request(self, method: str, path: str, body: str | None = None, key: str = "ALL") -> Answered:
        connection = self.connect(method, path, body, key)
        try:
            return self.read(connection)
        finally:
            connection.close()

    def connect(self, method: str, path: str, body: str | None = None, key: str = "ALL") -> http.client.HTTPConnection:
        """A connection on which the request has been sent."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        connection.request(method, path, body, {"Authorization": f"Bearer {KEYS[f'FUGU_KEY_{key}']}"})
        return connection

    def read(self, connection: http.client.HTTPConnection) -> Answered:
        response = connection.getresponse()
        try:
            body, is_whole = response.read(), True
        except http.client.IncompleteRead as broken:
            body, is_whole = broken.partial, False
        headers = {name.lower(): value for name, value in response.getheaders()}
        answered = Answered(response.status, headers, body.decode(), is_whole)
        self.responses.append(answered)
        return answered

    def ask(self, question: str, model: str = "fugu", *, stream: bool = False, key: str = "ALL") -> Answered:
        return self.request("POST", "/v1/chat/completions", chat(question, model, stream=stream), key)

    def wait_record(self, run: str, status: str, key: str = "ALL", least: int = 1) -> list[dict[str, Any]]:
        """The events of a run once it has this status and so many of them: they are written behind the answer."""
        deadline = time.monotonic() + 5
        while True:
            stored = json.loads(self.request("GET", f"/v1/runs/{run}", key=key).body)
            if stored["run"]["status"] == status and len(stored["events"]) >= least:
                return [event["event"] for event in stored["events"]]
            assert time.monotonic() < deadline, f"{stored['run']['status']!r}, expected {status!r}"
            time.sleep(0.01)

    def newest_run(self) -> str:
        run: str = json.loads(self.request("GET", "/v1/runs?limit=1").body)["data"][0]["id"]
        return run


def chat(question: str, model: str = "fugu", *, stream: bool = False) -> str:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": question}], "stream": stream})


@contextmanager
def serving(config: Path, *more: str | Path) -> Iterator[Server]:
    process = start("--config", config, *more)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line.startswith("serving fugu@"), process.stderr.read()
    address = line.split(" at http://")[1].split("/")[0]
    server = Server(process, config.parent / "runs.sqlite", address)
    listening = threading.Thread(target=server.log.extend, args=(process.stderr,))
    listening.start()
    try:
        yield server
    finally:
        process.kill()
        process.wait()
        listening.join()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="module")
def running_provider() -> Iterator[Provider]:
    provider, started = Provider(), threading.Event()
    thread = threading.Thread(target=provider.run, args=(started.set,))
    thread.start()
    assert started.wait(5)
    yield provider
    provider.stop()
    thread.join()


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    running_provider.reset()
    return running_provider


@pytest.fixture(scope="module")
def server(running_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = make_installation(tmp_path_factory.mktemp("fugu") / "installation", running_provider.url)
    with serving(config) as server:
        yield server


def attempts(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(worker, reason, how it ended), for every call that left."""
    ends = {
        (e["step"], e["attempt"]): "replied" if e["kind"] == "replied" else e["code"]
        for e in events
        if e["kind"] in ("replied", "failed")
    }
    return [(e["worker"], e["reason"], ends[e["step"], e["attempt"]]) for e in events if e["kind"] == "called"]


# ---- it does not start


def test_what_is_configured_wrongly_keeps_the_server_from_starting(tmp_path: Path) -> None:
    """No pool, no key, a head for other workers: status 2, one line that says what to do, and no record is made."""
    config = make_installation(tmp_path / "whole", "http://127.0.0.1:9/v1")
    (tmp_path / "empty.toml").write_text("# nobody\n")
    make_head(tmp_path / "other", ("good", "spare", "somebody-else"))
    record = tmp_path / "runs.sqlite"
    expected = {
        "the pool is empty: declare at least one [[worker]]": start(
            "--config", config, "--record", record, "--pool", tmp_path / "empty.toml"
        ),
        "environment variable 'CANARY_KEY' is not set": start("--config", config, "--record", record, CANARY_KEY=""),
        "was trained for good, somebody-else, spare; the pool also has": start(
            "--config", config, "--record", record, "--policy", tmp_path / "other"
        ),
        "key 'some': environment variable 'FUGU_KEY_SOME' is not set": start(
            "--config", config, "--record", tmp_path / "other.sqlite", FUGU_KEY_SOME=""
        ),
    }
    for message, process in expected.items():
        out, err = process.communicate(timeout=60)
        assert message in err
        assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert not record.exists()


# ---- bad requests


def test_bad_requests_reach_no_worker(server: Server, provider: Provider) -> None:
    """Malformed JSON and unknown models are 400 and 404 in OpenAI's shape; no worker is called, no run is made."""
    newest = server.ask(QUESTIONS["fails"], "good").run
    provider.reset()
    malformed = server.request("POST", "/v1/chat/completions", '{"model": "fugu", "messages": [')
    assert (malformed.status, malformed.error["code"]) == (400, "invalid_json")
    unknown = server.ask("hello", "gpt-17")
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    assert "expected one of fugu, hangs, " in unknown.error["message"]
    dialect = server.request("POST", "/v1/embeddings", "{}")
    assert (dialect.status, dialect.error["code"]) == (404, "not_found")
    assert "this server has /v1/chat/completions" in dialect.error["message"]
    assert provider.asked == []
    assert server.newest_run() == newest


def test_a_pin_insists_on_one_head(server: Server, provider: Provider) -> None:
    """`fugu@ID` is answered by the head of that id; another id is 404 and names the one that is loaded."""
    described = json.loads(server.request("GET", "/v1/models/fugu").body)
    pin = described["fugu"]["policy"]
    pinned = server.ask(QUESTIONS["fails"], pin)
    assert (pinned.status, pinned.headers["x-fugu-policy"]) == (200, pin)
    assert provider.asked == ["fails", "good"]
    other = server.ask(QUESTIONS["fails"], "fugu@0123456789ab")
    assert (other.status, other.error["code"]) == (404, "model_not_found")
    assert pin in other.error["message"]


# ---- bad workers


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_that_hangs_is_left_for_the_next_choice(server: Server, provider: Provider, stream: bool) -> None:
    """The selector's second choice answers when its first one hangs; the record holds scores and both attempts."""
    answered = server.ask(QUESTIONS["hangs"], stream=stream)
    assert (answered.status, answered.is_whole) == (200, True)
    assert "good says so" in answered.body
    assert answered.headers["x-fugu-workers"] == "hangs,good"
    events = server.wait_record(answered.run, "answered")
    code = "timeout_first_token" if stream else "timeout_total"
    assert attempts(events) == [("hangs", "planned", code), ("good", "failover", "replied")]
    scores = next(e["plan"]["scores"] for e in events if e["kind"] == "planned")
    assert list(scores)[:3] == ["hangs", "good", "spare"]
    assert set(scores) == set(WORKERS)
    assert events[-1].get("cost_usd") is None, "what the hanging worker costs is unknown, and so is the sum"


def test_a_worker_that_dies_in_midstream_is_no_clean_end(server: Server, provider: Provider) -> None:
    """After the first token no other worker takes over: an error frame, no end of the body, `failed` on record."""
    answered = server.ask(QUESTIONS["dies"], stream=True)
    assert answered.status == 200
    assert not answered.is_whole
    assert '"content":"so "' in answered.body
    assert '"code":"truncated"' in answered.body.rpartition("data: ")[2]
    assert "[DONE]" not in answered.body
    assert provider.asked == ["dies"]
    events = server.wait_record(answered.run, "failed")
    assert attempts(events) == [("dies", "planned", "truncated")]
    assert events[-1]["by"] == "error"


@pytest.mark.parametrize(
    ("play", "stream", "code"),
    [
        (says(200, b"<html>Welcome to nginx!</html>"), False, "malformed"),
        (says(200, {"choices": "none"}), False, "malformed"),
        (says(200, {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}), False, "empty"),
        (streams(b"data: {{{\n\n"), True, "malformed"),
        (streams(b"data: [DONE]\n\n"), True, "empty"),
    ],
    ids=["html", "shape", "empty", "events", "no events"],
)
def test_garbage_is_not_passed_on(server: Server, provider: Provider, play: Play, stream: bool, code: str) -> None:
    """What is no answer is a failed attempt; the client gets the next worker's."""
    provider.errors.extend((play, recover))
    answered = server.ask(QUESTIONS["garbage"], stream=stream)
    assert answered.status == 200
    assert "good says so" in answered.body
    events = server.wait_record(answered.run, "answered")
    assert attempts(events) == [("garbage", "planned", code), ("good", "failover", "replied")]
    assert server.ask("hello", "garbage").status == 200, "lest failures in a row close it off"


def test_a_rate_limit_moves_on_and_is_passed_on_when_alone(server: Server, provider: Provider) -> None:
    """After a 429 another worker answers, and the limited one rests; alone, the client gets the 429 and its wait."""
    answered = server.ask(QUESTIONS["limited"])
    assert attempts(server.wait_record(answered.run, "answered")) == [
        ("limited", "planned", "rate_limited"),
        ("good", "failover", "replied"),
    ]
    provider.reset()
    rested = server.ask(QUESTIONS["limited"])
    assert (rested.status, provider.asked) == (200, ["good"])
    alone = server.ask("hello", "limited")
    assert (alone.status, alone.error["type"]) == (429, "rate_limit_error")
    assert alone.headers["retry-after"] == "90"
    events = server.wait_record(alone.run, "failed")
    assert attempts(events) == [("limited", "planned", "rate_limited")]


def test_a_key_for_some_workers_binds_the_selector(server: Server, provider: Provider) -> None:
    """`fugu` neither chooses nor fails over to a worker that the key does not allow; the plan says who was masked."""
    chosen = server.ask(QUESTIONS["hangs"], key="SOME")
    failed_over = server.ask(QUESTIONS["fails"], key="SOME")
    assert provider.asked == ["spare", "fails", "spare"]
    for answered in (chosen, failed_over):
        assert answered.status == 200
        events = server.wait_record(answered.run, "answered", key="SOME")
        plan = next(e["plan"] for e in events if e["kind"] == "planned")
        assert set(plan["masked"]) == set(MASKED)
        assert not set(plan["scores"]) & set(MASKED)
    assert server.ask("hello", "good", key="SOME").status == 404


# ---- the provider's key


def test_the_providers_key_is_nowhere(server: Server, provider: Provider) -> None:
    """A provider quotes its key in errors of every kind: it is in no response, no log, and no byte of the record."""
    quote = json.dumps({"error": {"message": f"what is {CANARY}?"}}).replace("/", "\\/").encode()
    by_policy: list[tuple[Play, bool]] = [
        (says(500, f"<html>at {CANARY}".encode()), False),
        (says(200, quote), False),  # not as JSON, so it is quoted as it came
        (says(200, {"error": {"message": CANARY, "code": 502}}), True),
        (streams(b"data: {{{" + CANARY.encode() + b"\n\n"), True),
    ]
    alone: list[tuple[Play, bool]] = [  # so that the client is told what the provider said
        (says(400, {"error": {"message": f"Authorization: Bearer {CANARY} is odd", "code": CANARY}}), False),
        (says(402, quote), False),
        (streams(FIRST, b"event: error\ndata: " + quote + b"\n\n"), True),
        (streams(FIRST, b"data: " + CANARY.encode() + b"\n\n"), True),
        (says(401, {"error": {"message": f"Incorrect API key provided: {CANARY}"}}), False),
    ]
    for model, plays in (("fugu", by_policy), ("echoes", alone)):
        for play, stream in plays:
            provider.errors.append(play)
            answered = server.ask(QUESTIONS["echoes"], model, stream=stream)
            events = server.wait_record(answered.run, "answered" if model == "fugu" else "failed")
            assert attempts(events)[0][0] == "echoes"
            assert not provider.errors
            is_quoted = attempts(events)[0][2] != "auth"  # that text goes to the operator
            assert ("[key]" in json.dumps(events)) == is_quoted
    assert any("'echoes' is disabled until it replies" in line and "[key]" in line for line in server.log)
    server.request("GET", "/v1/models")
    for response in server.responses:
        assert TELLING not in response.body + str(response.headers)
    assert not [line for line in server.log if TELLING in line]
    files = [path for path in server.record.parent.rglob("*") if path.is_file()]
    assert server.record in files
    assert not [path for path in files if TELLING.encode() in path.read_bytes()]


# ---- clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_call(server: Server, provider: Provider, stream: bool) -> None:
    """When the client closes, the provider sees its connection closed within two seconds; the record says why."""
    connection = server.connect("POST", "/v1/chat/completions", chat(QUESTIONS["waits"], stream=stream))
    assert provider.called.wait(5)
    connection.close()
    assert provider.left.wait(2)
    run = server.newest_run()
    events = server.wait_record(run, "client_closed")
    assert attempts(events) == [("waits", "planned", "cancelled")]
    assert events[-1]["by"] == "client_closed"
    assert provider.asked == ["waits"], "nobody takes over for a client that is gone"


# ---- a record that cannot be kept


@contextmanager
def locked(server: Server) -> Iterator[None]:
    """Another process is writing."""
    connection = sqlite3.connect(server.record, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def disk_full(server: Server) -> Iterator[None]:
    """No file of the server's process can grow: what a full disk does, without one."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs prlimit(2)")
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("spoilt", [locked, disk_full])
def test_without_a_record_no_work(server: Server, provider: Provider, spoilt: Callable[[Server], Any]) -> None:
    """A locked database and a full disk refuse work with 503 before anything is sent; both heal by themselves."""
    server.wait_record(server.ask("hello", "good").run, "answered")  # nothing waits to be written
    provider.reset()
    with spoilt(server):
        refused = server.ask(QUESTIONS["fails"])
        assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert server.request("GET", "/readyz").status == 503
        assert server.ask(QUESTIONS["fails"], stream=True).status == 503, "refused at once, now that it is known"
        assert provider.asked == []
    deadline = time.monotonic() + 10
    while server.request("GET", "/readyz").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.ask("hello", "good").status == 200
    assert attempts(server.wait_record(refused.run, "failed")) == []


# ---- the end of the server


def test_a_killed_server_and_one_that_is_asked_to_stop(provider: Provider, tmp_path: Path) -> None:
    """After kill -9 the next start ends the run as `interrupted`; after SIGTERM a running stream still ends well."""
    config = make_installation(tmp_path / "installation", provider.url)
    with serving(config) as server:
        connection = server.connect("POST", "/v1/chat/completions", chat(QUESTIONS["waits"], stream=True))
        response = connection.getresponse()
        killed = response.getheader("x-fugu-run-id")
        assert killed is not None
        server.wait_record(killed, "running", least=3)
        server.process.kill()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        connection.close()
    provider.reset()
    with serving(config) as server:
        events = server.wait_record(killed, "interrupted")
        assert [e["kind"] for e in events] == ["accepted", "planned", "called", "stopped"]
        assert events[-1].get("cost_usd") is None, "nobody knows what the call in flight cost"

        connection = server.connect("POST", "/v1/chat/completions", chat(QUESTIONS["waits"], stream=True))
        assert provider.called.wait(5)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while server.request("GET", "/readyz").status != 503:
            assert time.monotonic() < deadline
        late = server.ask(QUESTIONS["fails"])
        assert (late.status, late.error["code"]) == (503, "server_stopping")
        provider.go_on()
        drained = server.read(connection)
        connection.close()
        assert server.process.wait(10) == 0
    assert drained.is_whole
    assert drained.body.endswith("data: [DONE]\n\n")
    assert '"content":"far"' in drained.body
    assert not [line for line in server.log if "Traceback" in line]
    stored = read_run(server.record, drained.run)
    assert (stored.run.status, stored.run.workers) == ("answered", ("waits",))
    assert [path.name for path in server.record.parent.glob("runs.sqlite*")] == ["runs.sqlite"], "nothing left behind"


def read_run(record: Path, run: str) -> StoredRun:
    async def read() -> StoredRun | None:
        async with open_store(record) as store:
            return await store.get_run(run)

    stored = asyncio.run(read())
    assert stored is not None
    return stored


# ---- the tri-role coordinator


def make_trinity(folder: Path) -> Path:
    """`good` answers, then whoever has the least ability verifies: `echoes` first, then `garbage`."""
    ability = dict.fromkeys(WORKERS, 0.5) | {"good": 0.9, "spare": 0.8, "echoes": 0.1, "garbage": 0.2}
    encoder = MiniLM()
    name, dim = encoder.name, encoder.dim
    encoder.close()
    return save_trinity(
        folder,
        ability,
        encoder=name,
        dim=dim,
        role={"verifier": {"has_answer": 5.0}},
        worker={"worker": {"ability": 1.0}, "verifier": {"ability": -1.0, "known": -10.0}},
        rules=Rules(roles=("worker", "verifier"), max_calls=3),
    )


def verdict(word: str) -> Play:
    async def play(asked: Asked, out: Writer) -> None:
        answer_well(asked, out, f"<answer>something else</answer>\n<verdict>{word}</verdict>")

    return play


@pytest.fixture(scope="module")
def both(running_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that offers `fugu` by its file and `fugu-trinity` by its command line."""
    folder = tmp_path_factory.mktemp("both")
    config = make_installation(folder / "installation", running_provider.url)
    with serving(config, "--trinity", make_trinity(folder / "trinity")) as server:
        yield server


def text_of(answered: Answered, *, stream: bool) -> str:
    """What the client reads."""
    if not stream:
        text: str = json.loads(answered.body)["choices"][0]["message"]["content"]
        return text
    assert answered.body.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in answered.body.split("\n\n")[:-2] if line.startswith("data: ")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


@pytest.mark.parametrize("stream", [False, True])
def test_the_coordinator_answers_and_says_why_it_stopped(both: Server, provider: Provider, stream: bool) -> None:
    """`fugu-trinity` returns the Worker's reply once a Verifier accepts it; the record has the roles and the reason."""
    provider.errors.append(verdict("ACCEPT"))
    answered = both.ask("Is this so?", "fugu-trinity", stream=stream)
    assert (answered.status, answered.is_whole) == (200, True), answered.body
    assert text_of(answered, stream=stream) == "good says so"
    assert provider.asked == ["good", "echoes"]
    events = both.wait_record(answered.run, "answered")
    steps = [step for event in events if event["kind"] == "planned" for step in event["plan"]["steps"]]
    planned = [(step.get("role", "worker"), step["worker"]) for step in steps]  # what is usual is not written
    assert planned == [("worker", "good"), ("verifier", "echoes")]
    (end,) = [e for e in events if e["kind"] == "answered"]
    assert (end["worker"], end["notes"]["stopped"], end["notes"]["turns"]) == ("good", "accepted", 2)


@pytest.mark.parametrize("stream", [False, True])
def test_verifiers_that_reject_leave_the_workers_answer(both: Server, provider: Provider, stream: bool) -> None:
    """Rejected until no call is left, the Worker's answer is returned all the same, and no verdict with it."""
    provider.errors.extend([verdict("REJECT"), verdict("REJECT")])
    answered = both.ask("Is this so?", "fugu-trinity", stream=stream)
    assert text_of(answered, stream=stream) == "good says so"
    assert "verdict" not in answered.body
    assert provider.asked == ["good", "echoes", "garbage"]
    events = both.wait_record(answered.run, "answered")
    (end,) = [e for e in events if e["kind"] == "answered"]
    assert end["notes"]["stopped"] in ("accepted", "exhausted")  # what is left is to recall the answer itself


def test_both_policies_are_offered_side_by_side(both: Server, provider: Provider) -> None:
    """Each model name has its own head, and the listing names both; a pin of the coordinator is kept to."""
    models = {model["id"] for model in json.loads(both.request("GET", "/v1/models").body)["data"]}
    assert {"fugu", "fugu-trinity", *WORKERS} <= models
    pin = json.loads(both.request("GET", "/v1/models/fugu-trinity").body)["fugu"]["policy"]
    assert pin.startswith("fugu-trinity@")
    provider.errors.append(verdict("ACCEPT"))
    assert both.ask("Is this so?", pin).status == 200
    refused = both.ask("Is this so?", "fugu-trinity@000000000000")
    assert (refused.status, pin in refused.body) == (404, True)
    assert both.ask(QUESTIONS["fails"]).status == 200  # `fugu` goes on to the next choice, as ever


def test_a_key_for_some_workers_binds_the_coordinator(both: Server, provider: Provider) -> None:
    """A key that masks `good` gets the answer of another worker: the coordinator never calls `good` for it."""
    provider.errors.append(verdict("ACCEPT"))
    answered = both.ask("Is this so?", "fugu-trinity", key="SOME")
    assert text_of(answered, stream=False) == "spare says so"
    assert provider.asked == ["spare", "echoes"]
