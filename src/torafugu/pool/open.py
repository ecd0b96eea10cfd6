"""From a declared pool to one that can be called: keys, sessions, prices, backends. The composition root of the pool.

What can be wrong with a pool file is found here, before anything is asked: a missing key, an unknown scripted option.
`aiohttp` is imported only for a pool that has workers behind endpoints. Workers whose kind lives in a layer above this
one (`local`: models in this process) are made by who opens the pool.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

from .. import __version__
from ..errors import ConfigError
from .backend import Backend
from .pool import Member, Pool
from .prices import resolve_price
from .scripted import make_scripted
from .spec import NETWORK_DIALECTS, Dialect, PoolSpec, WorkerSpec

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Maker", "open_pool"]

Maker: TypeAlias = Callable[[WorkerSpec], Backend]
"""Makes a worker's backend, or raises ConfigError or ModelError. The pool closes it."""


@asynccontextmanager
async def open_pool(
    spec: PoolSpec, *, environ: Mapping[str, str] = os.environ, makers: Mapping[Dialect, Maker] | None = None
) -> AsyncIterator[Pool]:
    """The pool, for as long as the context lasts. `makers` make the workers of the dialects that they are given for.

    Raises:
        ConfigError: a worker cannot be made: its key is missing, or its dialect has no workers declared in a file.
        ModelError: of a local worker, whose model cannot be had.
    """
    makers = makers or {}
    async with AsyncExitStack() as stack:
        session: aiohttp.ClientSession | None = None
        if any(worker.dialect in NETWORK_DIALECTS for worker in spec.worker):
            session = await stack.enter_async_context(_session(spec))
        members = []
        for worker in spec.worker:
            maker = makers.get(worker.dialect)
            backend = maker(worker) if maker else _MAKERS[worker.dialect](worker, session, environ)
            stack.push_async_callback(backend.close)
            members.append(Member(spec=worker, backend=backend, price=resolve_price(worker)))
        yield Pool(members, max_attempts=spec.max_attempts)


def _session(spec: PoolSpec) -> aiohttp.ClientSession:
    """One for all workers: no cookies, no proxies or credentials out of the environment, a bound on connections."""
    import aiohttp

    places = sum(worker.limits.concurrency for worker in spec.worker if worker.dialect in NETWORK_DIALECTS)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=places),  # a call that may run never waits for a connection
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": f"torafugu/{__version__}"},
    )


def _make_openai(spec: WorkerSpec, session: aiohttp.ClientSession | None, environ: Mapping[str, str]) -> Backend:
    from .openai import make_openai

    assert session is not None
    return make_openai(spec, session, environ)


def _make_anthropic(spec: WorkerSpec, session: aiohttp.ClientSession | None, environ: Mapping[str, str]) -> Backend:
    from .anthropic import make_anthropic

    assert session is not None
    return make_anthropic(spec, session, environ)


def _make_home(spec: WorkerSpec, session: aiohttp.ClientSession | None, environ: Mapping[str, str]) -> Backend:
    from .home import make_home

    del session, environ
    return make_home(spec)


def _make_local(spec: WorkerSpec, session: aiohttp.ClientSession | None, environ: Mapping[str, str]) -> Backend:
    del session, environ
    raise ConfigError(
        f"worker {spec.id!r}: dialect 'local': whoever opened this pool makes no models in this process: take the "
        "worker out of the pool file, serve its model with vLLM or llama.cpp and declare dialect 'openai', or, in a "
        "program of your own, give open_pool a maker for 'local' (torafugu.local.generator.make_generator)"
    )


def _make_recorded(spec: WorkerSpec, session: aiohttp.ClientSession | None, environ: Mapping[str, str]) -> Backend:
    del session, environ
    raise ConfigError(
        f"worker {spec.id!r}: dialect 'recorded' cannot be declared in a pool file: recorded pools are opened from "
        "their data folder (`fugu eval --data DIR`)"
    )


def _make_scripted(spec: WorkerSpec, session: aiohttp.ClientSession | None, environ: Mapping[str, str]) -> Backend:
    del session, environ
    return make_scripted(spec)


_MAKERS: Mapping[Dialect, Callable[[WorkerSpec, aiohttp.ClientSession | None, Mapping[str, str]], Backend]] = {
    "openai": _make_openai,
    "anthropic": _make_anthropic,
    "home": _make_home,
    "local": _make_local,
    "recorded": _make_recorded,
    "scripted": _make_scripted,
}
