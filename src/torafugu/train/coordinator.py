"""Trains the head that `orchestrate/coordinator.py` serves: recorded outcomes in, a folder with weights and card out.

    encode -> judge readings, thresholds and numbers of calls by cross-fitted reward
    -> let the trainers improve the winner, each judged the same way
    -> fit on train, play validation through the serving loop -> fit on train and validation

Cross-fitting holds out questions, and then whole families. The test split and every other split are never looked at.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from .. import __version__
from ..errors import ConfigError, FuguError
from ..eval.baselines import rank_workers, ranked_score, vote_score
from ..eval.diagnostics import alarms, diagnose
from ..eval.evaluate import episodes_to_turns, run_policy
from ..eval.matrix import OutcomeMatrix, best_single, build_matrix
from ..eval.provenance import describe_data, find_commit
from ..eval.report import Reporter
from ..eval.states import BulkEncoder, KnownStates, encode_questions
from ..eval.training_report import write_training_report
from ..orchestrate.artefact import Card, WorkerIdentity
from ..orchestrate.coordinator import Coordinator, CoordinatorHead
from ..orchestrate.loop import Caller
from ..orchestrate.tri_head import Rules, TriHead
from ..pool.recorded import RecordedSet
from ..types import Json
from .features import FeatureConfig
from .outcomes import answered, describe_best_single, split_outcomes, write_run
from .rollout import Played, play
from .selection import family_error, standard_error
from .tri_trainers import RandomSearch, Reinforce, SepCMASearch, Start, TriProblem, TriTrainer, net_reward
from .worlds import (
    Fitted,
    QuestionMap,
    fit_reading,
    fold_by_family,
    fold_by_question,
    mask_workers,
    matrix_to_world,
    mix_worlds,
    relative_cost,
)

__all__ = ["CoordinatorConfig", "TrainedCoordinator", "train_coordinator"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Hidden = npt.NDArray[np.float32]

_LANDMARKS = FeatureConfig(kind="landmarks", components=64, landmarks=256, sharpness=1.0)
_WIDE = FeatureConfig(kind="landmarks", components=64, landmarks=128, sharpness=0.25)
_MAPS = (
    QuestionMap(features=None),
    QuestionMap(features=_LANDMARKS),
    QuestionMap(features=_WIDE, l2=1e-2),  # where there are few questions: each says more about others
    QuestionMap(features=_WIDE, l2=1e-2, reads_lengths=True),
    QuestionMap(features=FeatureConfig(kind="pca", components=16), l2=1e-2),
)
_THRESHOLDS = (0.7, 0.8, 0.9)
"""Of trust, after one answer."""
_EASINGS = (0.0, 0.3)
"""By how much four more answers lower it: where many differ, one more helps little."""
_FAMILIAR = (0.0, -0.15, -0.3)
"""What is added to the urge to stop on a question as familiar as can be. What is read there raises trust, and fewer are
asked than on unknown questions, within the same limit of calls; less than 0 evens that out."""
_CALLS = (2, 3, 4, 5, 7)
_ORDERS: Mapping[str, dict[str, float]] = {
    "weight": {"weight": 1.0, "deviation": 2.0},
    "score": {"weight": 0.0, "deviation": 10.0, "ability": 10.0},
}
"""Who is asked first: whose voice counts most, or who will probably be right. They differ where a worker often says
that it does not know, and is right when it says more."""
_DOUBT = 2.5
"""Standard errors. Hundreds of starts are tried in turn, so that with two one passes where nothing is to be gained
(medicine), by chance and at twice the calls; with one, half a point was lost on the test split."""
_TURNS_PER_CALL = 2
"""A call, and a turn that makes the best answer so far the current one."""
_MASKED_SHARE = 0.25
_VOTES = (3, 5, 7)
"""Workers whose majority is measured beside, on the same folds."""
_ROLES = ("worker", "verifier")
"""Recorded answers do not depend on advice, so that a Thinker would only cost: it is left out, and none is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """What `fugu train trinity` does."""

    seed: int = 0
    call_price: float = 0.001
    """Reward that a further call has to bring; 0 is the paper's."""
    mean_calls: float | None = 3.1
    """Starts that need more calls on average, on known families or on unknown ones, are passed over. None: no limit."""
    cost_price: float = 0.0
    """Reward that a call of the dearest worker's mean cost has to bring."""
    trainers: tuple[TriTrainer, ...] = field(
        default_factory=lambda: (
            SepCMASearch(),
            Reinforce(),
            RandomSearch(),
            SepCMASearch(in_directions=False, sigma0=0.1),
        )
    )
    """Tried from the best start; none is kept that does not gain more than its standard error."""

    def __post_init__(self) -> None:
        if self.mean_calls is not None and not 1 <= self.mean_calls < np.inf:
            raise ConfigError(f"mean_calls {self.mean_calls}: expected a number of at least 1")
        if not (0 <= self.call_price <= 1 and 0 <= self.cost_price <= 1):
            raise ConfigError(f"call_price {self.call_price}, cost_price {self.cost_price}: expected 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A start: how questions are read, when to stop, how many calls there may be."""

    question_map: QuestionMap
    start: Start
    rules: Rules

    @property
    def name(self) -> str:
        if self == SINGLE:
            return "single"
        if self.rules.max_calls == 1:
            return f"{self.question_map.name}, one call"
        order = "weight" if self.start.weight else "score"
        trust = f"by {order}, trust {self.start.threshold:g} - {self.start.per_asked:g} asked/4"
        if self.start.of_familiarity:
            trust += f" + {-self.start.of_familiarity:g} familiar"
        return f"{self.question_map.name}, {trust}, {self.rules.max_calls} calls"


def _rules(calls: int) -> Rules:
    return Rules(max_turns=_TURNS_PER_CALL * calls + 2, max_calls=calls, roles=_ROLES)


def _to_start(threshold: float, easing: float, familiar: float, order: str) -> Start:
    return Start(threshold=threshold + easing / 4, per_asked=easing, of_familiarity=familiar, **_ORDERS[order])


SINGLE = Candidate(
    question_map=QuestionMap(features=None),
    start=Start(threshold=-9, weight=0, deviation=0, ability=1e3),
    rules=_rules(1),
)
"""Always the best single worker: gains nothing, loses nothing."""
CANDIDATES: tuple[Candidate, ...] = (
    SINGLE,
    *(
        Candidate(question_map=m, start=Start(threshold=-9, **_ORDERS["score"]), rules=_rules(1))
        for m in _MAPS
        if m.features is not None
    ),
    *(
        Candidate(question_map=m, start=_to_start(threshold, easing, familiar, order), rules=_rules(calls))
        for m in _MAPS
        for familiar in _FAMILIAR[: len(_FAMILIAR) if m.has_landmarks else 1]
        for order in _ORDERS
        for calls in _CALLS
        for threshold in _THRESHOLDS
        for easing in _EASINGS
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Cross-fitted: gains of the net reward over the best single worker, with standard errors; calls."""

    name: str
    seen: float
    seen_error: float
    unseen: float | None
    unseen_error: float | None
    seen_accuracy_gain: float
    unseen_accuracy_gain: float | None
    seen_calls: float
    unseen_calls: float | None

    @property
    def gain(self) -> float:
        """What candidates are ranked by."""
        return self.seen if self.unseen is None else (self.seen + self.unseen) / 2

    @property
    def calls(self) -> float:
        """What is held against the limit: on known or on unknown families, whichever takes more."""
        return self.seen_calls if self.unseen_calls is None else max(self.seen_calls, self.unseen_calls)

    @property
    def score(self) -> float:
        """Less `_DOUBT` standard errors: what has to be above zero, or the best single worker is asked."""
        lower = [self.seen - _DOUBT * self.seen_error]
        if self.unseen is not None and self.unseen_error is not None:
            lower.append(self.unseen - _DOUBT * self.unseen_error)
        return sum(lower) / len(lower)

    def row(self) -> dict[str, Json]:
        return {
            "candidate": self.name,
            "score": self.score,
            "seen_gain": self.seen,
            "seen_error": self.seen_error,
            "unseen_gain": self.unseen,
            "unseen_error": self.unseen_error,
            "seen_accuracy_gain": self.seen_accuracy_gain,
            "unseen_accuracy_gain": self.unseen_accuracy_gain,
            "seen_calls": self.seen_calls,
            "unseen_calls": self.unseen_calls,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedCoordinator:
    """A training run's result."""

    head: CoordinatorHead
    start: Judged
    trainer: str | None
    """None: no trainer improved the start."""
    validation: dict[str, Json]
    """Diagnostics of the validation split, by a head that was fitted on train alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fold:
    """One part of the questions held out from the rest."""

    scheme: str
    train: OutcomeMatrix
    train_hidden: Hidden
    held: OutcomeMatrix
    held_hidden: Hidden
    base: Floats  # (n,) score of the best single worker of the training part
    base_cost: Floats  # (n,) of its call, relative to the dearest worker's


def train_coordinator(
    recorded: RecordedSet,
    encoder: BulkEncoder,
    pool: Caller,
    out: Path,
    *,
    config: CoordinatorConfig,
    cache: Path | None,
    report: Reporter,
) -> TrainedCoordinator:
    """Writes `out/head.safetensors`, `card.json`, `metrics.jsonl`, `run.json` and `report.html`. `pool` replays
    `recorded`.

    Raises:
        ConfigError: there are no training questions, or fewer than two workers, or costs that have a price are unknown.
    """
    started = time.time()
    train, validation = split_outcomes(answered(build_matrix(recorded)))
    both = OutcomeMatrix.join(train, validation)
    if config.cost_price and not np.isfinite(both.cost_usd).any(0).all():
        nobody = [w for j, w in enumerate(both.workers) if not np.isfinite(both.cost_usd[:, j]).any()]
        raise ConfigError(
            f"{recorded.path}: a price on cost, but nothing is known of what {', '.join(nobody)} cost: give prices in "
            "models.json, or leave the price on cost out"
        )
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metrics.jsonl").open("w") as metrics_file:

        def log(**row: Json) -> None:
            metrics_file.write(json.dumps(row) + "\n")
            metrics_file.flush()

        write_run(out, recorded, _config_row(config))
        report.stage("encode questions", len(both))
        hidden = encode_questions(encoder, both.questions, cache=cache, progress=report.advance)
        candidate, judged, trainer, trained = _select(both, hidden, config, report, log)
        report.say(f"best: {judged.name} ({_gains(judged)})")
        at = len(train)
        fitter = _Fitter(candidate, trainer, config, report, log)
        head = fitter.fit("fit on train", train, hidden[:at], recorded, encoder.name)
        found = _play_validation(head, train, both.rows(range(at, len(both))), hidden[at:], pool)
        log(stage="diagnostics", **found)
        raised = [msgspec.to_builtins(alarm) for alarm in alarms(found, generations=fitter.generations)]
        log(stage="alarms", alarms=raised)
        for alarm in raised:
            report.say(f"alarm: {alarm['message']}")
        final = fitter.fit("fit on train and validation", both, hidden, recorded, encoder.name)
        metrics = judged.row() | {"trainer": trainer.name if trainer else None, "trained": trained}
        log(stage="final", **metrics)
    card = msgspec.structs.replace(
        final.card,
        training={
            "data": describe_data(recorded),
            "questions": {"train": len(train), "validation": len(validation)},
            "candidate": candidate.name,
            "trainer": trainer.name if trainer else None,
            "call_price": config.call_price,
            "cost_price": config.cost_price,
            "mean_calls": config.mean_calls,
            "seed": config.seed,
            "commit": find_commit(),
            "version": __version__,
            "seconds": round(time.time() - started, 1),
        },
        metrics=metrics,
        baselines=describe_best_single(both),
    )
    head = CoordinatorHead(final.features, final.question, final.evidence, final.head, final.rules, card)
    head.save(out)
    write_training_report(out)
    return TrainedCoordinator(head=head, start=judged, trainer=trainer.name if trainer else None, validation=found)


def _select(
    matrix: OutcomeMatrix, hidden: Hidden, config: CoordinatorConfig, report: Reporter, log: Callable[..., None]
) -> tuple[Candidate, Judged, TriTrainer | None, dict[str, Json] | None]:
    """The best start, how good it is, and the trainer that improves it, if one does."""
    folds = list(_folds(matrix, hidden, config.seed))
    maps = {candidate.question_map for candidate in CANDIDATES}
    report.stage("judge candidates", len(folds) * len(maps))
    fitted: dict[tuple[int, str], Fitted] = {}
    played: dict[str, list[_Result]] = {candidate.name: [] for candidate in CANDIDATES}
    for i, fold in enumerate(folds):
        for question_map in sorted(maps, key=lambda m: m.name):
            found = fit_reading(fold.train, fold.train_hidden, question_map, seed=config.seed)
            fitted[i, question_map.name] = found
            world = matrix_to_world(fold.held, found.reading.prospect(fold.held_hidden))
            for candidate in CANDIDATES:
                if candidate.question_map == question_map:
                    result = play(world, found.evidence, candidate.start.to_head(), candidate.rules)
                    played[candidate.name].append(_Result.of(fold, result, config))
            report.advance(1)
    limit = np.inf if config.mean_calls is None else config.mean_calls
    rows = sorted((_judge(name, results) for name, results in played.items()), key=lambda judged: -judged.gain)
    for row in rows:
        log(stage="candidate", **row.row())
    chosen_row = next(row for row in rows if row.calls <= limit and (row.score > 0 or row.name == SINGLE.name))
    candidate = next(candidate for candidate in CANDIDATES if candidate.name == chosen_row.name)
    for size in _VOTES:
        if size > len(matrix.workers):
            break
        log(stage="vote", **_compare_vote(size, folds, played[candidate.name]))
    if candidate.rules.max_calls == 1:
        return candidate, chosen_row, None, None
    chosen = [i for scheme in ("seen", "unseen") for i in [j for j, f in enumerate(folds) if f.scheme == scheme][:2]]
    report.stage("try trainers", len(chosen) * len(config.trainers))
    starts = [played[candidate.name][i] for i in chosen]
    best: tuple[float, TriTrainer | None, dict[str, Json] | None] = (0.0, None, None)
    for trainer in config.trainers:
        results = []
        for i in chosen:
            found = fitted[i, candidate.question_map.name]
            vector = trainer.train(_problem(found, candidate, config))
            world = matrix_to_world(folds[i].held, found.reading.prospect(folds[i].held_hidden))
            result = play(world, found.evidence, TriHead.from_vector(vector), candidate.rules)
            results.append(_Result.of(folds[i], result, config))
            report.advance(1)
        judged = _judge(trainer.name, results)
        better = np.concatenate([r.net - s.net for r, s in zip(results, starts, strict=True)])
        gain, error = float(better.mean()), standard_error(better)
        is_better = gain > error and judged.calls <= limit
        tried = judged.row() | {"gain_over_start": gain, "gain_over_start_error": error, "kept": bool(is_better)}
        log(stage="trainer", **tried)
        report.say(f"{trainer.name}: {gain:+.2%} ± {error:.2%} over its start")
        if is_better and gain > best[0]:
            best = gain, trainer, tried
    return candidate, chosen_row, best[1], best[2]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Result:
    """Of one fold: gains over the best single worker, per question."""

    scheme: str
    net: Floats
    accuracy: Floats
    calls: Floats
    families: npt.NDArray[np.str_]

    @staticmethod
    def of(fold: _Fold, played: Played, config: CoordinatorConfig) -> _Result:
        net = net_reward(played, call_price=config.call_price, cost_price=config.cost_price)
        return _Result(
            scheme=fold.scheme,
            net=net - fold.base + config.cost_price * fold.base_cost,
            accuracy=played.score - fold.base,
            calls=played.calls.astype(np.float64),
            families=fold.held.families,
        )


def _judge(name: str, results: Sequence[_Result]) -> Judged:
    def gather(scheme: str) -> list[_Result]:
        return [result for result in results if result.scheme == scheme]

    seen, unseen = gather("seen"), gather("unseen")
    net = np.concatenate([r.net for r in seen])
    net_unseen = np.concatenate([r.net for r in unseen]) if unseen else None
    families = np.concatenate([r.families for r in unseen]) if unseen else None
    return Judged(
        name=name,
        seen=float(net.mean()),
        seen_error=standard_error(net),
        unseen=None if net_unseen is None else float(net_unseen.mean()),
        unseen_error=None if net_unseen is None or families is None else family_error(net_unseen, families),
        seen_accuracy_gain=float(np.concatenate([r.accuracy for r in seen]).mean()),
        unseen_accuracy_gain=float(np.concatenate([r.accuracy for r in unseen]).mean()) if unseen else None,
        seen_calls=float(np.concatenate([r.calls for r in seen]).mean()),
        unseen_calls=float(np.concatenate([r.calls for r in unseen]).mean()) if unseen else None,
    )


def _compare_vote(size: int, folds: Sequence[_Fold], ours: Sequence[_Result]) -> dict[str, Json]:
    """What a majority of the `size` best workers gains on the same folds, and what ours gains over it."""
    row: dict[str, Json] = {"workers": size}
    for scheme in ("seen", "unseen"):
        held = [(fold, result) for fold, result in zip(folds, ours, strict=True) if fold.scheme == scheme]
        if not held:
            continue
        vote = np.concatenate([vote_score(f.held, rank_workers(f.train)[:size].tolist()) - f.base for f, _ in held])
        gain = np.concatenate([result.accuracy for _, result in held]) - vote
        families = np.concatenate([result.families for _, result in held])
        row[f"{scheme}_accuracy_gain"] = float(vote.mean())
        row[f"{scheme}_accuracy_gain_over_vote"] = float(gain.mean())
        row[f"{scheme}_accuracy_gain_over_vote_error"] = (
            standard_error(gain) if scheme == "seen" else family_error(gain, families)
        )
    return row


def _folds(matrix: OutcomeMatrix, hidden: Hidden, seed: int) -> Iterator[_Fold]:
    for scheme, fold in (
        ("seen", fold_by_question(len(matrix), seed + 1)),
        ("unseen", fold_by_family(matrix.families, seed + 1)),
    ):
        for k in [] if fold is None else np.unique(fold):
            rows, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            train, target = matrix.rows(rows), matrix.rows(held)
            yield _Fold(
                scheme=scheme,
                train=train,
                train_hidden=hidden[rows],
                held=target,
                held_hidden=hidden[held],
                base=ranked_score(target, rank_workers(train)),
                base_cost=relative_cost(target.cost_usd)[:, best_single(train)],
            )


def _problem(
    fitted: Fitted,
    candidate: Candidate,
    config: CoordinatorConfig,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TriProblem:
    return TriProblem(
        world=mask_workers(mix_worlds(fitted.worlds), share=_MASKED_SHARE, seed=config.seed),
        evidence=fitted.evidence,
        rules=candidate.rules,
        start=candidate.start,
        call_price=config.call_price,
        cost_price=config.cost_price,
        seed=config.seed,
        progress=progress,
    )


class _Fitter:
    """Fits the chosen candidate and trainer on any part of the outcomes."""

    def __init__(
        self,
        candidate: Candidate,
        trainer: TriTrainer | None,
        config: CoordinatorConfig,
        report: Reporter,
        log: Callable[..., None],
    ) -> None:
        self._candidate, self._trainer, self._config = candidate, trainer, config
        self._report, self._log = report, log
        self.generations: list[dict[str, float]] = []
        """Of the latest fit; empty where nothing was evolved."""

    def fit(
        self, stage: str, matrix: OutcomeMatrix, hidden: Hidden, recorded: RecordedSet, encoder: str
    ) -> CoordinatorHead:
        self._report.stage(stage, 1)
        fitted = fit_reading(matrix, hidden, self._candidate.question_map, seed=self._config.seed)
        head = self._candidate.start.to_head()
        self.generations = []
        if self._trainer is not None:

            def show(row: dict[str, float]) -> None:
                self._log(stage=f"evolution: {stage}", **row)
                if "generation" in row:
                    self.generations.append(row)

            head = TriHead.from_vector(
                self._trainer.train(_problem(fitted, self._candidate, self._config, progress=show))
            )
        self._report.advance(1)
        evidence = fitted.evidence
        if self._candidate == SINGLE:  # the worker that `best_single` names, whatever the coverage of others
            ability = evidence.ability.copy()
            ability[best_single(matrix)] = 2.0
            evidence = replace(evidence, ability=ability)
        return CoordinatorHead.create(
            fitted.reading.features,
            fitted.reading.weight,
            evidence,
            head,
            self._candidate.rules,
            Card(
                encoder=encoder,
                workers=tuple(WorkerIdentity(w, recorded.models[w]) for w in matrix.workers),
                training={},
                metrics={},
                baselines={},
            ),
        )


def _play_validation(
    head: CoordinatorHead, train: OutcomeMatrix, held: OutcomeMatrix, hidden: Hidden, pool: Caller
) -> dict[str, Json]:
    """Diagnostics of the validation split, played through the loop that serves.

    Raises:
        FuguError: the batched runs that trained the head do not tell what the loop does.
    """
    known = {q.text: hidden[i] for i, q in enumerate(held.questions)}
    encoder = KnownStates(head.card.encoder, known, hidden.shape[1])
    models = {worker.id: worker.model for worker in head.card.workers}
    policy = Coordinator(head, encoder, models)
    episodes = asyncio.run(run_policy(held, policy, pool, known=frozenset(models)))
    played = play(matrix_to_world(held, head.prospect(hidden)), head.evidence, head.head, head.rules)
    calls = np.array([episode.calls for episode in episodes])
    scores = np.array([np.nan if episode.score is None else episode.score for episode in episodes])
    different = int(((calls != played.calls) | (scores != played.score)).sum())
    if different:
        raise FuguError(
            f"{different} of {len(held)} validation runs differ between training and serving: a fault of ours"
        )
    return diagnose(
        episodes_to_turns(held, episodes),
        held,
        ranking=rank_workers(train),
        turn_limit=head.rules.max_turns,
        roles=("worker",),  # verification is recalled, so it is no call
    )


def _gains(judged: Judged) -> str:
    text = f"{judged.seen_accuracy_gain:+.1%} at {judged.seen_calls:.2f} calls"
    if judged.unseen_accuracy_gain is None:
        return text
    return f"{text}; unseen families {judged.unseen_accuracy_gain:+.1%} at {judged.unseen_calls:.2f}"


def _config_row(config: CoordinatorConfig) -> dict[str, Json]:
    return asdict(config) | {"trainers": [trainer.name for trainer in config.trainers]}
