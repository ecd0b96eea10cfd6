"""What tests of the server share: a real server on a real socket, in a thread, and a client that sees raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import openai

from torafugu.orchestrate import Budget, Policy
from torafugu.pool.backend import Backend
from torafugu.pool.pool import Member, Pool
from torafugu.pool.prices import resolve_price
from torafugu.pool.spec import Prices, WorkerSpec
from torafugu.server import ServerConfig, create_app, run_in_uvloop, serve
from torafugu.store import RunStore, open_store

KEY = "sk-test-" + "k" * 32
HI: Any = [{"role": "user", "content": "hi"}]


@dataclass
class Server:
    url: str
    store: RunStore
    stop: Callable[[], None]
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
            is_json = response.getheader("content-type", "").startswith("application/json")
            answer = json.loads(content, parse_float=Decimal) if is_json and content else content
            return response.status, {k.lower(): v for k, v in response.getheaders()}, answer

    def ask(self, model: str, **fields: Any) -> tuple[int, Mapping[str, str], Any]:
        return self.request("POST", "/v1/chat/completions", {"model": model, "messages": HI, **fields})

    def connect(self, body: Any, path: str = "/v1/chat/completions") -> socket.socket:
        """A raw connection on which the request has been sent."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(data)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        connection.sendall(head.encode() + data)
        return connection

    def send(self, request: bytes) -> bytes:
        """What first comes back for these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            return connection.recv(65536)

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0, **options)

    def wait_status(self, run_id: str, status: str) -> Any:
        """The run's record, once it has that status: it is written behind the answer."""
        for _ in range(200):
            record = self.request("GET", f"/v1/runs/{run_id}")[2]
            if record.get("run", {}).get("status") == status:
                return record
            time.sleep(0.01)
        raise AssertionError(f"run {run_id} is {record}, expected {status!r}")

    def newest_run(self) -> str:
        return str(self.request("GET", "/v1/runs?limit=1")[2]["data"][0]["id"])


@contextlib.contextmanager
def running(
    directory: Path,
    backends: Mapping[str, Backend],
    *,
    policies: Mapping[str, Policy] | None = None,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    prices: Mapping[str, Prices] = MappingProxyType({"echo": Prices(input=Decimal("0.1"), output=Decimal("0.7"))}),
    modalities: tuple[str, ...] = ("text",),
    **config: Any,
) -> Iterator[Server]:
    """A server until the end of the block, where it is stopped the hard way."""
    settings = ServerConfig(port=0, **config)
    started: list[Server] = []
    is_ready = threading.Event()
    failures: list[BaseException] = []

    async def no_pause(delay_s: float) -> None:
        await asyncio.sleep(0)

    def member(id: str, backend: Backend) -> Member:
        spec = WorkerSpec(
            id=id,
            dialect="scripted",
            model=f"{id}-model",
            context_tokens=1000,
            modalities=modalities,
            prices=prices.get(id),
        )
        return Member(spec=spec, backend=backend, price=resolve_price(spec))

    async def main() -> None:
        pool = Pool([member(id, backend) for id, backend in backends.items()], sleep=no_pause)
        async with open_store(directory / "runs.db") as store:
            app = create_app(policies=policies or {}, pool=pool, store=store, config=settings, budget=budget)

            def on_ready(url: str, stop: Callable[[], None]) -> None:
                started.append(Server(url, store, stop, threading.current_thread(), asyncio.get_running_loop()))
                is_ready.set()

            await serve(app, settings, on_ready=on_ready)

    def run() -> None:
        try:
            run_in_uvloop(main())
        except BaseException as error:  # noqa: BLE001  # raised in the test's own thread
            failures.append(error)
            is_ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    is_ready.wait()
    try:
        if started:
            yield started[0]
    finally:
        if started:
            with contextlib.suppress(RuntimeError):  # it has ended already
                started[0].stop()
                started[0].stop()
        thread.join()
    if failures:
        raise failures[0]


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received
