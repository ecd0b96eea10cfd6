"""What a sandboxed program may use, what came of it, and the error when no sandbox can hold it."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import GradeError

__all__ = ["Limits", "Ran", "SandboxUnavailable"]


class SandboxUnavailable(GradeError):
    """Programs cannot be confined here; they are not run, and what needs them is not graded."""

    default_code = "sandbox_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one run. A program that needs less than another one is not given more."""

    wall_s: float = 6.0
    """From the start of the sandbox to its death; starting takes 20-60 ms of it."""
    memory_bytes: int = 1 << 30
    """Address space of each process."""
    output_bytes: int = 1 << 20
    """Of stdout and of stderr, each; more ends the run."""
    processes: int = 1
    """1: threads but no other process, and no signals. More: so many processes and threads (bubblewrap only)."""
    disk_bytes: int = 0
    """0: no file can be written. More: a file system in memory of that size at /box (bubblewrap only)."""

    def __post_init__(self) -> None:
        wrong = [name for name in ("wall_s", "memory_bytes", "output_bytes", "processes") if getattr(self, name) <= 0]
        if wrong or self.disk_bytes < 0:
            raise ValueError(f"{self!r}: {(wrong or ['disk_bytes'])[0]}: expected more than 0 (disk_bytes: 0 or more)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one program left behind."""

    stdout: bytes
    stderr: bytes
    status: int | None
    """Its exit status, 128 + n when signal n ended it; None when it was stopped by a limit of ours."""
    timed_out: bool
    flooded: bool
    """It wrote more than `output_bytes`; what is here is cut off there."""
    wall_s: float
