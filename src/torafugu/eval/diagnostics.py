"""What a multi-turn coordinator does, beside how often it is right; and when to be alarmed about it.

`diagnose` turns the outcomes of held-out episodes into one flat dict of JSON values ("group/name" -> number, or a table
of numbers), `alarms` reads such a dict and the generations of an evolution. Both are pure: nothing is run, drawn at
random or written. Unknown is None; episodes that were not scored are left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..types import Json, Value
from .baselines import oracle_score
from .matrix import OutcomeMatrix
from .stats import gap_closed, routing_entropy_bits, wilson

__all__ = ["ROLES", "Alarm", "Thresholds", "Turns", "alarms", "diagnose", "split_evolutions"]

Floats = npt.NDArray[np.float64]
ROLES = ("thinker", "worker", "verifier")
_SUM_TOLERANCE = 1e-3  # probabilities may come as float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What one episode did."""

    calls: tuple[tuple[str, str], ...]
    """(worker id, role) of each real call, in order; a reply that was there already is no call."""
    answered_by: str | None
    """None: the run ended without an answer."""
    accepted: bool
    """A verifier ended it; else the limit of turns or of the budget."""
    turns: int
    """All turns, calls not made anew included."""
    agreement: int | None
    """How many of the asked workers gave the final answer; None when unknown."""
    asked: int
    """Workers that gave an answer."""
    score: float | None
    """0..1; None when it was not scored."""
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When `alarms` speaks, each with its reason."""

    collapse_share: float = 0.95
    """Of calls and answers: with one worker above it, routing can hardly change a score."""
    min_headroom: float = 0.02
    """Oracle less best single worker: where less is to be gained, always asking one worker is right."""
    min_entropy_bits: float = 0.3
    """Of all calls. Two workers at 95 and 5 % have 0.29; a collapsed policy was reported at 0.28."""
    max_no_answer_share: float = 0.01
    """A run without an answer is scored 0, whoever was asked: more than a stray one is a fault of the policy."""
    max_stop_share: float = 0.98
    """Runs that end in the same way: above it, when to stop was not learnt."""
    min_gain: float = 0.0
    """Below it the best single worker alone does better, at one call."""
    max_cost_ratio: float = 5.0
    """Times the best single worker's cost: about what a vote of five costs, which a coordinator is to undercut."""
    sigma_collapse: float = 0.01
    """Last sigma by first. On pure noise our strategy stays above 0.7 in 200 generations, on a sphere above 0.03."""
    sigma_explosion: float = 10.0
    """Last sigma by first. On a sphere it peaks at 4; on a slope, where sigma0 is too small, it is 16 after 60."""
    min_reward_std: float = 1e-9
    """Within a generation: candidates that score alike cannot be ranked."""
    max_flat_share: float = 0.5
    """Of the generations: with most of them flat, evolution is a random walk."""


class Alarm(Value, frozen=True, kw_only=True):
    """Something that looks wrong."""

    code: str
    message: str
    """One sentence: what it means and what to do."""
    value: float | None
    threshold: float | None


_THRESHOLDS = Thresholds()


def diagnose(
    turns: Sequence[Turns],
    matrix: OutcomeMatrix,
    *,
    ranking: Sequence[int] | npt.NDArray[np.int64],
    turn_limit: int | None = None,
    roles: Sequence[str] = ROLES,
    probabilities: npt.ArrayLike | None = None,
) -> dict[str, Json]:
    """Everything that is known of these episodes; `matrix` has a row for each, in the same order.

    `ranking` holds columns as `rank_workers(train)` gives them, the best single worker first; the next stands in where
    it was never asked. `roles` are those that the policy may choose. `probabilities` (n, K) are the policy's for the
    first decision, each row sums to 1. With no scored episode only the counts are there.

    Raises:
        ValueError: the episodes are not those of the matrix, or a call names no worker or role that exists.
    """
    _check(turns, matrix, ranking, roles)
    possible = np.isfinite(oracle_score(matrix))
    rows = [i for i, t in enumerate(turns) if t.score is not None and possible[i]]
    unscored = sum(t.score is None for t in turns)
    found: dict[str, Json] = {
        "n": len(rows),
        "left_out/unscored": unscored,
        "left_out/no_outcome": len(turns) - unscored - len(rows),
    }
    if not rows:
        return found
    kept, target = [turns[i] for i in rows], matrix.rows(rows)
    ours = np.array([t.score for t in kept], dtype=np.float64)
    column = _stand_in(target, ranking)
    return {
        **found,
        **_rewards(ours, target, column, int(ranking[0])),
        **_routing(kept, target.workers, roles),
        **_stopping(kept, ours, turn_limit),
        **_costs(kept, target.cost_usd[np.arange(len(target)), column]),
        **_uncertainty(probabilities, len(turns), rows),
        "accuracy/by_agreement": _by_agreement(kept, ours),
    }


def _check(
    turns: Sequence[Turns], matrix: OutcomeMatrix, ranking: Sequence[int] | npt.NDArray[np.int64], roles: Sequence[str]
) -> None:
    if len(turns) != len(matrix):
        raise ValueError(f"{len(turns)} episodes for {len(matrix)} questions: expected one for each, in the same order")
    if sorted(int(j) for j in ranking) != list(range(len(matrix.workers))):
        raise ValueError(f"ranking {list(ranking)!r}: expected each of the {len(matrix.workers)} columns once")
    known = set(matrix.workers)
    for t in turns:
        for worker, role in t.calls:
            if worker not in known or role not in roles:
                names = ", ".join(matrix.workers)
                raise ValueError(f"call {(worker, role)!r}: expected one of {names} as one of {', '.join(roles)}")
        if t.answered_by is not None and t.answered_by not in known:
            raise ValueError(f"answered_by {t.answered_by!r}: expected one of {', '.join(matrix.workers)}")
        if t.score is not None and not math.isfinite(t.score):
            raise ValueError(f"score {t.score!r}: expected a number, or None when it was not scored")


def _stand_in(target: OutcomeMatrix, ranking: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(n,) the column of the first worker of the ranking that was asked the question."""
    order = np.asarray(ranking, dtype=np.int64)
    return np.asarray(order[np.argmax(np.isfinite(target.first[:, order]), axis=1)], dtype=np.int64)


def _rewards(ours: Floats, target: OutcomeMatrix, column: npt.NDArray[np.int64], single: int) -> dict[str, Json]:
    theirs, oracle = target.first[np.arange(len(target)), column], oracle_score(target)
    gains = ours - theirs
    spread = float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else None

    def by(labels: npt.NDArray[np.str_]) -> dict[str, Json]:
        return {
            str(label): {
                "n": int(at.sum()),
                "regret": float((oracle - ours)[at].mean()),
                "accuracy": float(ours[at].mean()),
                "best_single": float(theirs[at].mean()),
                "oracle": float(oracle[at].mean()),
            }
            for label in np.unique(labels)
            for at in (labels == label,)
        }

    means = float(ours.mean()), float(theirs.mean()), float(oracle.mean())
    return {
        "accuracy/mean": means[0],
        "best_single/worker": target.workers[single],
        "best_single/accuracy": means[1],
        "oracle/accuracy": means[2],
        "gain/mean": float(gains.mean()),
        "gain/standard_error": spread,
        "oracle/gap_closed": gap_closed(*means),
        "regret/mean": float((oracle - ours).mean()),
        "regret/best_single": float((oracle - theirs).mean()),
        "regret/by_family": by(target.families),
        "regret/by_category": by(target.categories),
    }


def _routing(kept: Sequence[Turns], workers: Sequence[str], roles: Sequence[str]) -> dict[str, Json]:
    calls = Counter(worker for t in kept for worker, _ in t.calls)
    first = Counter(t.calls[0][0] for t in kept if t.calls)
    answers = Counter(t.answered_by for t in kept if t.answered_by is not None)
    as_role = Counter(role for t in kept for _, role in t.calls)
    return {
        "entropy/calls_bits": _entropy(calls),
        "entropy/first_calls_bits": _entropy(first),
        "entropy/answers_bits": _entropy(answers),
        "share/calls": _shares(calls, workers),
        "share/answers": _shares(answers, workers),
        "share/roles": _shares(as_role, roles),
        "workers/never_used": [w for w in workers if not calls[w]],
    }


def _entropy(counts: Counter[str]) -> float | None:
    return routing_entropy_bits(list(counts.values())) if counts else None


def _shares(counts: Counter[str], names: Sequence[str]) -> dict[str, float] | None:
    """Of all names, those with 0 included; None when nothing was counted."""
    total = counts.total()
    return {name: counts[name] / total for name in names} if total else None


def _stopping(kept: Sequence[Turns], ours: Floats, turn_limit: int | None) -> dict[str, Json]:
    n = len(kept)
    accepted = np.array([t.accepted for t in kept])
    turns, calls = [t.turns for t in kept], [len(t.calls) for t in kept]
    silent = [t for t in kept if t.answered_by is None]
    return {
        "turns/mean": sum(turns) / n,
        "turns/histogram": _histogram(turns),
        "turns/limit": turn_limit,
        "turns/at_limit_share": None if turn_limit is None else sum(t >= turn_limit for t in turns) / n,
        "calls/mean": sum(calls) / n,
        "calls/histogram": _histogram(calls),
        "calls/one_call_share": calls.count(1) / n,
        "stop/accepted": int(accepted.sum()),
        "stop/limit": int((~accepted).sum()),
        "stop/accepted_share": float(accepted.mean()),
        "stop/accepted_at_once_share": sum(_is_accepted_at_once(t) for t in kept) / n,
        "stop/no_answer_share": len(silent) / n,
        "stop/thinker_only_share": sum(_is_thinker_only(t) for t in silent) / n,
        "accuracy/accepted": _mean(ours[accepted]),
        "accuracy/not_accepted": _mean(ours[~accepted]),
    }


def _is_accepted_at_once(t: Turns) -> bool:
    """The first answer passed the first verification. Turns tell, for calls that were not made anew are not listed."""
    thoughts = sum(role == "thinker" for _, role in t.calls)
    return t.accepted and t.turns <= thoughts + 2


def _is_thinker_only(t: Turns) -> bool:
    return bool(t.calls) and all(role == "thinker" for _, role in t.calls)


def _histogram(values: Iterable[int]) -> dict[str, int]:
    """Value -> how often, in order; keys are text, as JSON has them."""
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _by_agreement(kept: Sequence[Turns], ours: Floats) -> list[dict[str, Json]]:
    """A row for each (asked, agreement); an interval only where every score is 0 or 1."""
    groups: dict[tuple[int, int], list[float]] = {}
    for t, score in zip(kept, ours, strict=True):
        if t.agreement is not None:
            groups.setdefault((t.asked, t.agreement), []).append(float(score))
    table = []
    for (asked, agreement), scores in sorted(groups.items()):
        is_proportion = all(score in (0, 1) for score in scores)
        interval = wilson(int(sum(scores)), len(scores)) if is_proportion else None
        table.append(
            {
                "asked": asked,
                "agreement": agreement,
                "n": len(scores),
                "accuracy": sum(scores) / len(scores),
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
            }
        )
    return table


def _costs(kept: Sequence[Turns], single: Floats) -> dict[str, Json]:
    """`single` (n,): what the best single worker cost, NaN when unknown. The ratio is over questions that have both."""
    ours = np.array([math.nan if t.cost_usd is None else t.cost_usd for t in kept])
    known = np.isfinite(ours)
    both = known & np.isfinite(single)
    total = float(ours.sum()) if known.all() else None
    base = float(single[both].sum())
    return {
        "cost/usd_total": total,
        "cost/usd_known": float(ours[known].sum()),
        "cost/unknown": int((~known).sum()),
        "cost/usd_per_question": None if total is None else total / len(kept),
        "cost/best_single_usd_per_question": _mean(single) if np.isfinite(single).all() else None,
        "cost/ratio_to_best_single": float(ours[both].sum()) / base if base > 0 else None,
    }


def _uncertainty(probabilities: npt.ArrayLike | None, n: int, rows: list[int]) -> dict[str, Json]:
    """Entropy of a decision given its question, and what the question tells about the decision (mutual information).

    A policy that reads nothing has information 0 however high its entropy over all calls.
    """
    if probabilities is None:
        return {"entropy/per_question_bits": None, "entropy/information_bits": None}
    p = np.asarray(probabilities, dtype=np.float64)  # (n, K)
    if p.ndim != 2 or len(p) != n or not (p >= 0).all() or not (abs(p.sum(1) - 1) < _SUM_TOLERANCE).all():
        raise ValueError(f"probabilities of shape {p.shape}: expected {n} rows that each sum to 1, none negative")
    kept = p[rows]
    each = float(np.mean([routing_entropy_bits(row) for row in kept]))
    information = max(0.0, routing_entropy_bits(kept.mean(0)) - each)  # rounding may leave -1e-17
    return {"entropy/per_question_bits": each, "entropy/information_bits": information}


def alarms(
    diagnostics: Mapping[str, Json],
    *,
    thresholds: Thresholds = _THRESHOLDS,
    generations: Sequence[Mapping[str, Json]] = (),
) -> list[Alarm]:
    """What looks wrong in the dict of `diagnose` and in an evolution's rows; {} and () are allowed.

    What is unknown raises no alarm. Rows have the keys generation, reward/mean, reward/max, reward/std and sigma;
    several evolutions may follow each other.
    """
    found = [
        *_non_finite(diagnostics, generations),
        *_nothing_scored(diagnostics),
        *_routing_alarms(diagnostics, thresholds),
        *_role_alarms(diagnostics, thresholds),
        *_stopping_alarms(diagnostics, thresholds),
        *_worth_alarms(diagnostics, thresholds),
    ]
    for rows in split_evolutions(generations):
        found += _evolution_alarms(rows, thresholds)
    return list({(alarm.code, alarm.message): alarm for alarm in found}.values())


def split_evolutions(generations: Iterable[Mapping[str, Json]]) -> list[list[Mapping[str, Json]]]:
    """One list for each evolution: another begins where the generation does not rise."""
    runs: list[list[Mapping[str, Json]]] = []
    last: float | None = None
    for row in generations:
        now = _number(row, "generation")
        if not runs or (now is not None and last is not None and now <= last):
            runs.append([])
        runs[-1].append(row)
        last = now if now is not None else last
    return runs


def _routing_alarms(d: Mapping[str, Json], at: Thresholds) -> Iterator[Alarm]:
    headroom = _find_headroom(d, at)
    if headroom is None:  # one worker is all that is needed
        return
    calls, answers = d.get("share/calls"), d.get("share/answers")
    if calls and answers:
        worker = max(calls, key=lambda name: calls[name])
        share = min(calls[worker], answers.get(worker, 0.0))
        if share >= at.collapse_share:
            yield _alarm(
                "worker_collapse",
                share,
                at.collapse_share,
                f"{worker!r} takes at least {share:.0%} of calls and of answers although choosing per question "
                f"could gain up to {headroom:.1%}: the policy has become one worker, so look whether any candidate "
                "gained on held-out questions, and else serve that worker itself.",
            )
    bits = _number(d, "entropy/calls_bits")
    if bits is not None and bits < at.min_entropy_bits:
        yield _alarm(
            "low_entropy",
            bits,
            at.min_entropy_bits,
            f"Routing entropy is {bits:.2f} bits, so nearly all calls go to the same worker: look what others gained "
            "on held-out questions; if it was evolved, lower the step size or start from soft targets.",
        )


def _find_headroom(d: Mapping[str, Json], at: Thresholds) -> float | None:
    """Oracle less best single worker; None where it is unknown or not worth an alarm."""
    oracle, single = _number(d, "oracle/accuracy"), _number(d, "best_single/accuracy")
    return None if oracle is None or single is None or oracle - single < at.min_headroom else oracle - single


_ROLE_GONE = {
    "thinker": "no run plans first",
    "worker": "nobody is asked for an answer",
    "verifier": "no verdict is ever asked for anew",
}


def _role_alarms(d: Mapping[str, Json], at: Thresholds) -> Iterator[Alarm]:
    shares = d.get("share/roles") or {}
    if len(shares) < 2 or _find_headroom(d, at) is None:  # one role is all there is, or all that is needed
        return
    for role, share in shares.items():
        if share == 1:
            yield _alarm(
                "role_collapse",
                share,
                1.0,
                f"Every call is made as {role!r}: roles are not used, so check the fitness of the other roles, "
                "or train without them.",
            )
        elif share == 0 and 1 not in shares.values():  # else one collapse would be told three times
            yield _alarm(
                "role_unused",
                share,
                0.0,
                f"No call is made as {role!r}, {_ROLE_GONE.get(role, 'it is never chosen')}: if it was to be "
                "learnt, explore more at the start; if it is not wanted, train without it.",
            )


def _stopping_alarms(d: Mapping[str, Json], at: Thresholds) -> Iterator[Alarm]:
    silent = _number(d, "stop/no_answer_share")
    if silent is not None and silent > at.max_no_answer_share:
        thinking = _number(d, "stop/thinker_only_share") or 0.0
        yield _alarm(
            "no_answer",
            silent,
            at.max_no_answer_share,
            f"{silent:.1%} of the runs end without an answer ({thinking:.1%} called thinkers only) and score "
            "0: raise the limit of turns, or make a run without an answer cost more in training.",
        )
    accepted, at_once = _number(d, "stop/accepted_share"), _number(d, "stop/accepted_at_once_share")
    if accepted == 0:
        yield _alarm(
            "verifier_never_accepts",
            accepted,
            0.0,
            "No run is ended by a verifier, so every one runs into its limit and pays for it: check how "
            "verdicts are read, and that stopping early is rewarded.",
        )
    if at_once is not None and at_once >= at.max_stop_share:
        if (d.get("share/roles") or {}).get("verifier"):
            yield _alarm(
                "verifier_always_accepts",
                at_once,
                at.max_stop_share,
                f"{at_once:.1%} of the runs accept the first answer at once, so verification decides nothing: "
                "check that the verifier can reject, or save its calls and serve one worker per question.",
            )
        elif _find_headroom(d, at) is not None:
            yield _alarm(
                "never_asks_twice",
                at_once,
                at.max_stop_share,
                f"{at_once:.1%} of the runs end with the first answer, though other workers know more: look what "
                "starts with several calls gained, and whether the limit of calls or their price keeps them out.",
            )
    full = _number(d, "turns/at_limit_share")
    if full is not None and full >= at.max_stop_share:
        yield _alarm(
            "always_all_turns",
            full,
            at.max_stop_share,
            f"{full:.1%} of the runs use all turns, so when to stop was not learnt: put a price on calls, or "
            "compare with a fixed panel of as many calls.",
        )


def _worth_alarms(d: Mapping[str, Json], at: Thresholds) -> Iterator[Alarm]:
    gain = _number(d, "gain/mean")
    if gain is not None and gain < at.min_gain:
        error = _number(d, "gain/standard_error")
        sure = "" if error is None else f" (standard error {error:.2%})"
        yield _alarm(
            "worse_than_best_single",
            gain,
            at.min_gain,
            f"Regret is above that of the best single worker {d.get('best_single/worker')!r}, by "
            f"{-gain:.2%}{sure}: do not serve this policy; ask that worker, or train on more outcomes.",
        )
    ratio = _number(d, "cost/ratio_to_best_single")
    if ratio is not None and ratio > at.max_cost_ratio:
        yield _alarm(
            "cost",
            ratio,
            at.max_cost_ratio,
            f"A question costs {ratio:.1f} times what the best single worker takes: weigh cost in the fitness, "
            "lower the limit of turns, or leave dear workers out.",
        )


def _evolution_alarms(rows: Sequence[Mapping[str, Json]], at: Thresholds) -> Iterator[Alarm]:
    sigmas = [s for s in (_number(row, "sigma") for row in rows) if s is not None]
    if len(sigmas) > 1 and sigmas[0] > 0:
        ratio = sigmas[-1] / sigmas[0]
        if ratio < at.sigma_collapse:
            yield _alarm(
                "sigma_collapse",
                ratio,
                at.sigma_collapse,
                f"The step size fell to {ratio:.2g} of its first value, so evolution no longer searches: look "
                "whether the reward had settled; if not, begin with a larger sigma0 or more questions.",
            )
        elif ratio > at.sigma_explosion:
            yield _alarm(
                "sigma_explosion",
                ratio,
                at.sigma_explosion,
                f"The step size grew {ratio:.3g} times, so the reward hardly depends on the weights' scale or "
                "sigma0 was far too small: begin with a larger sigma0, or fix the weights' norm.",
            )
    spreads = [s for s in (_number(row, "reward/std") for row in rows) if s is not None]
    flat = sum(s <= at.min_reward_std for s in spreads) / len(spreads) if spreads else 0.0
    if flat > at.max_flat_share:
        yield _alarm(
            "flat_fitness",
            flat,
            at.max_flat_share,
            f"In {flat:.0%} of the generations all candidates scored alike, so selection was blind: use a "
            "larger sigma0, more questions per generation, or questions that the workers answer differently.",
        )


def _nothing_scored(d: Mapping[str, Json]) -> Iterator[Alarm]:
    if d.get("n") == 0:
        yield _alarm(
            "nothing_scored",
            0.0,
            1.0,
            f"Not one episode could be scored ({d.get('left_out/unscored')} had no score): nothing is known of "
            "this policy, so check the graders and that the workers were asked these questions.",
        )


def _non_finite(d: Mapping[str, Json], generations: Sequence[Mapping[str, Json]]) -> Iterator[Alarm]:
    names = {key for row in (d, *generations) for key, value in row.items() if _has_non_finite(value)}
    if names:
        yield _alarm(
            "non_finite",
            float(len(names)),
            0.0,
            f"NaN or infinity in {', '.join(map(repr, sorted(names)))}: nothing computed from them can be "
            "trusted, so look for a division by zero, an overflow or an unscored episode counted as one.",
        )


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_non_finite, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_non_finite, value))
    return isinstance(value, float) and not math.isfinite(value)


def _alarm(code: str, value: float, threshold: float, message: str) -> Alarm:
    return Alarm(code=code, message=message, value=value, threshold=threshold)


def _number(row: Mapping[str, Json], key: str) -> float | None:
    """None when it is missing, unknown, not finite, or no number: alarms are not raised on such."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
