"""Group-relative policy optimisation (GRPO, arXiv 2402.03300): what a group of attempts at one question teaches. Pure.

    A_g = (r_g - mean r) / (max(std r, floor) + eps)                         advantages within the group
    rho_t = exp(log p(token_t) - log p_old(token_t))
    loss = - sum_t min(rho_t A, clip(rho_t, 1 - e_low, 1 + e_high) A) / n    no KL term (Conductor paper, appendix E)

A group whose rewards are all the same teaches nothing, and one that a worker or a grader let down is dropped whole:
what is left of it would be compared with other attempts than were made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["Kept", "LossNorm", "RewardConfig", "filter_groups", "group_advantages", "policy_loss"]

_EPS = 1e-6
"""Rewards closer together than this are the same."""

LossNorm: TypeAlias = Literal["tokens", "sequences"]
"""`tokens`: by all tokens of the batch (TRL's `bnpo`); `sequences`: first by each completion's length (GRPO's own)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """What an episode is worth: nothing for a text that is no workflow, else between `valid` and `correct`, less what
    the calls cost (Conductor paper, section 3: 0, 0.5, 1; its code: 0, 0.5, 1.5)."""

    valid: float = 0.5
    correct: float = 1.0
    per_call: float = 0.0
    """Taken off for every call of a worker."""
    per_usd: float = 0.0
    """Taken off for every US dollar that the workers cost. A price on dear generalists is what keeps a conductor from
    giving them everything."""

    def __post_init__(self) -> None:
        if not 0 <= self.valid <= self.correct or self.correct <= 0:
            raise ConfigError(
                f"valid {self.valid}, correct {self.correct}: expected 0 <= valid <= correct, correct > 0"
            )
        for name in ("per_call", "per_usd"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)}: expected 0 or more")

    def reward(self, *, score: float | None, is_valid: bool, calls: int, cost_usd: float | None) -> float | None:
        """None: not scored, and not to be learnt from. `calls` and `cost_usd` are the workers', without the conductor.

        Raises:
            ConfigError: `per_usd` is set, and what the calls cost is not known.
        """
        if not is_valid:
            return 0.0
        if score is None:
            return None
        if self.per_usd and cost_usd is None:
            raise ConfigError("reward.per_usd: what a worker's call costs is not known: give every worker a price")
        return self.valid + (self.correct - self.valid) * score - self.per_call * calls - self.per_usd * (cost_usd or 0)


def group_advantages(
    rewards_G: Sequence[float], *, by_std: bool = True, std_floor: float = 0.0
) -> npt.NDArray[np.float64]:
    """How much better than its group each attempt was. -> (G,); all zero where all are the same.

    Where nothing but prices differ, the standard deviation is tiny, and dividing by it would make the cheapest worker
    as good as a right answer: `std_floor` is divided by at least.
    """
    rewards = np.asarray(rewards_G, np.float64)
    centred: npt.NDArray[np.float64] = rewards - rewards.mean()
    if np.abs(centred).max(initial=0.0) < _EPS:
        return np.zeros_like(rewards)
    return centred / (max(float(rewards.std()), std_floor) + _EPS) if by_std else centred


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Which groups are learnt from."""

    groups: tuple[int, ...]
    """Their positions."""
    dropped: int
    """Groups with an attempt that nobody could score."""
    flat: int
    """Groups without variance."""


def filter_groups(rewards_PG: Sequence[Sequence[float | None]]) -> Kept:
    """Leaves out the groups that teach nothing, and those that could teach something wrong."""
    fate = [
        "dropped"
        if any(reward is None for reward in rewards_G)
        else "kept"
        if np.ptp([reward for reward in rewards_G if reward is not None]) >= _EPS
        else "flat"
        for rewards_G in rewards_PG
    ]
    counts = Counter(fate)
    return Kept(
        groups=tuple(p for p, what in enumerate(fate) if what == "kept"),
        dropped=counts["dropped"],
        flat=counts["flat"],
    )


def policy_loss(
    logprobs_NT: torch.Tensor,
    old_logprobs_NT: torch.Tensor,
    advantages_NT: torch.Tensor,
    mask_NT: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    norm: LossNorm,
    total: float,
) -> torch.Tensor:
    """The clipped surrogate of N completions, of which this may be a part: `total` is the number of tokens, or of
    completions, of the whole batch, so that parts add up. -> scalar"""
    ratio = (logprobs_NT - old_logprobs_NT).exp()  # (N, T)
    surrogate = (ratio * advantages_NT).minimum(ratio.clamp(1 - clip_low, 1 + clip_high) * advantages_NT) * mask_NT
    per_completion = surrogate.sum(1)
    if norm == "sequences":
        per_completion = per_completion / mask_NT.sum(1).clamp(min=1)
    return -per_completion.sum() / total
