"""Which sandbox works on this machine, found out once by running a program in it, and `run`, which uses it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from ...errors import GradeError
from ...types import Value
from .limits import Limits, Ran, SandboxUnavailable

__all__ = ["TIERS", "Probe", "Sandbox", "find_sandbox", "make_sandbox", "probe_sandboxes", "run"]

TIERS = ("bubblewrap", "landlock")
"""Best first."""
_PROBE_LIMITS = Limits(wall_s=10.0)


class Sandbox(Protocol):
    """One way to confine programs."""

    @property
    def name(self) -> str: ...

    def run(self, files: Mapping[str, bytes], argv: Sequence[str], stdin: bytes, limits: Limits) -> Ran:
        """Raises:
        SandboxUnavailable: it cannot confine anything here, or not within such limits, or did not start this time.
        """
        ...


class Probe(Value, frozen=True, kw_only=True):
    """Whether one tier works here."""

    tier: str
    problem: str | None
    """Why it does not; None when it does."""


def run(files: Mapping[str, bytes], argv: Sequence[str], stdin: bytes, limits: Limits) -> Ran:
    """Runs a program in the best sandbox of this machine, started in a directory that holds `files` (by relative path).

    `argv` starts with an absolute path, see `find_python`. Blocks; safe from several threads.

    Raises:
        SandboxUnavailable: no tier works here, or the one that does cannot keep such limits or did not start.
        GradeError: a file's name leads out of the directory.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise GradeError(f"file {name!r}: expected a path below the program's directory")
    return find_sandbox().run(files, argv, stdin, limits)


def find_sandbox(probes: Sequence[Probe] | None = None) -> Sandbox:
    """The first tier that works here (or according to `probes`).

    Raises:
        SandboxUnavailable: none does, with the reason for each.
    """
    probes = probe_sandboxes() if probes is None else probes
    for probe in probes:
        if probe.problem is None:
            return make_sandbox(probe.tier)
    reasons = "; ".join(f"{probe.tier}: {probe.problem}" for probe in probes)
    raise SandboxUnavailable(f"no sandbox for programs, so code is not graded here: {reasons}")


@functools.cache
def probe_sandboxes(platform: str = sys.platform) -> tuple[Probe, ...]:
    """Tries every tier, best first; once for each process."""
    if platform != "linux":
        return tuple(Probe(tier=tier, problem=f"only on Linux, this is {platform}") for tier in TIERS)
    return tuple(Probe(tier=tier, problem=_try(make_sandbox(tier))) for tier in TIERS)


def make_sandbox(tier: str) -> Sandbox:
    """The tier of that name, whether it works here or not."""
    # Not at the top: they use what only Linux has.
    from .bubblewrap import Bubblewrap
    from .landlock import Landlock

    tiers: dict[str, Sandbox] = {"bubblewrap": Bubblewrap(), "landlock": Landlock()}
    return tiers[tier]


def _try(sandbox: Sandbox) -> str | None:
    from .child import find_python

    try:
        ran = sandbox.run({"hello.py": b"print(6 * 7)"}, [find_python(), "-I", "-B", "hello.py"], b"", _PROBE_LIMITS)
    except GradeError as error:
        return error.message.removeprefix(f"{sandbox.name}: ")
    if ran.stdout != b"42\n" or ran.status != 0:
        return f"a trial program ended with status {ran.status!r}: {ran.stderr.decode(errors='replace')[-300:]!r}"
    return None
