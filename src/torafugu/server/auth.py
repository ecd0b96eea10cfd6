"""Who asks? API keys, and what stands in for them when there are none.

A presented key is hashed before anything else is done with it, and hashes are compared in constant time. Without
configured keys the server is bound to loopback (`ServerConfig` sees to it); then whatever could be a web page is
refused: it reaches loopback through a name that it made resolve there (Host) or by a cross-site request (Origin).
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import ConfigError, RequestError
from .config import ServerConfig, is_loopback

__all__ = ["ANYONE", "Client", "Keyring"]

_MIN_KEY_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Whoever was let in."""

    key_id: str | None
    """Name of the key; None when no key is configured."""
    allowed: frozenset[str] | None
    """Workers that may be called; None allows the whole pool."""

    def may_call(self, worker: str) -> bool:
        return self.allowed is None or worker in self.allowed


ANYONE = Client(key_id=None, allowed=None)


class Keyring:
    """The configured keys, as hashes."""

    def __init__(self, config: ServerConfig, *, env: Mapping[str, str] = os.environ) -> None:
        """
        Raises:
            ConfigError: a variable that should hold a key is unset, or holds something guessable.
        """
        self._host = config.host.lower()
        self._is_local = functools.lru_cache(maxsize=64)(self._check_is_local)
        self._clients: list[tuple[bytes, Client]] = []
        for spec in config.keys:
            digest = bytes.fromhex(spec.sha256) if spec.sha256 else _hash_of(spec.env or "", env, name=spec.name)
            allowed = None if spec.workers is None else frozenset(spec.workers)
            self._clients.append((digest, Client(key_id=spec.name, allowed=allowed)))

    def identify(self, headers: Sequence[tuple[bytes, bytes]]) -> Client:
        """
        Raises:
            RequestError: 401 without a valid key; 403 for what may be a web page when no key is configured.
        """
        if not self._clients:
            self._check_local(headers)
            return ANYONE
        found: Client | None = None
        for presented in _presented_keys(headers):
            digest = hashlib.sha256(presented).digest()
            for known, client in self._clients:  # all of them: the time tells nothing
                if hmac.compare_digest(known, digest):
                    found = found or client
        if found is None:
            raise RequestError(
                "no valid API key: send one as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="invalid_api_key",
                status=401,
            )
        return found

    def _check_local(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or not self._is_local(b"//" + hosts[0]):
            raise RequestError(
                "without API keys this server answers only to loopback names (127.0.0.1, localhost): check the Host",
                code="host_not_allowed",
                status=403,
            )
        if not all(map(self._is_local, origins)):
            raise RequestError(
                "without API keys this server answers no web pages: declare [[server.keys]]",
                code="origin_not_allowed",
                status=403,
            )

    def _check_is_local(self, url: bytes) -> bool:
        try:
            host = urlsplit(url.decode("ascii")).hostname
        except ValueError:
            return False
        return host is not None and (host == self._host or is_loopback(host))


def _hash_of(variable: str, env: Mapping[str, str], *, name: str) -> bytes:
    key = env.get(variable, "")
    if len(key) < _MIN_KEY_LENGTH:
        state = "is not set" if not key else f"holds fewer than {_MIN_KEY_LENGTH} characters"
        raise ConfigError(f"key {name!r}: environment variable {variable!r} {state}: set it to a long random value")
    return hashlib.sha256(key.encode()).digest()


def _presented_keys(headers: Sequence[tuple[bytes, bytes]]) -> Iterable[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()
