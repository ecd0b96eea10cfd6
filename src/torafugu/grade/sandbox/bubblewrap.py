"""Tier 1: namespaces by bubblewrap 0.8 or later, the seccomp filter, rlimits.

Inside there are /usr (read-only), /box with the given files, /proc, five devices, and nothing else; no network. The
program is process 1 of its namespace: bubblewrap's own would leave an orphan behind and show its environment in
/proc/1/environ. Killing it from outside kills the whole namespace; bubblewrap, which waits for it, reaps it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from .child import choose_user, collect, open_sealed, python_prefix, read_available, start
from .limits import Limits, Ran, SandboxUnavailable
from .seccomp import build_filter

__all__ = ["Bubblewrap"]

_THREADS = 64
_DEVICES = ("null", "zero", "full", "random", "urandom")
_NAMESPACES = (
    # By name: --unshare-all only tries for a user namespace, and then cannot keep nested ones from being made.
    "--unshare-user",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--disable-userns",
    "--cap-drop",
    "ALL",
    "--new-session",
    "--die-with-parent",
    "--as-pid-1",
)


class Bubblewrap:
    """Needs the commands `bwrap` and `prlimit`, and a kernel that lets this user make user namespaces."""

    name = "bubblewrap"

    def run(self, files: Mapping[str, bytes], argv: Sequence[str], stdin: bytes, limits: Limits) -> Ran:
        commands = {command: shutil.which(command) for command in ("bwrap", "prlimit")}
        missing = [command for command, path in commands.items() if path is None]
        if missing:
            raise SandboxUnavailable(f"{missing[0]} is not installed: apt-get install bubblewrap util-linux")
        bwrap, prlimit = (str(path) for path in commands.values())
        with contextlib.ExitStack() as stack:
            box = _open_all(stack, [build_filter(limits), stdin, *files.values()])
            status, report = os.pipe()
            stack.callback(os.close, status)
            with os.fdopen(report, "wb"):
                inside = [*_prlimit(prlimit, limits), "--", *argv]
                outside = [bwrap, *_NAMESPACES, "--json-status-fd", str(report), "--seccomp", str(box[0])]
                tree = list(_tree(dict(zip(files, box[2:], strict=True)), files, limits))
                process = start(
                    [*outside, *tree, "--", *inside], stdin=box[1], keep=[report, box[0], *box[2:]], user=choose_user()
                )
            reports = _Reports(status)
            ran = collect(process, limits, lambda: _kill_namespace(process, reports))
            has_started = reports.has_started()
        if not has_started:
            # Also when time ran out: the program is not to blame for a slow start.
            raise SandboxUnavailable(f"bubblewrap: not started: {ran.stderr.decode(errors='replace').strip()[-300:]}")
        return ran


def _open_all(stack: contextlib.ExitStack, contents: Sequence[bytes]) -> list[int]:
    fds = []
    for content in contents:
        fds.append(open_sealed(content))
        stack.callback(os.close, fds[-1])
    return fds


def _tree(fds: Mapping[str, int], files: Mapping[str, bytes], limits: Limits) -> Iterator[str]:
    """The arguments that make the file system. Every memory file system ends read-only or with a size."""
    yield from ("--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc")
    for top in ("/bin", "/lib", "/lib64"):
        if os.path.islink(top):
            yield from ("--symlink", os.readlink(top), top)
        elif os.path.exists(top):
            yield from ("--ro-bind", top, top)
    if not python_prefix().startswith("/usr"):
        yield from ("--ro-bind", python_prefix(), python_prefix())
    for device in _DEVICES:
        yield from ("--dev-bind", f"/dev/{device}", f"/dev/{device}")
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        yield from ("--symlink", f"/proc/self/fd/{number}", f"/dev/{name}")
    if limits.disk_bytes:
        yield from ("--size", str(limits.disk_bytes + sum(map(len, files.values()))), "--tmpfs", "/box")
    else:
        yield from ("--dir", "/box")
    for name, fd in fds.items():
        yield from ("--perms", "0444", "--file", str(fd), f"/box/{name}")
    yield from ("--remount-ro", "/", "--chdir", "/box")


def _prlimit(prlimit: str, limits: Limits) -> list[str]:
    """Set within the namespace: there RLIMIT_NPROC counts this sandbox alone, not all processes of the user."""
    return [
        prlimit,
        f"--nproc={_THREADS if limits.processes == 1 else limits.processes}",
        f"--as={limits.memory_bytes}",
        f"--fsize={limits.disk_bytes}",
        f"--cpu={int(limits.wall_s) + 2}",
        "--nofile=64",
        "--core=0",
    ]


class _Reports:
    """What bubblewrap says about its child: first its process id; its exit status only if a program was started."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = b""

    def _said(self, key: str) -> int | None:
        while chunk := read_available(self._fd):
            self._text += chunk
        lines = self._text.splitlines(keepends=True)
        found = [json.loads(line).get(key) for line in lines if line.endswith(b"\n")]
        return next((int(value) for value in found if value is not None), None)

    def child_pid(self) -> int | None:
        return self._said("child-pid")

    def has_started(self) -> bool:
        return self._said("exit-code") is not None


def _kill_namespace(process: subprocess.Popen[bytes], reports: _Reports) -> None:
    """Kills process 1 of the namespace, and so all of them; bubblewrap itself only if it has no child yet."""
    pid = reports.child_pid()
    if pid is None:
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if process.poll() is None:  # so the id still belongs to its child
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
