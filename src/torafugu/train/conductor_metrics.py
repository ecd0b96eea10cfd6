"""What is watched while a conductor is trained, and when training is stopped. Pure.

Reward alone lies: it rises when texts become valid, and when everything goes to one worker. So form is kept apart from
what the workflows came to, and each kind of collapse that was met has an alarm (docs/training.md).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..types import Json
from .conductor_rollout import Attempt

__all__ = ["AlarmConfig", "describe_attempts", "find_alarm"]


def describe_attempts(
    attempts: Sequence[Attempt], *, singles: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Json]:
    """Flat, as a line of `metrics.jsonl`; None where there is nothing to be measured.

    `singles`: share of each family's tasks that each worker does alone, by family, for the regret.
    """
    scored = [a for a in attempts if a.episode.score is not None]
    valid = [a for a in scored if a.is_valid]
    rewards = [a.rewards[0] for a in scored if a.rewards and a.rewards[0] is not None]
    called = Counter(worker for a in valid for worker in a.called)
    steps = [len(a.plans[-1].steps) for a in valid]
    costs = [a.cost_usd for a in valid]
    regrets = _to_regrets(scored, singles or {})
    cut = [not text.has_ended for a in attempts for text in a.texts]
    return {
        "episodes": len(attempts),
        "unscored": len(attempts) - len(scored),
        "reward/mean": _mean(rewards),
        "accuracy": _mean([a.episode.score for a in scored]),
        "valid": _mean([a.is_valid for a in scored]),
        "accuracy_if_valid": _mean([a.episode.score for a in valid]),
        "steps/mean": _mean(steps),
        "steps/one": _mean([count == 1 for count in steps]),
        "steps/correlation": _correlation([a.question.task.meta.get("steps") for a in valid], steps),
        "workers/entropy": _entropy(called),
        "workers/largest_share": max(called.values()) / called.total() if called else None,
        "tokens/mean": _mean([len(text.tokens) for a in attempts for text in a.texts]),
        "tokens/cut": _mean(cut),
        "cost_usd/mean": None if None in costs else _mean(costs),
        "regret": _mean(list(regrets.values())),
        **_describe_rounds(valid),
        **{f"share/{worker}": count / called.total() for worker, count in sorted(called.items())},
        **{f"fault/{code}": count for code, count in sorted(_faults(attempts).items())},
        **{f"accuracy/{family}": _mean(scores) for family, scores in sorted(_by_family(scored).items())},
        **{f"regret/{family}": regret for family, regret in sorted(regrets.items())},
    }


def _describe_rounds(valid: Sequence[Attempt]) -> dict[str, Json]:
    """What rounds after the first did; nothing where nobody was asked for more than one text. What was mended is a
    share of what had been wrong, what was kept of what had been right."""
    several = [a for a in valid if any(b is not None for b in a.before) and a.scores[0] is not None]
    if not several:
        return {}
    right = [a for a in several if a.scores[0] == 1]
    wrong = [a for a in several if a.scores[0] != 1]
    return {
        "rounds/first_accuracy": _mean([a.scores[0] for a in several]),
        "rounds/planned_again": _mean([len(a.plans) > 1 for a in several]),
        "rounds/mended": _mean([a.episode.score for a in wrong]),
        "rounds/kept": _mean([a.episode.score for a in right]),
    }


def _faults(attempts: Sequence[Attempt]) -> Counter[str]:
    return Counter(a.episode.code or str(a.episode.fault) for a in attempts if a.episode.fault is not None)


def _mean(values: Sequence[float | bool | None]) -> float | None:
    return float(np.mean([float(v or 0) for v in values])) if values else None


def _entropy(counts: Counter[str]) -> float | None:
    """In nats: 0 is one worker for everything."""
    if not counts:
        return None
    shares = np.array(list(counts.values())) / counts.total()
    return float(-(shares * np.log(shares)).sum() + 0.0)


def _correlation(hardness: Sequence[Json], steps: Sequence[int]) -> float | None:
    """Between the steps that a task has and those that were planned; None where either is always the same."""
    pairs = [(float(h), s) for h, s in zip(hardness, steps, strict=True) if isinstance(h, int)]
    if len({h for h, _ in pairs}) < 2 or len({s for _, s in pairs}) < 2:
        return None
    return float(np.corrcoef([h for h, _ in pairs], [s for _, s in pairs])[0, 1])


def _by_family(scored: Sequence[Attempt]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = defaultdict(list)
    for attempt in scored:
        scores[attempt.question.task.family].append(attempt.episode.score or 0.0)
    return scores


def _to_regrets(scored: Sequence[Attempt], singles: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How far each family's accuracy is below that of its best single worker; 0 where it is above."""
    return {
        family: max(0.0, max(singles[family].values()) - float(np.mean(scores)))
        for family, scores in _by_family(scored).items()
        if singles.get(family)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """When a run is stopped. Each bound has to be passed in so many steps in a row; None: it is not watched."""

    patience: int = 10
    valid_below: float | None = 0.8
    cut_above: float | None = 0.05
    """Share of texts that were cut off at the limit of tokens: they count as no workflow, and teach short ones."""
    largest_share_above: float | None = 0.9
    """Of one worker among all calls."""
    one_step_above: float | None = 0.9
    """Share of workflows of one step. None for tasks that need no more."""
    flat_above: float | None = 0.95
    """Share of groups without variance, while accuracy is below 0.95: nothing is learned any more."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"patience {self.patience}: expected at least 1 step")


def find_alarm(history: Sequence[Mapping[str, Json]], config: AlarmConfig) -> str | None:
    """Why the run should be stopped, from the metrics of its steps, oldest first; None: it should go on."""
    recent = history[-config.patience :]
    if len(recent) < config.patience:
        return None
    for key, bound, is_above, why in (
        ("valid", config.valid_below, False, "texts are no workflows: warm-start longer, or lower the learning rate"),
        ("tokens/cut", config.cut_above, True, "texts are cut off: raise max_output_tokens"),
        (
            "workers/largest_share",
            config.largest_share_above,
            True,
            "one worker gets everything: put a price on its calls (reward.per_usd, reward.per_call)",
        ),
        ("steps/one", config.one_step_above, True, "workflows have one step only: see docs/training.md on collapse"),
        ("groups/flat", config.flat_above, True, "all attempts at a question come to the same: raise the temperature"),
    ):
        values = [row.get(key) for row in recent]
        if bound is None or not all(isinstance(value, (int, float)) for value in values):
            continue
        passed = all(value > bound if is_above else value < bound for value in values)  # type: ignore[operator]
        if key == "groups/flat" and float(np.mean([row["accuracy"] or 0.0 for row in recent])) >= 0.95:
            continue
        if passed:
            return f"{key} {values[-1]:.3g} for {config.patience} steps: {why}"
    return None
