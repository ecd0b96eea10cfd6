"""The seam between the loop and whoever decides: a `Policy`. Here also the simplest one, which calls a named worker."""

from __future__ import annotations

from typing import Protocol

from ..errors import PlanError
from ..types import Answer, Plan, Step
from .run import Run

__all__ = ["SWITCH_MARGIN", "Direct", "Policy"]

SWITCH_MARGIN = 0.03
"""The gain in expected reward for which a large warm cache is given up. Measured: the largest that cost less than half
a point on four heads (docs/decisions/0014)."""


class Policy(Protocol):
    """Decides what is called next."""

    @property
    def id(self) -> str:
        """Name and identity of what decides (`fugu@1f2e3d4c`), as it stands in the record."""
        ...

    async def decide(self, run: Run) -> Plan | Answer:
        """Sees everything that happened so far; plans as much as it likes, or ends the run.

        Raises:
            PlanError: nothing can be planned.
        """
        ...


class Direct:
    """Calls one named worker, and answers with its reply. No failover: the client named the worker."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.id = f"direct:{worker}"

    async def decide(self, run: Run) -> Plan | Answer:
        if run.replies:
            return Answer(step=0)
        if run.request.allowed is not None and self.worker not in run.request.allowed:
            raise PlanError(f"worker {self.worker!r} is not among the workers allowed for this request")
        return Plan(steps=(Step(id=0, worker=self.worker, is_final=True),))
