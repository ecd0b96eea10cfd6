"""What `fugu init` finds, and that the file it writes is one that we read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from torafugu.pool import PoolSpec, read_pool, resolve_price
from torafugu.pool.discover import (
    LOCAL_SERVERS,
    PROVIDERS,
    Found,
    LocalServer,
    discover,
    render_pool_toml,
)
from torafugu.types import Usage
from upstream import Asked, Play, Upstream, Writer, respond

NOWHERE = LocalServer(name="nowhere", origin="http://127.0.0.1:9")


def find(environ: dict[str, str], *plays: tuple[str, Any, Play]) -> Found:
    """`plays`: name, listing and behaviour of local servers."""

    async def run() -> Found:
        from contextlib import AsyncExitStack

        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            servers = [NOWHERE]
            for name, listing, play in plays:
                upstream = await stack.enter_async_context(Upstream(play))
                servers.append(LocalServer(name=name, origin=upstream.url.removesuffix("/v1"), listing=listing))
            return await discover(environ, session=session, local_servers=servers)

    return asyncio.run(run())


def listing(body: dict[str, Any] | bytes, status: int = 200) -> Play:
    async def play(asked: Asked, out: Writer) -> None:
        respond(out, status, body)

    return play


def read_back(found: Found, folder: Path) -> PoolSpec:
    path = folder / "pool.toml"
    path.write_text(render_pool_toml(found), encoding="utf-8")
    return read_pool(path)


def test_every_key_brings_its_provider_s_models(tmp_path: Path) -> None:
    """All providers at once make a file that is read back as the same workers; no key is in it."""
    found = find({provider.key_env: "sk-secret" for provider in PROVIDERS})
    assert {worker.tags.provider for worker in found.workers} == {provider.name for provider in PROVIDERS}
    assert read_back(found, tmp_path).worker == found.workers
    assert "sk-secret" not in render_pool_toml(found)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_every_default_model_has_a_known_price(provider: Any) -> None:
    """A default that the price list does not know is misspelt or retired."""
    for worker in find({provider.key_env: "k"}).workers:
        price = resolve_price(worker)
        assert price is not None, worker.model
        assert price.cost_usd(Usage(input_tokens=1, output_tokens=1)), worker.model
        assert worker.key_env == provider.key_env


def test_an_empty_variable_is_no_key() -> None:
    """Set but blank counts as not set, and the note names what was looked for."""
    found = find({"OPENAI_API_KEY": "  "})
    assert found.workers == ()
    assert "OPENAI_API_KEY" in found.notes[0]


def test_local_servers_are_found_and_free(tmp_path: Path) -> None:
    """Ollama's and vLLM's lists become workers at their own addresses, priced 0, without embedding models."""
    ollama = {"models": [{"name": "llama3.2:3b"}, {"name": "nomic-embed-text:latest"}]}
    vllm = {"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "max_model_len": 40960}]}
    found = find({}, ("ollama", "/api/tags", listing(ollama)), ("vllm", "/v1/models", listing(vllm)))
    first, second = found.workers
    assert (first.id, first.model, first.key_env) == ("llama3.2:3b", "llama3.2:3b", None)
    assert (second.id, second.context_tokens, second.tags.region) == ("Qwen/Qwen3-8B", 40960, "local")
    assert first.base_url is not None
    assert first.base_url.endswith("/v1")
    price = resolve_price(first)
    assert price is not None
    assert price.cost_usd(Usage()) == 0
    assert read_back(found, tmp_path).worker == found.workers


@pytest.mark.parametrize(
    "play",
    [
        listing({"models": []}),
        listing({"data": "none"}),
        listing({"data": [None, {"id": 7}, {"id": "a\nb"}]}),
        listing(b"<html>some other service</html>"),
        listing(b"[" * 50_000),
        listing(b"[1]"),
        listing({"data": [{"id": "m"}]}, status=404),
        listing({"data": [{"id": "m"}]}, status=302),
    ],
)
def test_what_else_listens_on_the_port_is_passed_over(play: Play) -> None:
    """Another service, an empty list or garbage is no model server."""
    assert find({}, ("vllm", "/v1/models", play)).workers == ()


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    """A port that accepts and stays silent holds the start up for a second at most."""

    async def hang(asked: Asked, out: Writer) -> None:
        await asyncio.Event().wait()

    assert find({}, ("vllm", "/v1/models", hang)).workers == ()


def test_many_models_are_cut_and_the_rest_is_named() -> None:
    """Nothing is left out in silence."""
    found = find({}, ("ollama", "/api/tags", listing({"models": [{"name": f"m{i}"} for i in range(9)]})))
    assert len(found.workers) == 6
    assert "left out: m6, m7, m8" in found.notes[0]


def test_any_model_name_makes_a_worker_that_can_be_read_back(tmp_path: Path) -> None:
    """Paths, spaces, quotes and other scripts survive the file; ids are legal and unique."""
    names = ["/models/My Model.Q4.gguf", 'a "quoted" \\ name', "模型", "x", "x", "-dash"]
    found = find({}, ("llamacpp", "/v1/models", listing({"data": [{"id": name} for name in names]})))
    assert [worker.model for worker in found.workers] == names
    assert [worker.id for worker in found.workers] == ["My-Model.Q4", "a-quoted-name", "model", "x", "x-2", "dash"]
    assert read_back(found, tmp_path).worker == found.workers


def test_the_customary_ports_are_on_this_machine_only() -> None:
    """Nothing beyond loopback is asked."""
    assert {server.origin.rpartition(":")[0] for server in LOCAL_SERVERS} == {"http://127.0.0.1"}
    assert [server.origin.rpartition(":")[2] for server in LOCAL_SERVERS] == ["11434", "8000", "8080", "1234"]
