"""Tier 2, where user namespaces are off: Landlock, the seccomp filter, rlimits, in a process that becomes the program.

It can start no process and write no file, so there is nothing to find and kill but itself. It does see that processes
and files outside exist (`stat`, process ids), which tier 1 hides; it cannot open, change or signal them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .child import choose_user, collect, find_python, open_sealed, python_prefix, read_available, start
from .limits import Limits, Ran, SandboxUnavailable
from .seccomp import build_filter

__all__ = ["Landlock"]

_CONFINE = Path(__file__).with_name("confine.py")
_READABLE = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")


class Landlock:
    """Needs Linux 6.2 or later with Landlock switched on (ABI 3: truncation is covered)."""

    name = "landlock"

    def run(self, files: Mapping[str, bytes], argv: Sequence[str], stdin: bytes, limits: Limits) -> Ran:
        if limits.processes != 1 or limits.disk_bytes:
            raise SandboxUnavailable(
                f"landlock cannot bound processes={limits.processes} and disk_bytes={limits.disk_bytes}: expected 1 "
                "and 0; install bubblewrap for programs that need more"
            )
        user = choose_user()
        box = tempfile.mkdtemp(prefix="box-")
        try:
            try:
                _fill(Path(box), files, user)
            except OSError as error:
                raise SandboxUnavailable(f"landlock: files for user {user!r}: {error}") from error
            return _run_in(box, argv, stdin, limits, user)
        finally:
            shutil.rmtree(box)


def _fill(box: Path, files: Mapping[str, bytes], user: int | None) -> None:
    for name, content in files.items():
        (box / name).parent.mkdir(parents=True, exist_ok=True)
        (box / name).write_bytes(content)
    if user is not None:
        for path in (box, *box.rglob("*")):
            os.chown(path, user, user)


def _run_in(box: str, argv: Sequence[str], stdin: bytes, limits: Limits, user: int | None) -> Ran:
    said, report = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, said)
        feed = open_sealed(stdin)
        stack.callback(os.close, feed)
        with os.fdopen(report, "wb"):
            order = {
                "argv": list(argv),
                "box": box,
                "readable": [*_READABLE, python_prefix(), box],
                "filter": base64.b64encode(build_filter(limits)).decode(),
                "memory_bytes": limits.memory_bytes,
                "cpu_s": int(limits.wall_s) + 2,
                "report": report,
                "parent": os.getpid(),
            }
            command = [find_python(), "-I", "-S", "-B", "-c", _CONFINE.read_text(), json.dumps(order)]
            process = start(command, stdin=feed, keep=[report], user=user)
        ran = collect(process, limits, process.kill)
        told = read_available(said)
    if told != b"ready":
        # Also when time ran out: the program is not to blame for a slow start.
        message = (told.removeprefix(b"ready") or ran.stderr).decode(errors="replace").strip()[-300:]
        raise SandboxUnavailable(f"landlock: not started: {message}")
    return ran
