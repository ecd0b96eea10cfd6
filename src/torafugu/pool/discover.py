"""What could be a pool here, for `fugu init`: provider keys in the environment, model servers on this machine.

Looks, asks nobody for money, and writes nothing itself. Keys are seen as names of variables only. The default models
are a start to edit: two per provider, one strong and one cheap.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..types import Json
from .faults import BAD_JSON, FOREIGN
from .spec import Dialect, Prices, Tags, WorkerSpec

if TYPE_CHECKING:
    import aiohttp

__all__ = ["LOCAL_SERVERS", "PROVIDERS", "Found", "LocalServer", "Provider", "discover", "render_pool_toml"]

PROBE_S = 1.0
"""A server on this machine that needs longer to list its models is not there."""
MOST_MODELS = 6
"""Of one local server; the rest is named in a note."""
LISTING_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider whose key may be in the environment."""

    name: str
    key_env: str
    models: tuple[str, ...]
    base_url: str | None = None
    dialect: Dialect = "openai"
    sees_images: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalServer:
    """A model server that listens on a customary port."""

    name: str
    origin: str
    listing: Literal["/api/tags", "/v1/models"] = "/v1/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Workers to put into a pool file, and what a person should know about them."""

    workers: tuple[WorkerSpec, ...]
    notes: tuple[str, ...]


PROVIDERS: tuple[Provider, ...] = (
    Provider(name="openai", key_env="OPENAI_API_KEY", models=("gpt-6.1-sol", "gpt-6-luna"), sees_images=True),
    Provider(
        name="anthropic",
        key_env="ANTHROPIC_API_KEY",
        dialect="anthropic",
        models=("claude-sonnet-5-5", "claude-haiku-5-5"),
        sees_images=True,
    ),
    Provider(
        name="google",
        key_env="GEMINI_API_KEY",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        models=("gemini-3.8-flash", "gemini-3.5-flash-lite"),
        sees_images=True,
    ),
    Provider(
        name="deepseek",
        key_env="DEEPSEEK_API_KEY",
        base_url="https://api.deepseek.com/v1",
        models=("deepseek-v4-pro", "deepseek-flash"),
    ),
    Provider(
        name="mistral",
        key_env="MISTRAL_API_KEY",
        base_url="https://api.mistral.ai/v1",
        models=("mistral-medium-latest", "mistral-small-latest"),
    ),
    Provider(
        name="x-ai", key_env="XAI_API_KEY", base_url="https://api.x.ai/v1", models=("grok-4.7",), sees_images=True
    ),
    Provider(
        name="groq",
        key_env="GROQ_API_KEY",
        base_url="https://api.groq.com/openai/v1",
        models=("openai/gpt-oss-120b", "qwen/qwen3.8-27b"),
    ),
    Provider(
        name="together",
        key_env="TOGETHER_API_KEY",
        base_url="https://api.together.xyz/v1",
        models=("moonshotai/Kimi-K3.1-Pro", "Qwen/Qwen3.8-Flash"),
    ),
    Provider(
        name="openrouter",
        key_env="OPENROUTER_API_KEY",
        base_url="https://openrouter.ai/api/v1",
        models=(
            "anthropic/claude-sonnet-5.5",
            "openai/gpt-6.1-sol",
            "google/gemini-3.8-flash",
            "deepseek/deepseek-v4.1-flash",
            "qwen/qwen3.8-flash",
        ),
    ),
)
LOCAL_SERVERS: tuple[LocalServer, ...] = (
    LocalServer(name="ollama", origin="http://127.0.0.1:11434", listing="/api/tags"),
    LocalServer(name="vllm", origin="http://127.0.0.1:8000"),
    LocalServer(name="llamacpp", origin="http://127.0.0.1:8080"),
    LocalServer(name="lmstudio", origin="http://127.0.0.1:1234"),
)


async def discover(
    environ: Mapping[str, str], *, session: aiohttp.ClientSession, local_servers: Sequence[LocalServer] = LOCAL_SERVERS
) -> Found:
    """What is here. A server that does not answer, or not with a list of models, is not here."""
    workers: list[WorkerSpec] = []
    notes: list[str] = []
    for provider in PROVIDERS:
        if environ.get(provider.key_env, "").strip():
            workers += _workers_of_provider(provider)
            notes.append(f"{provider.key_env} is set: {', '.join(provider.models)}")
    async with asyncio.TaskGroup() as group:
        listings = [(server, group.create_task(_list_models(server, session))) for server in local_servers]
    for server, listing in listings:
        models = listing.result()
        if models:
            workers += [_local_worker(server, model) for model in models[:MOST_MODELS]]
            left_out = f"; left out: {', '.join(m.name for m in models[MOST_MODELS:])}" if models[MOST_MODELS:] else ""
            notes.append(f"{server.name} answers at {server.origin} with {len(models)} models{left_out}")
    if not workers:
        names = ", ".join(provider.key_env for provider in PROVIDERS)
        notes.append(f"found neither a key ({names}) nor a model server on this machine")
    return Found(workers=_with_unique_ids(workers), notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    context_tokens: int | None


def _workers_of_provider(provider: Provider) -> list[WorkerSpec]:
    return [
        WorkerSpec(
            id=_id_of(model),
            dialect=provider.dialect,
            model=model,
            base_url=provider.base_url,
            key_env=provider.key_env,
            modalities=("text", "image") if provider.sees_images else ("text",),
            tags=Tags(provider=provider.name),
        )
        for model in provider.models
    ]


def _local_worker(server: LocalServer, model: _Model) -> WorkerSpec:
    return WorkerSpec(
        id=_id_of(model.name),
        dialect="openai",
        model=model.name,
        base_url=f"{server.origin}/v1",
        context_tokens=model.context_tokens,
        prices=Prices(input=Decimal(0), output=Decimal(0)),
        tags=Tags(provider=server.name, region="local"),
    )


async def _list_models(server: LocalServer, session: aiohttp.ClientSession) -> list[_Model]:
    try:
        async with (
            asyncio.timeout(PROBE_S),
            session.get(server.origin + server.listing, allow_redirects=False) as response,
        ):
            if response.status != 200:
                return []
            data = b""
            while len(data) < LISTING_BYTES and (chunk := await response.content.readany()):
                data += chunk
            listing = msgspec.json.decode(data)
    except FOREIGN + BAD_JSON:
        return []  # nobody there, or something else that listens on the port
    return _models_in(listing)


def _models_in(listing: Json) -> list[_Model]:
    """From Ollama's `{"models": [{"name"}]}` or the others' `{"data": [{"id"}]}`, without embedding models."""
    rows = (listing.get("data") or listing.get("models")) if isinstance(listing, dict) else None
    models = []
    for row in rows if isinstance(rows, list) else []:
        name = (row.get("id") or row.get("name")) if isinstance(row, dict) else None
        if isinstance(name, str) and name.isprintable() and "embed" not in name.lower():
            context = row.get("max_model_len")  # vLLM
            models.append(_Model(name, context if isinstance(context, int) and context > 0 else None))
    return models


def _id_of(model: str) -> str:
    """The model's name as a worker id: of a path its last part, of what an id may not hold a dash."""
    name = model if not model.startswith(("/", ".")) else model.rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._:/-]+", "-", name.removesuffix(".gguf"))
    return re.sub(r"^[^A-Za-z0-9]+", "", name)[:90] or "model"


def _with_unique_ids(workers: Iterable[WorkerSpec]) -> tuple[WorkerSpec, ...]:
    unique: dict[str, WorkerSpec] = {}
    for worker in workers:
        worker_id, n = worker.id, 1
        while worker_id in unique:
            n += 1
            worker_id = f"{worker.id}-{n}"
        unique[worker_id] = dataclasses.replace(worker, id=worker_id)
    return tuple(unique.values())


def render_pool_toml(found: Found) -> str:
    """A pool file of these workers, with comments, that `read_pool` reads back as the same workers."""
    lines = [
        "# The workers of this installation. Keys stay in the environment: key_env names the variable.",
        "# Prices in USD per million tokens come from the genai-prices list, unless `prices` says otherwise.",
        "# A worker may also have: context_tokens, max_output_tokens, tools = false, limits = { concurrency, queue },",
        "# timeouts = { connect_s, first_token_s, idle_s, total_s }, and extra_body = { ... } to send along.",
        *(f"# {line}" for note in found.notes for line in note.splitlines()),
        "",
        "max_attempts = 4  # at one step, over all workers",
    ]
    for worker in found.workers:
        lines += ["", "[[worker]]", *_worker_lines(worker)]
    return "\n".join(lines) + "\n"


def _worker_lines(worker: WorkerSpec) -> list[str]:
    lines = [f"{name} = {_quoted(getattr(worker, name))}" for name in ("id", "dialect", "model")]
    for name in ("base_url", "key_env", "context_tokens"):
        value = getattr(worker, name)
        if value is not None:
            lines.append(f"{name} = {_quoted(value)}")
    lines.append(f"modalities = {_quoted(list(worker.modalities))}")
    tags = {name: getattr(worker.tags, name) for name in ("provider", "region") if getattr(worker.tags, name)}
    if tags:
        lines.append("tags = { " + ", ".join(f"{name} = {_quoted(value)}" for name, value in tags.items()) + " }")
    if worker.prices is not None:
        lines.append(f"prices = {{ input = {worker.prices.input}, output = {worker.prices.output} }}")
    return lines


def _quoted(value: Any) -> str:
    """A string, integer or list of strings. TOML's basic strings are JSON's, but for DEL, which must be escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
