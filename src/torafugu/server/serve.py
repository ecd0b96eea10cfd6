"""Running the server: uvicorn within our own event loop, and an end in good order.

    SIGTERM or Ctrl-C   /readyz says 503, new work is refused with Retry-After, runs in flight go on, at most `drain_s`
    the second one      the runs that are left are broken off: their clients get an error, their record `interrupted`

The listening socket stays open while draining, so that whoever balances load is told so instead of guessing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeAlias, TypeVar

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .config import ServerConfig
from .connection import Admission

__all__ = ["run_in_uvloop", "serve"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
OnReady: TypeAlias = Callable[[str, Callable[[], None]], None]

_BACKLOG = 2048
_MAX_HEAD_BYTES = 64 * 1024

_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they rarely write into one that we just closed
_LAST_FRAMES_S = 5  # what broken-off runs have to send their errors


class _Server(uvicorn.Server):
    """uvicorn, asking us what a signal means. It calls this from the signal handler, in the main thread."""

    on_signal: Callable[[], None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.on_signal()


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with the bound on the size of a request's head that it lacks."""

    _head_bytes = 0
    _is_in_head = True

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()


class _Ending:
    """How far the end has come: asked for once, it waits for the runs in flight; asked for again, it does not."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked = asyncio.Event()
        self.wait_s: float | None = None
        """None: as long as is configured."""
        self.deadline: asyncio.Timeout | None = None
        """Set while it waits."""

    def ask(self) -> None:
        """From the loop's thread, a signal handler, or another thread."""
        self._loop.call_soon_threadsafe(self._ask)

    def _ask(self) -> None:
        if not self.asked.is_set():
            self.asked.set()
        elif self.deadline is not None:
            self.deadline.reschedule(self._loop.time())
        else:
            self.wait_s = 0


async def serve(app: Starlette, config: ServerConfig, *, on_ready: OnReady = lambda url, stop: None) -> None:
    """Serve until asked to stop, by a signal or by calling `stop`, which `on_ready` is given beside the base URL.

    Raises:
        OSError: the address cannot be bound.
        CancelledError: runs in flight were broken off.
    """
    admission: Admission = app.state.admission
    ending = _Ending()
    with _listen(config) as listener:
        server = _Server(_to_uvicorn(app))
        server.on_signal = ending.ask
        gc.freeze()  # what is loaded by now stays; not looking it through again saves a tenth of the CPU per request
        on_ready(_url_of(listener, config), ending.ask)
        try:
            async with asyncio.TaskGroup() as group:
                end = group.create_task(_end(server, ending, admission, config.drain_s), name="end the server")
                await server.serve(sockets=[listener])
                end.cancel()
        except asyncio.CancelledError:
            admission.stop_all()
            await server.shutdown(sockets=[listener])
            raise


async def _end(server: uvicorn.Server, ending: _Ending, admission: Admission, drain_s: float) -> None:
    await ending.asked.wait()
    admission.is_draining = True
    if admission.in_flight:
        logger.info("stopping: %d requests in flight may go on for %.0f s", admission.in_flight, drain_s)
    try:
        async with asyncio.timeout(drain_s if ending.wait_s is None else ending.wait_s) as ending.deadline:
            await admission.wait_idle()
    except TimeoutError:
        logger.warning("breaking off %d requests", admission.in_flight)
        admission.stop_all()
    ending.deadline = None
    server.should_exit = True


def run_in_uvloop(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on the event loop that the server is measured on."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _listen(config: ServerConfig) -> socket.socket:
    """Clients can connect from here on; they are answered once the server runs."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None
    return listener


def _url_of(listener: socket.socket, config: ServerConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listener.getsockname()[1]}"


def _to_uvicorn(app: Starlette) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,  # logging is the root's to set up
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_FRAMES_S,
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Not what is done on purpose: a broken-off stream is one whose body is never completed; the run has logged it."""
    return record.msg != "ASGI callable returned without completing response."
