"""Trains the head that `orchestrate/coordinator.py` serves: recorded outcomes in, a folder with weights and card out.

    encode -> judge readings, thresholds and numbers of calls by cross-fitted reward, take the mean of the best
    -> let the trainers improve it, each judged the same way
    -> fit on train, play validation through the serving loop -> fit on train and validation

Cross-fitting holds out questions, and then whole families. The test split and every other split are never looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from .. import __version__
from ..errors import ConfigError, FuguError
from ..eval.baselines import rank_workers, vote_score
from ..eval.diagnostics import alarms, diagnose
from ..eval.evaluate import episodes_to_turns, run_policy
from ..eval.matrix import OutcomeMatrix, best_single
from ..eval.provenance import describe_data, find_commit
from ..eval.report import Reporter
from ..eval.states import BulkEncoder, KnownStates, encode_questions
from ..eval.training_report import write_training_report
from ..orchestrate.artefact import Card, WorkerIdentity
from ..orchestrate.coordinator import Coordinator, CoordinatorHead
from ..orchestrate.loop import Caller
from ..orchestrate.tri_head import TriHead
from ..pool.recorded import RecordedSet
from ..types import Json
from .outcomes import describe_best_single, keep_log, read_outcomes
from .rollout import play
from .selection import family_error, standard_error
from .starts import CANDIDATES, SINGLE, Candidate, Fold, Judged, Result, Trials, choose_start, judge
from .tri_trainers import RandomSearch, Reinforce, SepCMASearch, TriProblem, TriTrainer
from .worlds import Fitted, Hidden, fit_reading, mask_workers, matrix_to_world, mix_worlds

__all__ = ["CoordinatorConfig", "TrainedCoordinator", "is_gain", "train_coordinator"]

Floats = npt.NDArray[np.float64]

_MASKED_SHARE = 0.25
_VOTES = (3, 5, 7)
"""Workers whose majority is measured beside, on the same folds."""


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
    """Tried from the chosen start; none is kept that does not gain more than its standard error and one question."""

    def __post_init__(self) -> None:
        if self.mean_calls is not None and not 1 <= self.mean_calls < np.inf:
            raise ConfigError(f"mean_calls {self.mean_calls}: expected a number of at least 1")
        if not (0 <= self.call_price <= 1 and 0 <= self.cost_price <= 1):
            raise ConfigError(f"call_price {self.call_price}, cost_price {self.cost_price}: expected 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedCoordinator:
    """A training run's result."""

    head: CoordinatorHead
    start: Judged
    trainer: str | None
    """None: no trainer improved the start."""
    validation: dict[str, Json]
    """Diagnostics of the validation split, by a head that was fitted on train alone."""


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
    train, validation = read_outcomes(recorded, report.say)
    both = OutcomeMatrix.join(train, validation)
    if config.cost_price and not np.isfinite(both.cost_usd).any(0).all():
        nobody = [w for j, w in enumerate(both.workers) if not np.isfinite(both.cost_usd[:, j]).any()]
        raise ConfigError(
            f"{recorded.path}: a price on cost, but nothing is known of what {', '.join(nobody)} cost: give prices in "
            "models.json, or leave the price on cost out"
        )
    with keep_log(out, recorded, _config_row(config)) as log:
        report.stage("encode questions", len(both))
        hidden = encode_questions(encoder, both.questions, cache=cache, progress=report.advance)
        judged, trainer, trained = _select(both, hidden, config, report, log)
        candidate = judged.candidate
        report.say(f"best: {candidate.name} ({_gains(judged)})")
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
) -> tuple[Judged, TriTrainer | None, dict[str, Json] | None]:
    """The start, how good it is, and the trainer that improves it, if one does."""
    trials = Trials(
        matrix,
        hidden,
        call_price=config.call_price,
        cost_price=config.cost_price,
        seed=config.seed,
        report=report,
    )
    limit = np.inf if config.mean_calls is None else config.mean_calls
    rows = sorted(map(trials.judge, CANDIDATES), key=lambda judged: -judged.gain)
    start, count = choose_start(trials, rows, limit=limit)
    if count > 1:
        log(stage="candidate", **start.row(), mean_of=count)
    for row in rows:
        log(stage="candidate", **row.row(), mean_of=1)
    candidate, folds, starts = start.candidate, trials.folds, trials.results(start.candidate)
    for size in _VOTES:
        if size > len(matrix.workers):
            break
        log(stage="vote", **_compare_vote(size, folds, starts))
    if candidate.rules.max_calls == 1:
        return start, None, None
    chosen = [i for scheme in ("seen", "unseen") for i in [j for j, f in enumerate(folds) if f.scheme == scheme][:2]]
    report.stage("try trainers", len(chosen) * len(config.trainers))
    best: tuple[float, TriTrainer | None, dict[str, Json] | None] = (0.0, None, None)
    for trainer in config.trainers:
        results = []
        for i in chosen:
            found = trials.fitted[i, candidate.question_map.name]
            vector = trainer.train(_problem(found, candidate, config))
            world = trials.world(i, candidate.question_map)
            played = play(world, found.evidence, TriHead.from_vector(vector), candidate.rules)
            results.append(trials.result(i, played))
            report.advance(1)
        judged = judge(candidate, results)
        better = np.concatenate([r.net - starts[i].net for i, r in zip(chosen, results, strict=True)])
        gain, error = float(better.mean()), standard_error(better)
        is_better = is_gain(better) and judged.calls <= limit
        tried = judged.row() | {
            "candidate": trainer.name,
            "gain_over_start": gain,
            "gain_over_start_error": error,
            "kept": is_better,
        }
        log(stage="trainer", **tried)
        report.say(f"{trainer.name}: {gain:+.2%} ± {error:.2%} over its start")
        if is_better and gain > best[0]:
            best = gain, trainer, tried
    return start, best[1], best[2]


def is_gain(better: Floats) -> bool:
    """Whether (n,) differences of the net reward are more than chance: beyond their standard error, and beyond what
    one question more or less would make. Where nothing but a call here and there differs, the error is next to nothing.
    """
    return bool(better.mean() > max(standard_error(better), 1 / len(better)))


def _compare_vote(size: int, folds: Sequence[Fold], ours: Sequence[Result]) -> dict[str, Json]:
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
