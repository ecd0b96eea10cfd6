"""The tri-role coordinator's trained part: which worker, in which role, and the rules that no training can change.

A turn is one (worker, role). Roles and workers are scored by linear maps of a `View`; `choices` says what is possible.
Rules (TRINITY, arXiv 2512.04695, section 3.2, and its code): a Verifier never comes before an answer, and what it
accepts ends the run. Ours: what a call would only repeat is recalled instead. A worker that has answered gives the same
answer again, and agrees with whoever gave its answer, so choosing it as Worker makes its reply the current one and
choosing it as Verifier accepts it, without a call. `Rules.recall` False restores the paper's loop, where all are calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .situation import RUN_FEATURES, WORKER_FEATURES, Situation, View

__all__ = [
    "ROLES",
    "THINKER",
    "VERIFIER",
    "WORKER",
    "Rules",
    "TriHead",
    "callable_workers",
    "choices",
    "has_calls_left",
    "is_free",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

ROLES = ("worker", "thinker", "verifier")
"""In the order of the head's role rows, which is that of the authors' code: solver, thinker, verifier."""
WORKER, THINKER, VERIFIER = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run of the coordinator may do."""

    max_turns: int = 9
    """Turns, recalled ones included. The paper's loop has 5."""
    max_calls: int = 6
    """Calls of workers. The paper's loop makes one each turn."""
    recall: bool = True
    """Whether what a call would only repeat is taken from the transcript."""
    roles: tuple[str, ...] = ROLES
    """Which roles exist; the others are never chosen. `worker` always exists."""
    transcript: Literal["independent", "shared"] = "independent"
    """`independent`: every Worker answers the request alone, as in recorded answers. `shared`: it reads the thoughts
    of the Workers before it, as in the paper."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.roles) - set(ROLES)):
            raise ConfigError(f"role {unknown[0]!r}: expected some of {', '.join(ROLES)}")
        if "worker" not in self.roles:
            raise ConfigError(f"roles {list(self.roles)}: expected `worker` among them, or nobody answers")
        if self.max_turns < 1 or self.max_calls < 1:
            raise ConfigError(f"max_turns {self.max_turns}, max_calls {self.max_calls}: expected at least 1 of each")


@dataclass(frozen=True, slots=True, eq=False)
class TriHead:
    """Linear maps from a view to logits. (3 G + 3 P) numbers; the rows are those of `ROLES`."""

    role: Floats  # (3, G)
    worker: Floats  # (3, P)

    @staticmethod
    def size() -> int:
        return 3 * (len(RUN_FEATURES) + len(WORKER_FEATURES))

    @staticmethod
    def from_vector(vector: Floats) -> TriHead:
        """(N,): role rows first."""
        split = 3 * len(RUN_FEATURES)
        return TriHead(vector[:split].reshape(3, -1), vector[split:].reshape(3, -1))

    def to_vector(self) -> Floats:
        return np.concatenate([self.role.ravel(), self.worker.ravel()])

    def role_logits(self, view: View) -> Floats:
        """(n, 3). Sums, not a BLAS product: the bits must not depend on n."""
        logits: Floats = (view.run[:, None, :] * self.role[None]).sum(2)
        return logits

    def worker_logits(self, view: View, role: Ints) -> Floats:
        """(n, L) of each run's role (n,)."""
        logits: Floats = (view.workers * self.worker[role][:, None, :]).sum(2)
        return logits


def choices(situation: Situation, view: View, rules: Rules, *, allowed: Bools, calls: Ints) -> Bools:
    """(n, 3, L): what can be done. `allowed` (n, L) workers that may be called; `calls` (n,) made so far.

    A run without any choice is over: its current answer is the answer.
    """
    has_answer = (situation.current >= 0)[:, None]
    agrees, known, worked = view.agrees, situation.known, situation.worked
    callable_ = allowed & has_calls_left(calls, rules)[:, None]
    if rules.recall:
        is_compared = known & ~situation.unreadable[:, None]  # its verdict on any answer is known
        as_worker = np.where(worked, has_answer & ~agrees, callable_)
        as_verifier = has_answer & np.where(agrees, True, callable_ & ~is_compared)
    else:
        as_worker = callable_
        as_verifier = has_answer & callable_
    possible = np.stack([as_worker, callable_ & ("thinker" in rules.roles), as_verifier], axis=1)
    possible[:, VERIFIER] &= "verifier" in rules.roles
    return possible


def has_calls_left(calls: Ints, rules: Rules) -> Bools:
    """(n,)"""
    left: Bools = calls < rules.max_calls
    return left


def callable_workers(known: Bools, allowed: Bools, calls: Ints, rules: Rules) -> Bools:
    """(n, L): workers that could be called and whose answer is not known yet."""
    new: Bools = np.asarray(allowed & ~known & has_calls_left(calls, rules)[:, None])
    return new


def is_free(situation: Situation, view: View, rules: Rules, role: Ints, worker: Ints) -> Bools:
    """(n,): whether the chosen turn is recalled instead of called."""
    if not rules.recall:
        return np.zeros(len(role), bool)
    rows = np.arange(len(role))
    recalled = (role == WORKER) & situation.worked[rows, worker]
    agreed = (role == VERIFIER) & view.agrees[rows, worker]
    return np.asarray(recalled | agreed)
