"""What one run may spend. Running out is not an error: the run says `stopped_by` and keeps its best reply so far."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from .run import Run

__all__ = ["Budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of one run; None is no limit. Looked at before each plan is executed, seconds while it is."""

    calls: int | None = 32
    usd: Decimal | None = None
    seconds: float | None = 600.0

    def spent_by(self, run: Run) -> str | None:
        """The name of the limit that the run has reached, or None. Unknown cost never passes a limit in USD."""
        if self.calls is not None and run.calls >= self.calls:
            return "calls"
        if self.usd is not None and run.replies:
            cost = run.cost_usd
            if cost is None or cost >= self.usd:
                return "usd"
        return None
