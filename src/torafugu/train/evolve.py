"""Trains `orchestrate/transcript.py` as TRINITY does (arXiv 2512.04695): sep-CMA-ES on rewards of whole runs, or one of
the paper's baselines with as many runs.

The vector is the encoder's singular-value offsets, if they are trained, then the head; it starts from zeros. A
candidate plays `repeats` questions, each through the loop that serves, on recorded answers (`candidate.py`); its reward
is the mean score and the paper's shaping. The distribution's mean is validated now and then, the best one kept. After
each generation there is a checkpoint: a run that is started again in the same folder goes on bit for bit.

Departures: validation questions are always the same and answered by argmax, not drawn anew and sampled; what a run may
do, and how it reads its transcript, is said in `TranscriptConfig`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..cluster.fleet import Fleet, in_process, take_results
from ..envs.recorded import question_to_task
from ..errors import ConfigError, FuguError, ModelError
from ..eval.matrix import OutcomeMatrix, best_single
from ..eval.provenance import describe_data, find_commit
from ..eval.report import Reporter
from ..eval.states import encode_questions
from ..eval.stats import routing_entropy_bits
from ..local.open import EncoderConfig
from ..orchestrate.artefact import Card, WorkerIdentity
from ..orchestrate.head_variants import find_variant
from ..orchestrate.prompts import parse_thought
from ..orchestrate.transcript import TranscriptConfig, TranscriptHead, count_head
from ..orchestrate.tri_head import ROLES
from ..pool.recorded import Question, RecordedSet
from ..types import Json
from .candidate import Array, Ints, Job, Player, Sample, Setup, SvfEncoder, Tally, TranscriptEncoder
from .checkpoint import Checkpoints
from .outcomes import describe_best_single, read_outcomes, write_run
from .paper_reinforce import PolicyGradient, estimate_gradient
from .sepcma import SepCMA, popsize

__all__ = [
    "EvolveConfig",
    "Job",
    "RandomSearch",
    "Tally",
    "TrainedTranscript",
    "credit_samples",
    "shape_reward",
    "train_paper",
]

Floats: TypeAlias = npt.NDArray[np.float64]

SCHEMA = 1
"""Of the checkpoints."""
ALL_FAILED = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolveConfig:
    """A training run. The defaults are the authors' (`es_log.json`)."""

    iterations: int = 60
    repeats: int = 16
    """Episodes of a candidate."""
    optimiser: Literal["sepcma", "random-search", "reinforce"] = "sepcma"
    """`reinforce`: one candidate, which plays all of a generation's episodes (`paper_reinforce.py`)."""
    sigma0: float = 0.03
    popsize: int | None = None
    """None: by the rule."""
    popsize_rule: Literal["ceil", "floor"] = "ceil"
    random_range: float = 0.5
    """Of random search: numbers are drawn from -0.5 to 0.5."""
    random_repeats: int = 32
    """Of random search: episodes of a candidate. There are fewer candidates, so that as many episodes are run."""
    learning_rate: float = 0.0001
    """Of REINFORCE: Adam's. One step moves a logit by at most this, times the root of the state's size, times 175."""
    start: Literal["zeros", "module"] = "zeros"
    """Of the head: `module` is how its form starts when nothing overwrites it (`head_variants.py`)."""
    svf: bool = True
    """Train the encoder's singular values too."""
    diversity_bonus: float = 0.15
    """Times the entropy, in nats, of whom a candidate calls in all its episodes."""
    turn_bonus: float = 0.1
    """Times -((n - 1) / max_turns) / 4, n the turns of all its episodes. Never above 0, despite its name."""
    turns_per_episode: bool = False
    """n is the mean of an episode instead. A departure: the authors' n is not divided by the number of episodes."""
    cost_bonus: float = 0.0
    """Taken off per episode that costs as much as one mean call of the dearest worker."""
    call_price: float = 0.0
    """Taken off per call of an episode."""
    common_questions: bool = False
    """All candidates of a generation play the same questions, with the same draws. The authors' play their own."""
    test_interval: int = 5
    tests: int = 300
    """Validation questions, at most."""
    seed: int = 42
    policy: TranscriptConfig = field(default_factory=TranscriptConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        counts = (self.iterations, self.repeats, self.random_repeats, self.test_interval, self.tests)
        if min(counts) < 1 or (self.popsize is not None and self.popsize < 2):
            raise ConfigError(f"{self!r}: expected counts from 1, and a popsize from 2")
        if self.optimiser == "reinforce":
            self._check_reinforce()

    def _check_reinforce(self) -> None:
        what = "optimiser 'reinforce'"
        if self.svf:
            raise ConfigError(f"{what}: has no gradient for an encoder's singular values: expected svf = false")
        if self.policy.head != "linear":
            raise ConfigError(f"{what}: has no gradient for the head {self.policy.head!r}: expected head = 'linear'")
        if self.common_questions:
            raise ConfigError(f"{what}: the same draws again teach nothing: expected common_questions = false")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"{what}: learning_rate {self.learning_rate!r}: expected a number above 0")

    def count_candidates(self, size: int) -> int:
        """Per generation, for a vector of `size` numbers."""
        count = self.popsize or popsize(size, self.popsize_rule)
        if self.optimiser == "random-search":
            return max(1, round(count * self.repeats / self.random_repeats))
        return count

    @property
    def episodes(self) -> int:
        """Of a candidate."""
        return self.random_repeats if self.optimiser == "random-search" else self.repeats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedTranscript:
    """A training run's result."""

    head: TranscriptHead
    generation: int
    """Whose mean was kept."""
    validation_score: float
    best_single_score: float
    """Of the worker that was best in training, on the same validation questions."""


def shape_reward(tally: Tally, config: EvolveConfig, dearest_usd: float | None = None) -> float:
    """A candidate's reward. `dearest_usd`: a mean call of the dearest worker, where costs count.

    Raises:
        ConfigError: costs count and are not known.
    """
    if not tally.scores:
        return ALL_FAILED
    n = tally.turns / (tally.episodes if config.turns_per_episode else 1)
    turns = -(max(0.0, n - 1) / config.policy.max_turns) / 4 * config.turn_bonus
    diversity = config.diversity_bonus * math.log(2) * (routing_entropy_bits(tally.workers) if tally.turns else 0)
    price = (config.call_price * tally.calls + _price_money(tally.cost, config, dearest_usd)) / tally.episodes
    return math.fsum(tally.scores) / len(tally.scores) + diversity + turns - price


def _price_money(cost_usd: float | Decimal | None, config: EvolveConfig, dearest_usd: float | None) -> float:
    if not config.cost_bonus:
        return 0.0
    if cost_usd is None or not dearest_usd:
        raise ConfigError(f"cost_bonus {config.cost_bonus!r}: the recorded answers have no known cost: expected 0")
    return config.cost_bonus * float(cost_usd) / dearest_usd


def credit_samples(tally: Tally, config: EvolveConfig, dearest_usd: float | None = None) -> list[tuple[Sample, float]]:
    """What each scored episode adds to its tally's `shape_reward`, to first order, on the scale of a score.

    The terms that are not linear are so credited by their derivative: a turn given to a worker that many turns go to
    takes from the entropy, one given to a rare worker adds to it.
    """
    counts = Counter(worker for sample in tally.samples for worker, _ in sample.episode.replied)
    turns = sum(counts.values())
    surprise = {worker: -math.log(count / turns) for worker, count in counts.items()}
    entropy = math.fsum(count / turns * surprise[worker] for worker, count in counts.items())
    turn_price = config.turn_bonus / 4 / config.policy.max_turns * (1 if config.turns_per_episode else tally.episodes)
    credited = []
    for sample in tally.samples:
        episode = sample.episode
        if episode.score is None:
            continue
        rare = math.fsum(surprise[worker] - entropy for worker, _ in episode.replied)
        price = turn_price * len(episode.replied) + config.call_price * episode.calls
        price += _price_money(episode.cost_usd, config, dearest_usd)
        diversity = config.diversity_bonus * rare * tally.episodes / max(1, turns)
        credited.append((sample, episode.score + diversity - price))
    return credited


# --- the search -----------------------------------------------------------------------------------------------------


class RandomSearch:
    """Candidates from a cube around 0; what it has found is the best of all. The paper's baseline; as `SepCMA`."""

    def __init__(self, size: int, spread: float, *, count: int, seed: int) -> None:
        self.generation = 0
        self._mean = np.zeros(size)
        self._best = -math.inf
        self._spread, self._count, self._seed = spread, count, seed

    @property
    def mean(self) -> Floats:
        return self._mean.copy()

    @property
    def sigma(self) -> float:
        """Of a uniform draw."""
        return self._spread / math.sqrt(3)

    def ask(self) -> Floats:
        rng = np.random.default_rng([self._seed, 3, self.generation])
        return rng.uniform(-self._spread, self._spread, (self._count, self._mean.size))

    def tell(self, fitness: npt.ArrayLike) -> None:
        rewards, candidates = np.asarray(fitness, dtype=np.float64), self.ask()
        self.generation += 1
        if rewards.max() > self._best:
            self._best, self._mean = float(rewards.max()), candidates[rewards.argmax()]

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean.copy(), "best": self._best, "generation": self.generation}

    def load(self, state: Mapping[str, Any]) -> RandomSearch:
        self._mean, self._best, self.generation = state["mean"], float(state["best"]), int(state["generation"])
        return self


_Search: TypeAlias = SepCMA | RandomSearch | PolicyGradient


def _make_search(config: EvolveConfig, start: Floats, state: Mapping[str, Any] | None) -> _Search:
    count = config.count_candidates(start.size)
    if config.optimiser == "reinforce":
        gradient = PolicyGradient(start, config.learning_rate, count=count)
        return gradient if state is None else gradient.load(state)
    if config.optimiser == "random-search":
        search = RandomSearch(start.size, config.random_range, count=count, seed=config.seed)
        return search if state is None else search.load(state)
    if state is not None:
        return SepCMA.from_state(state)
    return SepCMA(start, config.sigma0, popsize=count, seed=config.seed)


@dataclass(slots=True, kw_only=True)
class _Kept:
    """The best mean so far."""

    vector: Array
    score: float = -math.inf
    generation: int = 0


class _Run:
    """The generations of one training run."""

    def __init__(
        self,
        setup: Setup,
        config: EvolveConfig,
        first: Array,
        *,
        out: Path,
        train: OutcomeMatrix,
        tests: Ints,
        report: Reporter,
    ) -> None:
        self._config, self._first = config, first
        self._train, self._tests, self._report = len(train), tests, report
        self._metrics = out / "metrics.jsonl"
        bound_to = {
            "schema": SCHEMA,
            "config": {key: value for key, value in asdict(config).items() if key != "iterations"},
            "data": describe_data(setup.recorded),
            "texts": bool(setup.recorded.texts),
            "encoder": setup.card.encoder,
            "start": hashlib.sha256(first.tobytes()).hexdigest(),
        }
        self._checkpoints = Checkpoints(folder=out / "checkpoints", bound_to=bound_to, metrics=self._metrics)
        costs = train.cost_usd[:, np.isfinite(train.cost_usd).any(0)]
        self._dearest_usd = float(np.nanmean(costs, axis=0).max()) if costs.size else None

    async def evolve(self, fleet: Fleet[Job, Tally]) -> _Kept:
        async with fleet:
            search, kept = self._resume()
            self._report.stage("evolve", self._config.iterations)
            self._report.advance(min(search.generation, self._config.iterations))
            while search.generation < self._config.iterations:
                await self._step(fleet, search, kept)
                state = {f"search/{key}": value for key, value in search.state_dict().items()}
                state |= {"kept": kept.vector, "kept/score": kept.score, "kept/generation": kept.generation}
                self._checkpoints.save(state, generation=search.generation)
                self._report.advance(1)
        return kept

    def _resume(self) -> tuple[_Search, _Kept]:
        resumed = self._checkpoints.load_latest()
        first = self._first.astype(np.float64)
        if resumed is None:
            self._metrics.write_bytes(b"")
            return _make_search(self._config, first, None), _Kept(vector=self._first)
        self._checkpoints.cut_metrics(resumed)
        for warning in resumed.warnings:
            self._report.say(warning)
        self._report.say(f"going on after generation {resumed.generation}")
        state = resumed.state
        searched = {key.removeprefix("search/"): value for key, value in state.items() if key.startswith("search/")}
        kept = _Kept(
            vector=np.asarray(state["kept"]),
            score=float(np.asarray(state["kept/score"])),
            generation=int(np.asarray(state["kept/generation"])),
        )
        return _make_search(self._config, first, searched), kept

    async def _step(self, fleet: Fleet[Job, Tally], search: _Search, kept: _Kept) -> None:
        """One generation; `kept` is replaced in place."""
        config, generation = self._config, search.generation
        candidates = search.ask().astype(np.float32)  # (P, N)
        tallies = take_results(await fleet.map(self._make_jobs(candidates, generation)))
        rewards = np.array([shape_reward(tally, config, self._dearest_usd) for tally in tallies])
        if isinstance(search, PolicyGradient):
            credited = [pair for tally in tallies for pair in credit_samples(tally, config, self._dearest_usd)]
            gradient = estimate_gradient(credited, size=candidates.shape[1], state_norm=config.policy.state_norm)
            search.tell(gradient)
            course = {"gradient/norm": float(np.linalg.norm(gradient))}
        else:
            search.tell(rewards)
            course = {"sigma": search.sigma}
        self._log(
            "evolution",
            generation + 1,
            {
                "reward/mean": float(rewards.mean()),
                "reward/max": float(rewards.max()),
                "reward/std": float(rewards.std()),
                **course,
                **Tally.join(tallies).describe(),
            },
        )
        if search.generation % config.test_interval == 0 or search.generation == config.iterations:
            await self._validate(fleet, search.mean.astype(np.float32), search.generation, kept)

    def _make_jobs(self, candidates: Array, generation: int) -> list[Job]:
        config, count = self._config, len(candidates)
        rng = np.random.default_rng([config.seed, 1, generation])
        shape = (1 if config.common_questions else count, config.episodes)
        questions = np.broadcast_to(rng.integers(self._train, size=shape), (count, config.episodes))
        return [
            Job(
                vector=candidates[i],
                questions=questions[i].copy(),
                seed=(config.seed, 2, generation, 0 if config.common_questions else i),
            )
            for i in range(count)
        ]

    async def _validate(self, fleet: Fleet[Job, Tally], vector: Array, generation: int, kept: _Kept) -> None:
        parts = np.array_split(self._tests, min(fleet.size, len(self._tests)))
        tallies = await fleet.map([Job(vector=vector, questions=part, seed=None) for part in parts])
        tally = Tally.join(take_results(tallies))
        if not tally.scores:
            raise FuguError(f"generation {generation}: none of {tally.episodes} validation questions could be scored")
        score = math.fsum(tally.scores) / len(tally.scores)
        if score > kept.score:
            kept.vector, kept.score, kept.generation = vector, score, generation
        self._log("validation", generation, {**tally.describe(), "kept_generation": kept.generation})
        self._report.say(f"generation {generation}: {score:.2%} on validation, best {kept.score:.2%}")

    def _log(self, stage: str, generation: int, row: Mapping[str, Json]) -> None:
        with self._metrics.open("a") as file:
            file.write(json.dumps({"stage": stage, "generation": generation, **row}) + "\n")


def train_paper(
    recorded: RecordedSet,
    make_encoder: Callable[[], TranscriptEncoder],
    out: Path,
    *,
    config: EvolveConfig,
    cache: Path | None,
    report: Reporter,
    make_fleet: Callable[[Callable[[], Callable[[Job], Tally]]], Fleet[Job, Tally]] = in_process,
    start: Array | None = None,
) -> TrainedTranscript:
    """Writes `out/head.safetensors`, `card.json`, `metrics.jsonl`, `run.json` and `checkpoints`; goes on from the last
    of these if there are any.

    `make_encoder` is called here and by each member of the fleet: `partial(open_encoder, config.encoder)`, or for a
    fleet in this process one that always gives the same. `start`: the vector to begin with, offsets first.

    Raises:
        ConfigError: the data cannot teach, the encoder has nothing to scale, or the folder holds another run.
        ModelError: the start does not fit.
    """
    started = time.time()
    train, validation = read_outcomes(recorded, report.say)
    encoder = make_encoder()
    setup = _set_up(recorded, make_encoder, encoder, OutcomeMatrix.join(train, validation), config)
    first = _start_vector(config, encoder.dim, setup, start)
    out.mkdir(parents=True, exist_ok=True)
    write_run(out, recorded, asdict(config))
    if config.policy.state == "parts" and not setup.offsets:
        setup = replace(setup, known=_read_parts(encoder, setup, cache, report))
    tests = len(train) + np.random.default_rng([config.seed, 0]).permutation(len(validation))[: config.tests]
    run = _Run(setup, config, first, out=out, train=train, tests=tests, report=report)
    kept = asyncio.run(run.evolve(make_fleet(partial(Player, setup))))
    single = best_single(train)
    theirs = float(np.nanmean(validation.rows(tests - len(train)).first[:, single]))
    split = setup.offsets
    head = TranscriptHead.create(
        kept.vector[split:],
        kept.vector[:split] if split else None,
        config.policy,
        dim=encoder.dim,
        card=Card(
            encoder=encoder.with_offsets(kept.vector[:split]).name
            if isinstance(encoder, SvfEncoder) and split
            else encoder.name,
            workers=setup.card.workers,
            rules=setup.card.rules,
            training={
                "data": describe_data(recorded),
                "questions": {"train": len(train), "validation": len(validation)},
                "trainer": f"{config.optimiser}, {config.iterations} iterations",
                "parameters": {"svf": split, "head": len(first) - split},
                "generation": kept.generation,
                "seed": config.seed,
                "commit": find_commit(),
                "version": __version__,
                "seconds": round(time.time() - started, 1),
            },
            metrics={"validation_score": kept.score, "validation_best_single": theirs, "tests": len(tests)},
            baselines=describe_best_single(OutcomeMatrix.join(train, validation)),
        ),
    )
    head.save(out)
    return TrainedTranscript(
        head=head, generation=kept.generation, validation_score=kept.score, best_single_score=theirs
    )


def _set_up(
    recorded: RecordedSet,
    make_encoder: Callable[[], TranscriptEncoder],
    encoder: TranscriptEncoder,
    both: OutcomeMatrix,
    config: EvolveConfig,
) -> Setup:
    rules: dict[str, Json] = {"encoder": asdict(config.encoder)}
    offsets = 0
    if config.svf:
        if not isinstance(encoder, SvfEncoder):
            raise ConfigError(f"svf: encoder {encoder.name!r} has no singular values to scale: expected svf = false")
        offsets = encoder.layout.size
        rules["svf"] = [[matrix.name, matrix.rows, matrix.columns] for matrix in encoder.layout.matrices]
    return Setup(
        recorded=replace(recorded, workers=both.workers),  # who was left out is not in the pool, either
        make_encoder=make_encoder,
        known={},
        config=config.policy,
        offsets=offsets,
        tasks=tuple(question_to_task(question) for question in both.questions),
        allowed=tuple(frozenset(w for w, s in zip(both.workers, row, strict=True) if s == s) for row in both.first),
        keeps_draws=config.optimiser == "reinforce",
        card=Card(
            encoder=encoder.name,
            workers=tuple(WorkerIdentity(w, recorded.models[w]) for w in both.workers),
            rules=rules,
            training={},
            metrics={},
            baselines={},
        ),
    )


def _start_vector(config: EvolveConfig, dim: int, setup: Setup, start: Array | None) -> Array:
    """Raises ModelError: `start` does not fit."""
    workers = len(setup.card.workers)
    size = setup.offsets + count_head(config.policy, dim=dim, workers=workers)
    if start is not None:
        if start.shape != (size,) or not np.isfinite(start).all():
            raise ModelError(f"start of shape {start.shape}: expected ({size},), finite numbers only, offsets first")
        return start.astype(np.float32)
    vector = np.zeros(size, np.float32)
    if config.start == "module":
        rng = np.random.default_rng([config.seed, 4])
        vector[setup.offsets :] = find_variant(config.policy.head).initial(dim, workers + len(ROLES), rng)
    return vector


def _read_parts(encoder: TranscriptEncoder, setup: Setup, cache: Path | None, report: Reporter) -> dict[str, Array]:
    """States of all questions and of all that the workers wrote: without SVF they are the same for every candidate."""
    recorded = setup.recorded
    texts = {task.prompt for task in setup.tasks}
    for task in setup.tasks:
        for worker in recorded.workers:
            if rows := recorded.samples.get((task.id, worker)):
                texts.add(parse_thought(recorded.texts.get(task.id, {}).get(worker) or rows[0].answer))
    ordered = sorted(texts - {""})
    report.stage("encode questions and thoughts", len(ordered))
    questions = [Question(qid=text, prompt=text, split="") for text in ordered]
    states = encode_questions(encoder, questions, cache=cache, progress=report.advance)
    return dict(zip(ordered, states, strict=True))
