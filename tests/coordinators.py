"""What tests of the tri-role coordinator share: hand-made heads, recorded answers of any pattern, and runs of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heads import DIM, Texts
from recorded_set import outcome, question, write_rows
from runs import Record
from torafugu.envs.recorded import recorded_tasks
from torafugu.episode import task_to_request
from torafugu.errors import PlanError
from torafugu.events import Answered, Called, Planned
from torafugu.grade.recorded import RecordedGrader
from torafugu.orchestrate import orchestrate
from torafugu.orchestrate.artefact import Card, WorkerIdentity
from torafugu.orchestrate.coordinator import Coordinator, CoordinatorHead
from torafugu.orchestrate.head import FeatureMap
from torafugu.orchestrate.situation import RUN_FEATURES, WORKER_FEATURES, Evidence, Lengths, measure_length
from torafugu.orchestrate.tri_head import ROLES, Rules, TriHead
from torafugu.pool.recorded import RecordedSet, create_recorded_pool, read_recorded
from torafugu.train.rollout import World

Floats = npt.NDArray[np.float64]
Weights = Mapping[str, Mapping[str, float]]

RULES = {
    "default": Rules(),
    "paper": Rules(recall=False, max_turns=5, max_calls=5, transcript="shared"),
    "paper, without thinker": Rules(recall=False, max_turns=5, roles=("worker", "verifier")),
    "without verifier": Rules(roles=("worker", "thinker")),
    "workers only": Rules(roles=("worker",), max_calls=3),
    "shared": Rules(transcript="shared", max_turns=14),
    "few calls": Rules(max_calls=2, max_turns=6),
    "few turns": Rules(max_turns=2),
    "long": Rules(max_turns=20, max_calls=12),
}


def make_tri_head(role: Weights, worker: Weights) -> TriHead:
    """Role -> feature -> weight, for the choice of the role and for that of the worker; all else is 0."""
    head = TriHead(np.zeros((3, len(RUN_FEATURES))), np.zeros((3, len(WORKER_FEATURES))))
    for table, names, array in ((role, RUN_FEATURES, head.role), (worker, WORKER_FEATURES, head.worker)):
        for name, weights in table.items():
            for feature, weight in weights.items():
                array[ROLES.index(name), names.index(feature)] = weight
    return head


def make_evidence(size: int, **changes: object) -> Evidence:
    """Earlier workers are better; two voices beat "none", one about ties with it. A point of deviation is worth the
    same whether all workers or one is above its usual.
    """
    ability = np.linspace(0.9, 0.5, size)
    fields = {
        "weight": np.full(size, 1.0),
        "of_deviation": 0.0,
        "of_easiness": changes.get("of_deviation", 0.0),
        "none": np.zeros(5),
        "ability": ability,
        "in_log_odds": False,
        "overlap": np.zeros((size, size)),
        "cost": np.zeros(size),
        "lengths": Lengths.unread(size),
    }
    return Evidence(**(fields | changes))  # type: ignore[arg-type]


def draw_evidence(size: int, seed: int) -> Evidence:
    """Any numbers: nothing may hang on their being sensible."""
    draw = np.random.default_rng([seed, 1])
    return Evidence(
        weight=draw.normal(1, 1, size),
        of_deviation=float(draw.normal()),
        of_easiness=float(draw.normal()),
        none=draw.normal(size=5),
        ability=draw.random(size),
        in_log_odds=seed % 3 == 0,
        overlap=draw.random((size, size)),
        cost=draw.random(size),
        lengths=Lengths(
            mean=draw.normal(4, 1, size),
            scale=0.5 + draw.random(size),
            of_voice=float(draw.normal()),
            of_none=float(draw.normal()),
        ),
    )


def make_head(
    workers: Sequence[str],
    head: TriHead | None = None,
    rules: Rules = Rules(),  # noqa: B008  # frozen
    *,
    evidence: Evidence | None = None,
    seed: int = 0,
    encoder: str = "texts",
) -> CoordinatorHead:
    """Random weights but for what is given; worker `w` stands for the model `w-1`."""
    draw = np.random.default_rng(seed)
    projection, _ = np.linalg.qr(draw.standard_normal((DIM, DIM)))
    landmarks = draw.standard_normal((5, DIM)).astype(np.float32) / 2
    features = FeatureMap(np.zeros(DIM, np.float32), projection.astype(np.float32), landmarks, 1.0)
    identities = tuple(WorkerIdentity(worker, f"{worker}-1") for worker in workers)
    return CoordinatorHead.create(
        features,
        draw.normal(0, 0.5, (len(workers), features.size)),
        evidence or draw_evidence(len(workers), seed),
        head or TriHead.from_vector(draw.standard_normal(TriHead.size())),
        rules,
        Card(encoder=encoder, workers=identities, training={}, metrics={}, baselines={}),
    )


def write_answers(folder: Path, *, workers: str = "abcd", count: int = 10, seed: int = 0) -> RecordedSet:
    """Random answers out of few, so that they often agree, in one of two wordings; a tenth is empty, a sixth was never
    recorded, of a fifth the tokens were not counted.
    """
    draw = np.random.default_rng([seed, 2])
    write_rows(folder, "questions", [question(f"q{i}") for i in range(count)])
    rows = []
    for i in range(count):
        for k, worker in enumerate(workers):
            answer = str(draw.choice(["right", "Right.", "wrong", "other", ""], p=[0.25, 0.25, 0.2, 0.2, 0.1]))
            score = {"right": 1.0, "Right.": 0.75, "other": 0.25}.get(answer, 0.0)
            if draw.random() > 1 / 6 or k == i % len(workers):  # someone was asked
                counted = {} if draw.random() < 0.2 else {"out_tokens": int(draw.integers(0, 1000))}
                rows.append(outcome(f"q{i}", worker, score, answer=answer, **counted))
    write_rows(folder, "outcomes", rows)
    return read_recorded(folder)


def to_world(recorded: RecordedSet, head: CoordinatorHead) -> World:
    """The same answers as arrays."""
    n, size = len(recorded.questions), len(recorded.workers)
    score, length = np.full((n, size), np.nan), np.full((n, size), np.nan)
    same, alike = np.zeros((n, size, size), bool), np.zeros((n, size, size), bool)
    for i, row in enumerate(recorded.questions):
        samples = [recorded.samples.get((row.qid, worker)) for worker in recorded.workers]
        for j, found in enumerate(samples):
            if found is not None:
                score[i, j] = found[0].correct
                length[i, j] = measure_length(found[0].out_tokens)
                for k, other in enumerate(samples):
                    texts = [found[0].answer, "" if other is None else other[0].answer]
                    alike[i, j, k] = texts[0] == texts[1] != ""
                    same[i, j, k] = alike[i, j, k] or sorted(texts) == ["Right.", "right"]
    return World(
        score=score,
        same=same,
        alike=alike,
        cost=np.random.default_rng(3).random((n, size)),
        length=length,
        prospect=head.prospect(Texts().states([row.text for row in recorded.questions])),
        unreadable=np.zeros(n, bool),
    )


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One question, through the loop."""

    record: Record
    score: float
    answered_by: str | None
    turns: int | None
    """None: nobody answered."""
    stopped: str | None
    worded_by: str | None = None
    """Whose wording of the accepted answer was returned, where it is not the current one's."""

    @property
    def plans(self) -> list[Planned]:
        return [event for event in self.record.events if isinstance(event, Planned)]

    @property
    def called(self) -> list[tuple[str, str]]:
        """(role, worker) of each call, in order."""
        roles = {step.id: step.role for planned in self.plans for step in planned.plan.steps}
        return [(roles[e.step], e.worker) for e in self.record.events if isinstance(e, Called)]

    @property
    def turns_taken(self) -> list[tuple[str, str, bool]]:
        """(role, worker, whether it was called) of every turn, read off the record's plans and answer alone."""
        turns: list[tuple[str, str, bool]] = []
        for event in self.record.events:
            if isinstance(event, Planned):
                turns += [(role, worker, False) for role, worker in event.plan.notes["recalled"]]
                turns.append((event.plan.steps[0].role, event.plan.steps[0].worker, True))
            elif isinstance(event, Answered):
                turns += [(role, worker, False) for role, worker in event.notes.get("recalled", ())]
        return turns


def run_recorded(recorded: RecordedSet, head: CoordinatorHead) -> list[Ran]:
    """Every question through `orchestrate`; only workers that were asked it are allowed."""
    pool, grader = create_recorded_pool(recorded), RecordedGrader(recorded)
    policy = Coordinator(head, Texts(), {worker: f"{worker}-1" for worker in recorded.workers})

    async def play() -> list[Ran]:
        ran = []
        for task in recorded_tasks(recorded):
            record = Record()
            allowed = frozenset(w for w in recorded.workers if (task.id, w) in recorded.samples)
            try:
                run = await orchestrate(task_to_request(task, allowed=allowed), policy, pool, recorder=record)
            except PlanError:
                ran.append(Ran(record=record, score=0.0, answered_by=None, turns=None, stopped=None))
                continue
            answered = next(event for event in run.events if isinstance(event, Answered))
            assert run.answer is not None
            ran.append(
                Ran(
                    record=record,
                    score=grader.grade(task, run.answer).score,
                    answered_by=run.answer.worker,
                    turns=answered.notes["turns"],
                    stopped=answered.notes["stopped"],
                    worded_by=answered.notes.get("worded_by"),
                )
            )
        return ran

    return asyncio.run(play())
