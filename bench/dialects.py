"""What the server adds to a call in each of its three dialects: latency and CPU, per request and per streamed chunk.

    python -m bench.dialects

Prints one JSON object. As `bench.gateway`, whose upstream, server and rounds it uses: one worker that speaks chat
completions, asked directly and then through each dialect, round by round; the record is on disk. So what the dialects
differ by is the price of reading and writing them. A chunk is one piece of text, in however many events it comes.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import uvloop

from torafugu.server import run_in_uvloop

from .gateway import (
    ASKED,
    CHAT,
    CHUNKS,
    CONCURRENCY,
    QUESTION,
    ROUND_S,
    ROUNDS,
    Client,
    ask_until,
    clients,
    cpu_s,
    process,
    to_request,
)

REQUESTS: Mapping[str, tuple[str, dict[str, object]]] = {
    "direct": (CHAT, ASKED),
    "chat": (CHAT, ASKED),
    "responses": ("/v1/responses", {"input": QUESTION, "store": False}),
    "responses, stored": ("/v1/responses", {"input": QUESTION}),
    "messages": ("/v1/messages", {**ASKED, "max_tokens": 1000}),
}


async def measure_target(name: str, url: str, pid: int) -> dict[str, float]:
    """One round."""
    port = int(url.rpartition(":")[2])
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONCURRENCY)]
    with clients(connections):
        request, streaming = (to_request(*REQUESTS[name], stream=stream) for stream in (False, True))
        whole = [Client(*connection, request=request) for connection in connections]
        latencies = await ask_until(whole[0], time.perf_counter() + ROUND_S)
        cpu_before, began = cpu_s(pid), time.perf_counter()
        answered = await asyncio.gather(*(ask_until(client, began + ROUND_S) for client in whole))
        cpu_ms = (cpu_s(pid) - cpu_before) / sum(map(len, answered)) * 1e3
        streamed = [Client(*connection, request=streaming) for connection in connections]
        transits = [t for _ in range(4) for t in await streamed[0].ask_stream()]
        cpu_before = cpu_s(pid)
        await asyncio.gather(*(client.ask_stream() for client in streamed))
        chunk_cpu_us = (cpu_s(pid) - cpu_before) / (CHUNKS * CONCURRENCY) * 1e6
    return {
        "latency_p50_ms": statistics.median(latencies),
        "latency_p95_ms": statistics.quantiles(latencies, n=20)[-1],
        "cpu_ms_per_request": cpu_ms,
        "chunk_transit_p50_ms": statistics.median(transits),
        "chunk_transit_p95_ms": statistics.quantiles(transits, n=20)[-1],
        "cpu_us_per_chunk": chunk_cpu_us,
    }


async def measure(targets: Mapping[str, tuple[str, int]]) -> dict[str, dict[str, float]]:
    """The median over the rounds; of what is added, the median of the differences within a round."""
    rounds = [{name: await measure_target(name, *at) for name, at in targets.items()} for _ in range(ROUNDS + 1)][1:]
    result: dict[str, dict[str, float]] = {}
    for name in targets:
        told = {field: statistics.median(r[name][field] for r in rounds) for field in rounds[0][name]}
        if name != "direct":
            waits = [field for field in told if field.endswith("_ms")]
            told |= {f"added_{f}": statistics.median(r[name][f] - r["direct"][f] for r in rounds) for f in waits}
        result[name] = {field: round(value, 4) for field, value in told.items()}
    return result


def main() -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(process("upstream"))
        server = stack.enter_context(process("server", upstream[0], str(directory / "runs.db")))
        targets = {name: upstream if name == "direct" else server for name in REQUESTS}
        measured = run_in_uvloop(measure(targets))
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "uvloop": uvloop.__version__}
    settings = {"rounds": ROUNDS, "round_s": ROUND_S, "concurrency": CONCURRENCY, "chunks": CHUNKS}
    print(json.dumps({**machine, **settings, "targets": measured}, indent=2))


if __name__ == "__main__":
    main()
