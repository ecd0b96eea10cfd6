"""A fleet on Ray: each member is an actor in a process of its own, here or on any machine of a Ray cluster.

Ray is imported when the first fleet is made, not before; it is the extra `ray`. Ray restarts nothing by itself: deaths
are counted, and jobs run again, in `fleet`. Jobs and outcomes cross as pickles, so a worker gets a copy of its job and
the caller a copy of the result. `make_worker` crosses once per machine: arrays in it are shared by the members of a
machine and cannot be written to.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import ConfigError, FuguError
from .fleet import Fleet, FleetLimits, MemberDied, Raised, attempt

__all__ = ["RayOptions", "on_ray"]

Job = TypeVar("Job")
R = TypeVar("R")

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Members share the machine's cores: BLAS with a thread for each core in each member would only get in its own way."""
_CONNECT_S = 5.0
_REASON_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """How many members, and where."""

    size: int
    """Members."""
    address: str | None = None
    """`host:port` of a Ray cluster to join, `auto` for one on this machine; None: its own, which ends with it."""
    cpus_per_member: float = 1.0
    """What a member reserves. Where none are free, members wait."""
    namespace: str = "torafugu"
    start_timeout_s: float = 120.0
    """A member that has not made its worker by then counts as dead."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size: {self.size!r}: expected at least 1 member")
        if not (self.cpus_per_member >= 0 and self.start_timeout_s > 0):
            raise ConfigError(f"{self!r}: expected cpus_per_member from 0 and start_timeout_s above 0")
        if self.address not in (None, "auto") and _split_address(self.address) is None:
            raise ConfigError(f"address: {self.address!r}: expected host:port of a Ray cluster, or auto")


def on_ray(
    make_worker: Callable[[], Callable[[Job], R]],
    options: RayOptions,
    limits: FleetLimits = FleetLimits(),  # noqa: B008  # frozen
) -> Fleet[Job, R]:
    """A fleet of Ray actors; Ray starts, or is joined, with the first jobs.

    If this process uses Ray already, the fleet joins that and leaves it running, else `close` leaves it. So of two
    fleets that live at once, the one that began first must be closed last.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray  # here, not at the first jobs: training must not end an hour later for this
    except ImportError as error:
        raise ConfigError(f"a fleet on Ray needs Ray: pip install 'torafugu[ray]' ({error})") from error
    return Fleet(_RayHost(ray, make_worker, options), options.size, limits)


class _RayHost(Generic[Job, R]):
    def __init__(self, ray: Any, make_worker: Callable[[], Callable[[Job], R]], options: RayOptions) -> None:
        self._ray = ray
        self._make_worker = make_worker
        self._options = options
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-fleet")
        self._actor_class: Any = None
        self._make_ref: Any = None
        self._is_ours = False

    async def open(self) -> None:
        # Not in the main thread, where Ray would replace the program's SIGTERM handler.
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    def add(self) -> _RayMember[Job, R]:
        return _RayMember(self._ray, self._actor_class, self._make_ref, self._options.start_timeout_s)

    async def close(self) -> None:
        if self._thread is not None:
            # even if Ray is not ours as yet: it may be starting, for a map that was cancelled
            await asyncio.get_running_loop().run_in_executor(self._thread, self._shut_down)
            self._thread.shutdown(wait=False)
            self._thread = None

    def _open(self) -> None:
        """Idempotent, also after a call that raised or that nobody waited for."""
        if self._actor_class is not None:
            if not self._ray.is_initialized():  # Ray would quietly start another one
                raise FuguError("Ray was shut down while this fleet lived: close the fleet that started it last")
            return
        if not self._ray.is_initialized():
            self._start_ray()
        elif self._options.address is not None and not self._is_ours:
            raise ConfigError(
                f"address {self._options.address!r}: this process is connected to Ray already: expected no address"
            )
        try:
            self._make_ref = self._ray.put(self._make_worker)
        except TypeError as error:
            raise FuguError(f"make_worker cannot be sent to Ray: {_one_line(error)}") from error
        self._actor_class = self._ray.remote(_Actor).options(
            num_cpus=self._options.cpus_per_member,
            namespace=self._options.namespace,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": _ONE_THREAD},
        )

    def _start_ray(self) -> None:
        address = self._options.address
        size = None if address else math.ceil(self._options.size * self._options.cpus_per_member)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if address is not None and (host_and_port := _split_address(address)) is not None:
                # Ray itself would go on trying for four minutes
                socket.create_connection(host_and_port, timeout=_CONNECT_S).close()
            self._ray.init(
                address=address or "local",
                num_cpus=size,
                namespace=self._options.namespace,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError) as error:
            where = f"Ray at {address!r} cannot be joined" if address else "Ray cannot be started here"
            raise ConfigError(f"{where}: {_one_line(error)}") from error
        self._is_ours = True

    def _shut_down(self) -> None:
        if self._is_ours:
            self._is_ours = False
            self._ray.shutdown()  # ends a cluster that ray.init started, and leaves one that it joined


class _RayMember(Generic[Job, R]):
    def __init__(self, ray: Any, actor_class: Any, make_ref: Any, start_timeout_s: float) -> None:
        self._ray = ray
        self._actor = actor_class.remote()
        self._started = self._actor.start.remote(make_ref)
        self._start_timeout_s = start_timeout_s
        self._is_ready = False

    async def wait_ready(self) -> None:
        if self._is_ready:
            return
        try:
            async with asyncio.timeout(self._start_timeout_s):
                made = pickle.loads(await self._started)
        except TimeoutError:
            self.stop()
            raise MemberDied(f"its worker was not made within {self._start_timeout_s:g} s") from None
        except self._ray.exceptions.RayTaskError as error:
            raise FuguError(f"make_worker cannot be read where it was sent: {_one_line(error.cause)}") from error
        except self._ray.exceptions.RayError as error:
            self.stop()
            raise MemberDied(_one_line(error)) from error
        if isinstance(made, Raised):
            made.error.add_note(f"in make_worker, elsewhere:\n{made.traceback}")
            raise made.error
        self._is_ready = True

    async def run(self, job: Job) -> R | Raised:
        sent = attempt(lambda: self._ray.cloudpickle.dumps(job))
        if isinstance(sent, Raised):
            return sent
        try:
            received = await self._actor.run.remote(sent)
        except self._ray.exceptions.RayError as error:
            self.stop()  # it may live on, out of reach
            raise MemberDied(_one_line(error)) from error
        outcome: R | Raised = attempt(lambda: pickle.loads(received))
        return outcome

    def stop(self) -> None:
        if self._ray.is_initialized():
            self._ray.kill(self._actor, no_restart=True)


class _Actor:
    """What runs in a member's process."""

    def __init__(self) -> None:
        self._worker: Callable[[Any], Any] | None = None

    def start(self, make_worker: Callable[[], Callable[[Any], Any]]) -> bytes:
        made = attempt(make_worker)
        if isinstance(made, Raised):
            return _encode(made)
        self._worker = made
        return _encode(None)

    def run(self, sent: bytes) -> bytes:
        worker = self._worker
        assert worker is not None, "run before start"
        return _encode(attempt(lambda: worker(pickle.loads(sent))))


def _encode(outcome: object) -> bytes:
    """Whatever it is, what comes out can be read elsewhere."""
    encoded = attempt(lambda: _dump(outcome))
    if isinstance(encoded, bytes):
        return encoded
    failed = outcome if isinstance(outcome, Raised) else encoded
    what = "the error" if isinstance(outcome, Raised) else "the result cannot be sent"
    error = FuguError(f"{what}, in words only: {type(failed.error).__qualname__}: {failed.error}")
    return _dump(Raised(error, failed.traceback))


def _dump(outcome: object) -> bytes:
    import ray

    encoded: bytes = ray.cloudpickle.dumps(outcome)
    if isinstance(outcome, Raised):
        pickle.loads(encoded)  # exceptions with arguments of their own are often written, but cannot be read
    return encoded


def _split_address(address: str) -> tuple[str, int] | None:
    """None when it is not of the form `host:port`."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 0xFFFF:
        return None
    return host.strip("[]"), int(port)


def _one_line(error: BaseException) -> str:
    """Ray explains its errors over many lines; the first facts are the useful ones."""
    text = " ".join(str(error).split()).partition(" Some common causes include")[0]
    return text if len(text) <= _REASON_CHARS else text[:_REASON_CHARS] + " ..."
