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
from urllib.parse import urlsplit

import msgspec

from ..config import read_table, read_toml
from ..errors import ConfigError
from ..types import Sampling

__all__ = [
    "DEFAULT_BASE_URL",
    "EFFORTS",
    "HINTS",
    "MODALITIES",
    "NETWORK_DIALECTS",
    "Dialect",
    "Limits",
    "PoolSpec",
    "Prices",
    "Tags",
    "Timeouts",
    "WorkerSpec",
    "fit_sampling",
    "output_limit",
    "read_pool",
]

Dialect: TypeAlias = Literal["openai", "anthropic", "home", "local", "recorded", "scripted"]
NETWORK_DIALECTS = frozenset({"openai", "anthropic"})
DEFAULT_BASE_URL = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com/v1"}
OURS = frozenset({"messages", "model", "stream"})
"""Keys of a request's body that are always ours: `extra_body` may not name them."""
MODALITIES = ("text", "image", "pdf", "audio")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Words for how much a model shall reason, in their order. Providers know some, and each model some of these."""
HINTS = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
"""What of `Sampling` only changes how likely an answer is. The rest has to be kept, or the call refused."""
_ANTHROPIC_EFFORTS = EFFORTS[2:]
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._:/@#()+-]{0,98}[A-Za-z0-9._:/@#()+-])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """USD per million tokens; overrides what `genai-prices` knows."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    """None: cached tokens cost what input tokens cost."""
    cache_write: Decimal | None = None
    """None: tokens written to the cache cost what input tokens cost."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached_input", "cache_write"):
            price = getattr(self, name)
            if price is not None and not (price.is_finite() and price >= 0):
                raise ConfigError(f"{name} {price}: expected USD per million tokens, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. `first_token_s` and `idle_s` bind streamed calls only."""

    connect_s: float = 10.0
    first_token_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "first_token_s", "idle_s", "total_s"):
            if not 0 < getattr(self, name) < float("inf"):  # also refuses NaN
                raise ConfigError(f"{name} {getattr(self, name)}: expected a number of seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How hard a worker may be driven."""

    concurrency: int = 8
    queue: int = 64
    """Calls that may wait for a free place; one more is refused as `overloaded`."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigError(f"concurrency {self.concurrency}: expected at least 1")
        if self.queue < 0:
            raise ConfigError(f"queue {self.queue}: expected 0 or more")


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
    """What it can be sent, of `MODALITIES`. It is not asked where a message holds anything else."""
    tools: bool = True
    """It can call the client's tools."""
    efforts: tuple[str, ...] | None = None
    """The `EFFORTS` that its model knows: what a client asks for becomes the nearest of them. Empty: it is never sent.
    None: sent as it comes where there is a field of that name; in Anthropic's dialect, where models refuse what they
    do not know, not sent."""
    refuses: tuple[str, ...] = ()
    """The `HINTS` that its model does not accept: they are left out."""
    late_system: bool | None = None
    """It takes system messages that come after the user's first. None: if it is OpenAI itself. Where it does not, they
    are marked text of the user's."""
    tags: Tags = field(default_factory=Tags)
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Sent with every call, on top of what we build: provider-specific switches."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ConfigError(
                f"id {self.id!r}: expected 1-100 letters, digits, blanks or ._:/@#()+-, a letter or digit first"
            )
        _check_base_url(self.base_url)
        for name in ("context_tokens", "max_output_tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} {limit}: expected at least 1")
        efforts = _ANTHROPIC_EFFORTS if self.dialect == "anthropic" else EFFORTS
        for name, words, choices in (
            ("modalities", self.modalities, MODALITIES),
            ("efforts", self.efforts or (), efforts),
            ("refuses", self.refuses, HINTS),
        ):
            _check_words(name, words, choices)
        if self.dialect in NETWORK_DIALECTS and (taken := OURS & set(self.extra_body)):
            raise ConfigError(f"extra_body: {min(taken)!r} is set by the pool: remove it")


def _check_words(name: str, words: tuple[str, ...], choices: tuple[str, ...]) -> None:
    for i, word in enumerate(words):
        if word not in choices:
            raise ConfigError(f"{name}[{i}]: {word!r} is not one of {', '.join(map(repr, choices))}")


def _check_base_url(base_url: str | None) -> None:
    if base_url is None:
        return
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"base_url {base_url!r}: expected http:// or https://")
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"base_url {base_url!r}: {error}") from None
    if not host:
        raise ConfigError(f"base_url {base_url!r}: expected a host")
    if parts.username is not None or parts.query or parts.fragment:  # the value may hold a secret: it is not quoted
        raise ConfigError(f"base_url of {host!r}: expected no user, no '?' and no '#': name the key in key_env")


def output_limit(spec: WorkerSpec, asked: int | None) -> int | None:
    """How many tokens a worker may write when a client asked for `asked`; None leaves it to the provider.

    A client's limit above what the model can write means the same as the model's own, but providers refuse it.
    """
    if asked is None or spec.max_output_tokens is None:
        return asked
    return min(asked, spec.max_output_tokens)


def fit_sampling(spec: WorkerSpec, sampling: Sampling) -> Sampling:
    """Without the hints that a worker's model refuses, and with the nearest effort that it knows."""
    left_out = dict.fromkeys(spec.refuses)
    return msgspec.structs.replace(sampling, reasoning_effort=_fit_effort(spec, sampling.reasoning_effort), **left_out)


def _fit_effort(spec: WorkerSpec, asked: str | None) -> str | None:
    if asked is None or spec.efforts is None:
        return None if spec.dialect == "anthropic" else asked
    if asked not in EFFORTS:  # of no known place among them, and only a hint
        return None
    # Not to reason at all is something else than to reason little: it is chosen only where it was asked for.
    known = [effort for effort in spec.efforts if effort != "none"] if asked != "none" else spec.efforts
    wanted = EFFORTS.index(asked)
    return min(known or spec.efforts, key=lambda e: (abs(EFFORTS.index(e) - wanted), EFFORTS.index(e)), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """The workers of an installation, in the order of the file."""

    worker: tuple[WorkerSpec, ...]
    max_attempts: int = 4
    """Attempts at one step, over all workers."""

    def __post_init__(self) -> None:
        if not self.worker:
            raise ConfigError("the pool is empty: declare at least one [[worker]]")
        if self.max_attempts < 1:
            raise ConfigError(f"max_attempts {self.max_attempts}: expected at least 1")
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
