"""What the server adds to a call: latency and CPU, against the same upstream asked directly.

    python -m bench.gateway

Prints one JSON object. The upstream is a fake of its own process that answers at once; the server is a process of its
own, once with the record on disk (durable before the call) and once in memory only, so that the price of durability
shows. All three are asked in turn, round by round; what is reported is the median over the rounds of the difference to
asking directly in the same round. `model` names a worker: no policy but `Direct` is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import uvloop

from torafugu.events import Event, Stopped
from torafugu.pool.open import open_pool
from torafugu.pool.spec import Limits, PoolSpec, WorkerSpec
from torafugu.server import ServerConfig, create_app, run_in_uvloop, serve
from torafugu.store import open_store

ROUNDS = 9
ROUND_S = 0.8
CONCURRENCY = 16
"""Of the rounds that measure CPU and throughput; latency is measured one request at a time."""
CHUNKS = 60
CHUNK_EVERY_S = 0.002
QUESTION = "lorem ipsum dolor sit amet " * 20
CHAT = "/v1/chat/completions"
ASKED: dict[str, object] = {"messages": [{"role": "user", "content": QUESTION}]}
TEXT = "consectetur adipiscing elit sed do eiusmod tempor " * 10


# --- the upstream: answers at once, or a chunk every CHUNK_EVERY_S, each with the time at which it left ---


class Upstream(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        answer = {
            "id": "x",
            "model": "fake",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
        }
        body = json.dumps(answer).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._answer = head + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not an instance of it

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        if b'"stream":true' in body.replace(b" ", b""):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            self._transport.write(head)
            self._next_chunk(0)
        else:
            self._transport.write(self._answer)

    def _next_chunk(self, number: int) -> None:
        if self._transport.is_closing():
            return
        if number == CHUNKS:
            finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            self._write_event(json.dumps(finish))
            self._write_event("[DONE]")
            self._transport.write(b"0\r\n\r\n")
            return
        delta = {"content": f"@{time.perf_counter_ns()} "}
        self._write_event(json.dumps({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
        asyncio.get_running_loop().call_later(CHUNK_EVERY_S, self._next_chunk, number + 1)

    def _write_event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))


async def run_upstream() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


# --- the server ---


class MemoryRecord:
    """Keeps the events of a run until it has stopped."""

    healthy = True

    def __init__(self) -> None:
        self._events: list[Event] = []

    def recorder(self, run_id: str) -> MemoryRecord:
        return MemoryRecord()

    def write(self, event: Event) -> None:
        self._events.append(event)
        if isinstance(event, Stopped):
            self._events.clear()

    async def wait_durable(self) -> None:
        return

    async def list_runs(self, limit: int, *, before: str | None = None, status: str | None = None) -> list[object]:
        return []

    async def get_run(self, id: str) -> None:
        return None


async def run_server(upstream: str, record: Path | None) -> None:
    config = ServerConfig(port=0)
    limits = Limits(concurrency=CONCURRENCY)
    worker = WorkerSpec(id="fake", dialect="openai", model="fake", base_url=f"{upstream}/v1", limits=limits)
    async with open_pool(PoolSpec(worker=(worker,))) as pool:
        if record is None:
            app = create_app(policies={}, pool=pool, store=MemoryRecord(), config=config)
            await serve(app, config, on_ready=lambda url, stop: print(url, flush=True))
        else:
            async with open_store(record) as store:
                app = create_app(policies={}, pool=pool, store=store, config=config)
                await serve(app, config, on_ready=lambda url, stop: print(url, flush=True))


@contextmanager
def process(*arguments: str) -> Iterator[tuple[str, int]]:
    """Another role of this module in a process of its own: its URL and its process id."""
    command = [sys.executable, "-m", "bench.gateway", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().strip(), running.pid
        finally:
            running.terminate()


def cpu_s(pid: int) -> float:
    """CPU time that the threads of a process have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


# --- the client: raw HTTP, so that it costs little beside what it measures ---


def to_request(path: str, fields: dict[str, object], *, stream: bool) -> bytes:
    """A request to the worker by its name."""
    body = json.dumps({"model": "fake", **fields} | ({"stream": True} if stream else {})).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """One connection, on which one request is sent again and again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, request: bytes) -> None:
        self._reader, self._writer, self._request = reader, writer, request

    async def ask(self) -> float:
        """Milliseconds until the whole answer was here."""
        began = time.perf_counter_ns()
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await self._reader.readexactly(length)
        return (time.perf_counter_ns() - began) / 1e6

    async def ask_stream(self) -> list[float]:
        """For every chunk, the milliseconds that it was on its way from the upstream."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        transits = []
        while (line := await self._reader.readline()) != b"0\r\n":
            if b"@" in line and b"delta" in line:  # some dialects repeat the text at the end
                transits.append((time.perf_counter_ns() - int(line.partition(b"@")[2].split()[0])) / 1e6)
        await self._reader.readline()
        return transits


@contextmanager
def clients(streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> Iterator[None]:
    try:
        yield
    finally:
        for _, writer in streams:
            writer.close()


async def measure_target(url: str, pid: int) -> dict[str, float]:
    """One round."""
    port = int(url.rpartition(":")[2])
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONCURRENCY)]
    with clients(connections):
        request, streaming = (to_request(CHAT, ASKED, stream=stream) for stream in (False, True))
        whole = [Client(*connection, request=request) for connection in connections]
        latencies = await ask_until(whole[0], time.perf_counter() + ROUND_S)
        cpu_before, began = cpu_s(pid), time.perf_counter()
        answered = await asyncio.gather(*(ask_until(client, began + ROUND_S) for client in whole))
        count, wall_s = sum(map(len, answered)), time.perf_counter() - began
        cpu_ms = (cpu_s(pid) - cpu_before) / count * 1e3
        streamed = [Client(*connection, request=streaming) for connection in connections]
        transits = [t for _ in range(4) for t in await streamed[0].ask_stream()]
        cpu_before = cpu_s(pid)
        await asyncio.gather(*(client.ask_stream() for client in streamed))
        chunk_cpu_us = (cpu_s(pid) - cpu_before) / (CHUNKS * CONCURRENCY) * 1e6
    return {
        "latency_p50_ms": statistics.median(latencies),
        "latency_p95_ms": statistics.quantiles(latencies, n=20)[-1],
        "requests_per_s": count / wall_s,
        "cpu_ms_per_request": cpu_ms,
        "chunk_transit_p50_ms": statistics.median(transits),
        "chunk_transit_p95_ms": statistics.quantiles(transits, n=20)[-1],
        "cpu_us_per_chunk": chunk_cpu_us,
    }


async def ask_until(client: Client, end: float) -> list[float]:
    latencies = [await client.ask()]
    while time.perf_counter() < end:
        latencies.append(await client.ask())
    return latencies


async def measure(targets: dict[str, tuple[str, int]]) -> dict[str, dict[str, float]]:
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(ROUNDS + 1):
        rounds.append({name: await measure_target(*target) for name, target in targets.items()})
    del rounds[0]  # warm-up
    fields = rounds[0]["direct"]
    result = {name: {f: statistics.median(r[name][f] for r in rounds) for f in fields} for name in targets}
    added = [field for field in fields if field.endswith("_ms") and "cpu" not in field]
    for name in targets:
        if name != "direct":
            result[name] |= {
                f"added_{f}": statistics.median(r[name][f] - r["direct"][f] for r in rounds) for f in added
            }
    return {name: {f: round(value, 4) for f, value in fields.items()} for name, fields in result.items()}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["upstream"]:
        run_in_uvloop(run_upstream())
    elif arguments[:1] == ["server"]:
        run_in_uvloop(run_server(arguments[1], Path(arguments[2]) if arguments[2:] else None))
    else:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            upstream = stack.enter_context(process("upstream"))
            targets = {
                "direct": upstream,
                "memory": stack.enter_context(process("server", upstream[0])),
                "durable": stack.enter_context(process("server", upstream[0], str(directory / "runs.db"))),
            }
            measured = run_in_uvloop(measure(targets))
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "uvloop": uvloop.__version__}
        settings = {"rounds": ROUNDS, "round_s": ROUND_S, "concurrency": CONCURRENCY, "chunks": CHUNKS}
        print(json.dumps({**machine, **settings, "targets": measured}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
