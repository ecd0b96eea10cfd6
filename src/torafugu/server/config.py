"""What a server may be told: the `[server]` table of a file. Secrets are named here, never written.

[server]
host = "0.0.0.0"
[[server.keys]]
name = "ci"
env = "FUGU_KEY_CI"
workers = ["sonnet", "haiku"]
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["KeySpec", "ServerConfig", "is_loopback"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """One API key: its name in the record, and where its value or its hash is found."""

    name: str
    env: str | None = None
    """Environment variable that holds the key."""
    sha256: str | None = None
    """Hash of the key, 64 hex digits: `printf %s "$KEY" | sha256sum`."""
    workers: tuple[str, ...] | None = None
    """Workers that may be called with it; None allows the whole pool."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"key name {self.name!r}: expected 1-64 letters, digits or ._-, a letter or digit first")
        if (self.env is None) == (self.sha256 is None):
            raise ConfigError(f"key {self.name!r}: expected either `env` or `sha256`")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"key {self.name!r}: sha256 is not 64 lower-case hex digits")
        if self.workers == ():
            raise ConfigError(f"key {self.name!r}: workers = [] allows none; leave it out to allow the whole pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server listens, whom it lets in, and how much it takes on."""

    host: str = "127.0.0.1"
    port: int = 8377
    """0 takes a free port."""
    keys: tuple[KeySpec, ...] = ()
    """May be empty only when bound to loopback; then no key is asked for."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Clients send images and PDFs inline; the wire's own limits are 20-32 MB."""
    max_in_flight: int = 256
    """Completions at one time; one more is refused with 503, there is no queue."""
    heartbeat_s: float = 10.0
    """Silence after which a stream shows that it is alive; until then its status can still become an error."""
    narrate: bool = True
    """A stream tells of a run of several steps, as reasoning, while it goes on."""
    tool_results_s: float = 86_400.0
    """How long a run of `fugu-ultra` waits for the results of the tools that it has called."""
    drain_s: float = 600.0
    """How long runs may go on after the server was asked to stop."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_in_flight", "heartbeat_s", "tool_results_s"):
            if not getattr(self, name) > 0:  # also refuses NaN
                raise ConfigError(f"{name} {getattr(self, name)!r}: expected more than 0")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port {self.port}: expected 0 to 65535")
        if self.drain_s < 0:
            raise ConfigError(f"drain_s {self.drain_s}: expected 0 or more")
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names):
            raise ConfigError(f"two keys share a name: {', '.join(sorted(names))}")
        if not self.keys and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines: declare at least one [[server.keys]], "
                "or bind to 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without port or brackets) means this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
