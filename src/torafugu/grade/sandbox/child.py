"""One child process from its start to its death, for both tiers: user, environment, capped output, wall clock.

The interpreter that programs get is chosen here as well: it has to be readable by the user that they run as.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO

from .limits import Limits, Ran, SandboxUnavailable

__all__ = [
    "ENVIRONMENT",
    "choose_user",
    "collect",
    "find_python",
    "open_sealed",
    "python_prefix",
    "read_available",
    "start",
]

ENVIRONMENT = {"HOME": "/box", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": "/box"}
"""All that programs see; of ours nothing, since it holds the providers' keys."""
_USERS = itertools.cycle(range(65520, 65534))
"""Outside every range that Debian or systemd hands out. Root's programs run as one of them: RLIMIT_NPROC does not bind
root, and root may read everything."""
_LAST_WAIT_S = 5.0


def choose_user() -> int | None:
    """The user for the next program when we are root; None: it runs as who we are."""
    return next(_USERS) if os.geteuid() == 0 else None


@functools.cache
def find_python() -> str:
    """An interpreter that programs may read: our own if it lies where everybody may look, else the system's.

    Raises:
        SandboxUnavailable: there is none.
    """
    ours = os.path.realpath(sys.executable)
    systems = (shutil.which("python3", path=path) for path in ("/usr/local/bin", "/usr/bin"))
    for python in (ours, *systems):
        path = os.path.realpath(python) if python else ""
        if path and (_is_readable_by_all(path) if os.geteuid() == 0 else os.access(path, os.R_OK | os.X_OK)):
            return path
    raise SandboxUnavailable(f"no Python that a sandbox's user may run: {ours!r} is not one; install python3 into /usr")


def python_prefix() -> str:
    """The directory of the interpreter's installation (bin, lib)."""
    return os.path.dirname(os.path.dirname(find_python()))


def _is_readable_by_all(path: str) -> bool:
    while path != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
        path = os.path.dirname(path)
    return True


def open_sealed(content: bytes) -> int:
    """A descriptor of an unnamed file in memory that nobody can change or grow; the caller closes it."""
    fd = os.memfd_create("box", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def start(argv: Sequence[str], *, stdin: int, keep: Sequence[int], user: int | None) -> subprocess.Popen[bytes]:
    """A process in its own session; `keep` are the descriptors that it inherits besides stdin, stdout and stderr.

    Raises:
        SandboxUnavailable: the command is missing, or we may not become that user.
    """
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            pass_fds=keep,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailable(f"{argv[0]!r} as user {user!r} did not start: {error}") from error


def collect(process: subprocess.Popen[bytes], limits: Limits, kill: Callable[[], None]) -> Ran:
    """Reads what it writes until it ends or meets a limit; whatever happens it is dead and reaped afterwards."""
    started = time.monotonic()
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = {process.stdout: bytearray(), process.stderr: bytearray()}
    try:
        stopped = _read_until_end(process, outputs, started + limits.wall_s, limits.output_bytes)
    finally:
        if process.poll() is None:
            kill()
        _reap(process)
        for pipe, text in outputs.items():
            _drain(pipe, text, limits.output_bytes)
            pipe.close()
    if stopped is None and any(len(text) > limits.output_bytes for text in outputs.values()):
        stopped = "output"
    stdout, stderr = (bytes(text[: limits.output_bytes]) for text in outputs.values())
    return Ran(
        stdout=stdout,
        stderr=stderr,
        status=None if stopped else _as_a_shell_says_it(process.returncode),
        timed_out=stopped == "time",
        flooded=stopped == "output",
        wall_s=time.monotonic() - started,
    )


def _read_until_end(
    process: subprocess.Popen[bytes], outputs: dict[IO[bytes], bytearray], deadline: float, limit_bytes: int
) -> str | None:
    """What stopped it ("time" or "output"); None when it ended by itself."""
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for pipe in outputs:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ)
            while (left_s := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    if key.fileobj == ended:
                        return None
                    pipe = key.fileobj  # type: ignore[assignment]  # all others are pipes
                    if not (chunk := os.read(pipe.fileno(), 1 << 16)):
                        selector.unregister(pipe)
                    outputs[pipe] += chunk
                    if len(outputs[pipe]) > limit_bytes:
                        return "output"
            return "time"
    finally:
        os.close(ended)


def _drain(pipe: IO[bytes], text: bytearray, limit_bytes: int) -> None:
    """Reads what is still in the pipe of a dead process."""
    while len(text) <= limit_bytes and (chunk := read_available(pipe.fileno())):
        text += chunk


def read_available(fd: int) -> bytes:
    """What can be read at once; empty at the end as well as when there is nothing yet."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_LAST_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _as_a_shell_says_it(status: int) -> int:
    return 128 - status if status < 0 else status
