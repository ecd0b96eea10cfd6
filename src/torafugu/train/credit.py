"""Who earned what in a run of several rounds (Conductor paper, section 3.2). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError

__all__ = ["DISCOUNT", "assign_credit"]

DISCOUNT = 0.25
"""The paper's."""


def assign_credit(rewards: Sequence[float], *, discount: float = DISCOUNT) -> list[float]:
    """What each round is credited with: its own reward, and a share of what the round after it made of it.

        r_k <- (1 - g^(k+1)) r_k + g^(k+1) r_(k+1)        g = discount, k from 0

    `rewards` are those of the rounds, in order, each graded as if the run had ended with it. The last keeps its own; a
    share is of the next round's reward as it was, not of its credit.

    Raises:
        ConfigError: `discount` is not within 0..1.
    """
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount {discount!r}: expected 0 to 1")
    credits = list(rewards)
    for k in range(len(rewards) - 1):
        share = discount ** (k + 1)
        credits[k] = (1 - share) * rewards[k] + share * rewards[k + 1]
    return credits
