"""`fugu eval`: a policy on a held-out split of a recorded set, beside everything it has to beat.

Our policy is run, question by question, through the loop that serves it, against workers that replay their recorded
answers. The baselines are read off the same answers. What a baseline learns, it learns from
what the policy learnt from: the splits train and validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..agreement import canonical_answer
from ..envs.recorded import question_to_task
from ..episode import Episode, run_episode
from ..errors import ConfigError
from ..grade.recorded import RecordedGrader
from ..orchestrate.loop import Caller
from ..orchestrate.policy import Policy
from ..types import Json
from .baselines import (
    choose_per_category,
    oracle_score,
    random_score,
    rank_workers,
    ranked_columns,
    ranked_score,
    score_of_choice,
    vote_score,
)
from .diagnostics import Turns
from .matrix import OutcomeMatrix
from .neighbours import KNearest, SupportVectors
from .stats import gap_closed, paired_bootstrap, routing_entropy_bits

__all__ = ["LearnedBaselines", "Measured", "episodes_to_turns", "measure_baselines", "run_policy", "summarise"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Hidden = npt.NDArray[np.float32]
Progress = Callable[[int], None]
"""Told how many more units are done."""

BOOTSTRAP_SAMPLES = 10_000
_LEARNERS: Mapping[str, Callable[[], KNearest | SupportVectors]] = {
    "knn": KNearest,
    "svm_linear": lambda: SupportVectors("linear"),
    "svm_rbf": lambda: SupportVectors("rbf"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Scores per question of one way to answer."""

    name: str
    scores: Floats | None  # (n,); None when it was not measured
    why_not: str | None = None
    calls: float | None = None
    """Mean calls per question."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedBaselines:
    """Hidden states for the baselines that learn from them."""

    train: Hidden  # (n_train, d)
    validation: Hidden
    target: Hidden


async def run_policy(
    target: OutcomeMatrix, policy: Policy, pool: Caller, *, known: frozenset[str], progress: Progress | None = None
) -> list[Episode]:
    """An episode per question. Only workers that were asked the question, and that the policy knows, may be called.

    Where there is none, nothing can be known of the policy: the question is not scored.
    """
    grader = RecordedGrader(target.recorded)
    episodes = []
    for i, question in enumerate(target.questions):
        asked = frozenset(w for j, w in enumerate(target.workers) if np.isfinite(target.first[i, j]))
        task = question_to_task(question)
        if allowed := asked & known:
            episodes.append(await run_episode(task, policy, pool, grader, allowed=allowed))
        else:
            episodes.append(Episode(task=task.id, score=None, fault="grader", code="no_outcome"))
        if progress:
            progress(1)
    return episodes


def episodes_to_turns(target: OutcomeMatrix, episodes: Sequence[Episode]) -> list[Turns]:
    """What the diagnostics need to know of each episode; agreement is read off the recorded answers."""
    column_of = {worker: j for j, worker in enumerate(target.workers)}
    found = []
    for i, episode in enumerate(episodes):
        asked = {worker for worker, role in episode.replied if role != "thinker"}
        answers = {worker: canonical_answer(target.answers[i][column_of[worker]]) for worker in asked}
        final = answers.get(episode.answered_by or "")
        found.append(
            Turns(
                calls=episode.replied,
                answered_by=episode.answered_by,
                accepted=episode.stopped.get("stopped") == "accepted",
                turns=int(episode.stopped.get("turns", len(episode.replied))),
                agreement=sum(answer == final for answer in answers.values()) if final else None,
                asked=len(asked),
                score=episode.score,
                cost_usd=None if episode.cost_usd is None else float(episode.cost_usd),
            )
        )
    return found


def measure_baselines(
    train: OutcomeMatrix, validation: OutcomeMatrix, target: OutcomeMatrix, learned: LearnedBaselines | None
) -> list[Measured]:
    """Random, per-category best, votes, neighbours, support vectors. `learned` None: the last two are not measured.

    Without questions to choose on only random is: all others choose on train and validation.
    """
    found = [Measured(name="random", scores=random_score(target), calls=1)]
    both = OutcomeMatrix.join(train, validation)
    if len(both) == 0:
        names = ("best_per_category", "vote_3", "vote_5", *_LEARNERS)
        return found + [
            Measured(name=name, scores=None, why_not="no training questions to choose on") for name in names
        ]
    per_category = _fill(target, choose_per_category(both, target), both)
    found.append(Measured(name="best_per_category", scores=per_category, calls=1))
    ranking = [int(j) for j in rank_workers(both)]
    for size in (3, 5):
        if len(ranking) < size:
            found.append(Measured(name=f"vote_{size}", scores=None, why_not=f"the pool has {len(ranking)} workers"))
        else:
            found.append(Measured(name=f"vote_{size}", scores=vote_score(target, ranking[:size]), calls=size))
    return found + _measure_learners(train, validation, target, learned)


def _measure_learners(
    train: OutcomeMatrix, validation: OutcomeMatrix, target: OutcomeMatrix, learned: LearnedBaselines | None
) -> list[Measured]:
    found = []
    for name, new_chooser in _LEARNERS.items():
        if learned is None:
            why_not = "no training and validation questions to learn from"
            found.append(Measured(name=name, scores=None, why_not=why_not))
            continue
        chooser = new_chooser()
        try:
            chooser.fit(learned.train, train.mean, learned.validation, validation.mean)
        except ConfigError as error:
            found.append(Measured(name=name, scores=None, why_not=error.message))
            continue
        found.append(Measured(name=name, scores=_fill(target, chooser.choose(learned.target), train), calls=1))
    return found


def summarise(
    target: OutcomeMatrix, episodes: Sequence[Episode], ranking: Ints, baselines: Sequence[Measured], *, seed: int
) -> dict[str, Json]:
    """The numbers of the JSON artefact. Questions whose episode was not scored are left out, and counted.

    `ranking` holds the columns of all workers, the best single one first; the others stand in where it was never asked.
    """
    scored = np.array([e.score is not None for e in episodes])
    if not scored.any():
        raise ConfigError(
            f"not one of {len(episodes)} episodes could be scored: {episodes[0].fault} {episodes[0].code}"
        )
    rows = [i for i, is_scored in enumerate(scored) if is_scored]
    kept = target.rows(rows)
    ours = np.array([episodes[i].score for i in rows], dtype=np.float64)
    single = int(ranking[0])
    theirs = ranked_score(kept, ranking)
    oracle = oracle_score(kept)
    gain = paired_bootstrap(ours, theirs, samples=BOOTSTRAP_SAMPLES, seed=seed)
    chosen = [episodes[i].answered_by for i in rows]  # None: the policy or the budget failed
    shares = {w: chosen.count(w) / len(chosen) for w in kept.workers if w in chosen}
    return {
        "n": len(rows),
        "unscored": {"count": int((~scored).sum()), "why": _count(e for e in episodes if e.score is None)},
        "accuracy": float(ours.mean()),
        "best_single": {
            "worker": kept.workers[single],
            "accuracy": float(theirs.mean()),
            "asked_share": float(np.isfinite(kept.first[:, single]).mean()),
        },
        "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high, "level": 0.95, "method": "paired bootstrap"},
        "gain_by_family": _gain_by_family(kept, ours, theirs, seed=seed),
        "oracle": float(oracle.mean()),
        "gap_closed": gap_closed(float(ours.mean()), float(theirs.mean()), float(oracle.mean())),
        "calls_mean": float(np.mean([episodes[i].calls for i in rows])),
        **_costs(kept, [episodes[i] for i in rows], ranking),
        "gain_over": {m.name: _gain_over(ours, m.scores[rows], seed) for m in baselines if m.scores is not None},
        "questions": _per_question(kept, [episodes[i] for i in rows], theirs, rows, baselines),
        "baselines": {m.name: None if m.scores is None else float(m.scores[rows].mean()) for m in baselines},
        "baseline_calls": {m.name: m.calls for m in baselines},
        "baselines_not_measured": {m.name: m.why_not for m in baselines if m.scores is None},
        "workers": {w: _mean(kept.first[:, j]) for j, w in enumerate(kept.workers)},
        "shares": dict(sorted(shares.items(), key=lambda item: -item[1])),
        "routing_entropy_bits": routing_entropy_bits([chosen.count(w) for w in shares]) if shares else None,
        "by_category": _by_category(kept, ours, theirs, oracle),
    }


def _gain_over(ours: Floats, theirs: Floats, seed: int) -> dict[str, Json]:
    """Of our policy over a baseline, with its paired interval."""
    gain = paired_bootstrap(ours, theirs, samples=BOOTSTRAP_SAMPLES, seed=seed)
    return {"mean": gain.mean, "low": gain.low, "high": gain.high}


def _per_question(
    kept: OutcomeMatrix, episodes: Sequence[Episode], theirs: Floats, rows: Sequence[int], baselines: Sequence[Measured]
) -> list[dict[str, Json]]:
    """What anybody needs to check the numbers, or to compute others."""
    votes = next((m.scores[rows] for m in baselines if m.name == "vote_5" and m.scores is not None), None)
    return [
        {
            "qid": question.qid,
            "family": str(kept.families[i]),
            "score": episodes[i].score,
            "best_single": float(theirs[i]),
            "vote_5": None if votes is None else float(votes[i]),
            "answered_by": episodes[i].answered_by,
            "calls": episodes[i].calls,
        }
        for i, question in sorted(enumerate(kept.questions), key=lambda item: item[1].qid)
    ]


def _gain_by_family(kept: OutcomeMatrix, ours: Floats, theirs: Floats, *, seed: int) -> dict[str, Json]:
    """The interval when whole families are drawn; of one family there is none."""
    families = len(np.unique(kept.families))
    if families < 2:
        return {"low": None, "high": None, "families": families}
    interval = paired_bootstrap(ours, theirs, groups=kept.families, samples=BOOTSTRAP_SAMPLES, seed=seed)
    return {"low": interval.low, "high": interval.high, "families": families}


def _fill(target: OutcomeMatrix, columns: Ints, train: OutcomeMatrix) -> Floats:
    """The score of a choice; where the chosen worker was never asked, the best one in training that was stands in."""
    scores = score_of_choice(target, columns)
    return np.where(np.isfinite(scores), scores, ranked_score(target, rank_workers(train)))


def _costs(kept: OutcomeMatrix, episodes: Sequence[Episode], ranking: Ints) -> dict[str, Json]:
    """`ranking`: of the workers, the best single one first."""
    column_of = {worker: j for j, worker in enumerate(kept.workers)}
    ours, latency = np.full(len(kept), np.nan), np.full(len(kept), np.nan)
    for i, episode in enumerate(episodes):
        if episode.answered_by is None:
            ours[i] = np.nan if episode.cost_usd is None else float(episode.cost_usd)
            continue
        columns = [column_of[worker] for worker, _ in episode.replied]
        ours[i] = kept.cost_usd[i, columns].sum()
        latency[i] = kept.latency_s[i, columns].sum()  # one call after the other
    rows, single = np.arange(len(kept)), ranked_columns(kept, ranking)
    return {
        "cost_usd": _total(ours),
        "cost_known_share": float(np.isfinite(ours).mean()),
        "cost_basis": "input tokens estimated as characters / 4" if kept.is_cost_estimated else "recorded tokens",
        "best_single_cost_usd": _total(kept.cost_usd[rows, single]),
        "latency_s_mean": _mean_or_none(latency),
        "best_single_latency_s_mean": _mean_or_none(kept.latency_s[rows, single]),
    }


def _by_category(kept: OutcomeMatrix, ours: Floats, theirs: Floats, oracle: Floats) -> dict[str, Json]:
    table = {}
    for category in np.unique(kept.categories):
        at = kept.categories == category
        table[str(category)] = {
            "n": int(at.sum()),
            "accuracy": float(ours[at].mean()),
            "best_single": float(theirs[at].mean()),
            "oracle": float(oracle[at].mean()),
        }
    return table


def _count(episodes: Iterable[Episode]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for episode in episodes:
        counts[f"{episode.fault}:{episode.code}"] = counts.get(f"{episode.fault}:{episode.code}", 0) + 1
    return counts


def _total(values: Floats) -> float | None:
    return float(values.sum()) if np.isfinite(values).all() else None


def _mean(values: Floats) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _mean_or_none(values: Floats) -> float | None:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None
