"""What a worker is, as declared: the tables of a pool file.

    [[worker]]
    id = "sonnet"
    dialect = "anthropic"
    model = "claude-sonnet-4-5"
    key_env = "ANTHROPIC_API_KEY"

A spec says nothing of how a worker is called; the dialects do. A key never stands in a file, only the name of the
environment variable that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..config import read_table, read_toml
from ..errors import ConfigError

__all__ = ["Dialect", "Limits", "PoolSpec", "Prices", "Tags", "Timeouts", "WorkerSpec", "read_pool"]

Dialect: TypeAlias = Literal["openai", "anthropic", "home", "recorded", "scripted"]
NETWORK_DIALECTS = frozenset({"openai", "anthropic"})
DEFAULT_BASE_URL = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com/v1"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """USD per million tokens; overrides what `genai-prices` knows."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    """None: cached tokens cost what input tokens cost."""
    cache_write: Decimal | None = None
    """None: tokens written to the cache cost what input tokens cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. `first_token_s` and `idle_s` bind streamed calls only."""

    connect_s: float = 10.0
    first_token_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How hard a worker may be driven."""

    concurrency: int = 8
    queue: int = 64
    """Calls that may wait for a free place; one more is refused as `overloaded`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What policies and people select workers by."""

    provider: str | None = None
    region: str | None = None
    zero_retention: bool | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker: a model behind an endpoint."""

    id: str
    dialect: Dialect
    model: str
    """The provider's name of the model."""
    base_url: str | None = None
    """Up to and including the version, `https://host/v1`. None: the dialect's own provider."""
    key_env: str | None = None
    """Environment variable that holds the key. None: the endpoint wants none."""
    prices: Prices | None = None
    context_tokens: int | None = None
    """Input and output together; None when unknown."""
    max_output_tokens: int | None = None
    modalities: tuple[str, ...] = ("text",)
    tools: bool = True
    """It can call the client's tools."""
    tags: Tags = field(default_factory=Tags)
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Sent with every call, on top of what we build: provider-specific switches."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ConfigError(
                f"id {self.id!r}: expected 1-100 letters, digits or ._:/-, a letter or digit first"
            )
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url {self.base_url!r}: expected http:// or https://")
        if self.limits.concurrency < 1:
            raise ConfigError(f"limits.concurrency {self.limits.concurrency}: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """The workers of an installation, in the order of the file."""

    worker: tuple[WorkerSpec, ...]
    max_attempts: int = 4
    """Attempts at one step, over all workers."""

    def __post_init__(self) -> None:
        if not self.worker:
            raise ConfigError("the pool is empty: declare at least one [[worker]]")
        seen: set[str] = set()
        for spec in self.worker:
            if spec.id in seen:
                raise ConfigError(f"worker id {spec.id!r} is declared twice")
            seen.add(spec.id)


def read_pool(path: Path) -> PoolSpec:
    """A pool file.

    Raises:
        ConfigError: the file is missing, malformed, or declares no worker.
    """
    table = read_toml(path)
    if not table.get("worker"):
        raise ConfigError(f"{path}: the pool is empty: declare at least one [[worker]], or run `fugu init`")
    return read_table(PoolSpec, table, where=str(path))
