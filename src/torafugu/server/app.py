"""The server's composition: which routes there are, and that every one of them asks for a key unless listed as open.

Who asks is established per route, on the route that was matched, never by looking at a path again: what is routed is
what is guarded. Errors of every endpoint become responses here, in OpenAI's shape.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..errors import ConfigError, FuguError
from ..orchestrate import Budget, Caller, Policy
from ..pool.prices import Price, resolve_price
from ..pool.spec import WorkerSpec
from .auth import ANYONE, Client, Keyring
from .completions import Completions
from .config import ServerConfig
from .connection import Admission, ClientLeft, read_body, send_error, send_json
from .dialect import Dialect
from .dialects import ChatDialect, MessagesDialect, ResponsesDialect
from .errors import HttpError, create_error, error_to_http
from .intake import Asked, Intake, Runner, log_fault
from .messages import TOKEN_COUNT_HEADERS, count_tokens
from .models import Models
from .route import Router
from .runs import Runs, RunStore
from .sessions import Sessions, SessionsConfig
from .stored import StoredResponses
from .waiting import WaitingRuns

__all__ = ["OPEN_PATHS", "Workers", "create_app"]

logger = logging.getLogger(__name__)

Endpoint: TypeAlias = Callable[[Scope, Receive, Send, Client], Awaitable[None]]
Answering: TypeAlias = Callable[[Asked, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Routes that answer without a key. They tell nothing but whether this server lives."""

_JSON = [(b"content-type", b"application/json")]
_THERE_IS = "this server has /v1/chat/completions, /v1/responses, /v1/messages, /v1/models, /v1/route and /v1/runs"


class Workers(Caller, Protocol):
    """What the server needs of a pool: to call workers, and to name them."""

    @property
    def specs(self) -> Mapping[str, WorkerSpec]:
        """The workers as declared, by id, in the order of the file."""
        ...


def create_app(
    *,
    policies: Mapping[str, Policy],
    pool: Workers,
    store: RunStore,
    config: ServerConfig,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    sessions: SessionsConfig = SessionsConfig(),  # noqa: B008  # frozen
) -> Starlette:
    """The server over an open pool and an open store, which stay the caller's to close.

    `policies` are named as clients ask for them; `budget` is what each run may spend; `sessions` says how long a
    conversation keeps its worker.

    Raises:
        ConfigError: a key cannot be read or names an unknown worker; a policy and a worker share a name.
    """
    _check_keys(config, pool)
    keyring = Keyring(config)
    models = Models(policies, pool.specs)
    admission = Admission(config.max_in_flight)
    runs = Runs(store)

    async def list_models(scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        await send_json(send, msgspec.json.encode(models.list_models(client)), headers=_JSON)

    async def describe_model(scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        body = msgspec.json.encode(models.describe_model(scope["path_params"]["id"], client))
        await send_json(send, body, headers=_JSON)

    async def tell_alive(scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        await send_json(send, b'{"status":"ok"}', headers=_JSON)

    async def tell_ready(scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        reason = "draining" if admission.is_draining else None if store.healthy else "the store takes no records"
        if reason is None:
            await send_json(send, b'{"status":"ok"}', headers=_JSON)
        else:
            await send_error(send, create_error(503, "not_ready", f"not ready: {reason}", retry_after_s=5.0), [])

    price_of = _cache_prices(pool.specs)
    conversations = Sessions(config=sessions)
    runner = Runner(pool=pool, recorder=store.recorder, admission=admission, budget=budget, sessions=conversations)
    completions = Completions(runner, config=config)
    router = Router(runner, specs=pool.specs, price_of=price_of, store=store)

    chat, responses, messages = ChatDialect(), ResponsesDialect(stored := StoredResponses(store)), MessagesDialect()
    waiting = WaitingRuns(store, wait_s=config.tool_results_s)

    def take_in(dialect: Dialect, answer: Answering) -> Endpoint:
        return Intake(
            answer,
            dialect=dialect,
            waiting=waiting,
            sessions=conversations,
            specs=pool.specs,
            price_of=price_of,
            models=models,
            admission=admission,
            config=config,
        )

    async def estimate_tokens(scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        del client
        body = await read_body(scope["headers"], receive, max_bytes=config.max_body_bytes)
        await send_json(send, count_tokens(body), headers=[*_JSON, *TOKEN_COUNT_HEADERS])

    endpoints: list[tuple[str, str, Endpoint]] = [
        ("POST", "/v1/chat/completions", take_in(chat, completions.answer)),
        ("POST", "/v1/responses", take_in(responses, completions.answer)),
        ("GET", "/v1/responses/{id}", stored.get),
        ("DELETE", "/v1/responses/{id}", stored.delete),
        ("GET", "/v1/responses/{id}/input_items", stored.list_input),
        ("POST", "/v1/messages", take_in(messages, completions.answer)),
        ("POST", "/v1/messages/count_tokens", estimate_tokens),
        ("POST", "/v1/route", take_in(chat, router.answer)),
        ("GET", "/v1/models", list_models),
        ("GET", "/v1/models/{id:path}", describe_model),
        ("GET", "/v1/runs", runs.list_runs),
        ("GET", "/v1/runs/{id}", runs.get_run),
        ("GET", "/healthz", tell_alive),
        ("GET", "/readyz", tell_ready),
    ]
    app = Starlette(
        routes=[
            Route(
                path,
                _Guarded(
                    endpoint,
                    None if path in OPEN_PATHS else keyring,
                    dialect=messages if path.startswith("/v1/messages") else chat,
                ),
                methods=[method],
            )
            for method, path, endpoint in endpoints
        ],
        exception_handlers={HTTPException: _answer_unrouted},
    )
    app.router.redirect_slashes = False  # a redirect would be built from the client's own Host header
    app.state.admission = admission
    return app


class _Guarded:
    """An endpoint behind the key check, its errors turned into responses. A class, so that it is routed as ASGI."""

    def __init__(self, endpoint: Endpoint, keyring: Keyring | None, *, dialect: Dialect) -> None:
        self._endpoint = endpoint
        self._keyring = keyring
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            client = ANYONE if self._keyring is None else self._keyring.identify(scope["headers"])
            await self._endpoint(scope, receive, send, client)
        except ClientLeft:
            return
        except FuguError as error:
            if error.fault == "us":
                logger.warning("refused: %s: %s", error.code, error.message)
            await self._send(send, error_to_http(error), _www_authenticate(error))
        except Exception as error:  # noqa: BLE001  # the boundary: the client gets an answer, the log a trace
            log_fault(error)
            await self._send(send, error_to_http(FuguError("")), [])

    async def _send(self, send: Send, problem: HttpError, headers: list[tuple[bytes, bytes]]) -> None:
        await send_error(send, problem, headers, body=self._dialect.error_body(problem, run_id=None))


def _www_authenticate(error: FuguError) -> list[tuple[bytes, bytes]]:
    return [(b"www-authenticate", b"Bearer")] if error.code == "invalid_api_key" else []


async def _answer_unrouted(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        problem = create_error(405, "method_not_allowed", f"{request.method} is not possible on {path}")
    else:
        problem = create_error(error.status_code, "not_found", f"there is nothing at {path}: {_THERE_IS}")
    return _to_response(problem, dict(error.headers or {}))


def _to_response(problem: HttpError, headers: dict[str, str]) -> Response:
    return Response(problem.body, problem.status, headers, media_type="application/json")


def _cache_prices(specs: Mapping[str, WorkerSpec]) -> Callable[[str], Price | None]:
    """Prices as the pool resolves them, each when it is first asked for."""
    return functools.cache(lambda worker: resolve_price(specs[worker]))


def _check_keys(config: ServerConfig, pool: Workers) -> None:
    for key in config.keys:
        if unknown := set(key.workers or ()) - pool.ids:
            raise ConfigError(f"key {key.name!r} allows {sorted(unknown)}: the pool has {', '.join(sorted(pool.ids))}")
