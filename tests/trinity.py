"""A made-up pool in which agreement tells who is right, and heads of `fugu-trinity` for real installations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coordinators import Weights, make_evidence, make_tri_head
from outcomes import SUBJECTS, draw, write_recorded
from torafugu.orchestrate.artefact import Card, WorkerIdentity
from torafugu.orchestrate.coordinator import CoordinatorHead
from torafugu.orchestrate.head import FeatureMap
from torafugu.orchestrate.situation import Prospect
from torafugu.orchestrate.tri_head import Rules
from torafugu.train.rollout import World

VOICES = ("left", "right", "third")
PATTERN = (
    *[(1, 1, 1)] * 5,
    *[(1, 1, 0)] * 5,
    *[(1, 0, 1)] * 2,
    *[(1, 0, 0)] * 2,
    *[(0, 1, 1)] * 2,
    *[(0, 1, 0)] * 2,
    *[(0, 0, 0)] * 2,
)
"""Who is right on each of twenty questions. `left` and `right` are right on 14 each and independently; where they agree
they are right; `third` is right on 9, of which 4 settle a disagreement. Wrong answers never agree.
"""
SINGLE_SCORE, AGREEING_SCORE, AGREEING_CALLS = 14 / 20, 16 / 20, 2.5
"""Of either good worker; of asking the third only where the two differ (half of what stays open is right by chance)."""


def make_pattern_world(count: int = 100, cost: Sequence[float] = (1.0, 0.5, 0.1)) -> World:
    """The pattern again and again; nothing is known of a question beforehand."""
    score = np.array(PATTERN * -(-count // len(PATTERN)), np.float64)[:count]
    right = score > 0
    same = (right[:, :, None] & right[:, None, :]) | np.eye(len(VOICES), dtype=bool)
    return World(
        score=score,
        same=same,
        alike=same,
        cost=np.tile(np.array(cost), (count, 1)),
        length=np.full(score.shape, np.nan),
        prospect=Prospect(deviation=np.zeros((count, len(VOICES))), familiarity=np.zeros(count)),
        unreadable=np.zeros(count, bool),
    )


def write_pattern(
    folder: Path,
    splits: Mapping[str, int] = {"train": 60, "validation": 20, "test": 40},
    *,
    subjects: Sequence[str] = SUBJECTS[:1],
) -> Path:
    """The same as a folder of the recorded format. Texts tell nothing but the subject; all calls cost the same."""
    questions, outcomes = [], []
    for split, count in splits.items():
        for i in range(count):
            subject = subjects[i // len(PATTERN) % len(subjects)]
            qid = f"{split}-{i}"
            questions.append(
                {"qid": qid, "prompt": f"About {subject}: {draw(qid)}?", "split": split, "dataset": "made-up"}
                | {"category": subject, "family": subject, "gold": "yes"}
            )
            for worker, is_right in zip(VOICES, PATTERN[i % len(PATTERN)], strict=True):
                answer = "yes" if is_right else f"no, says {worker}"
                row = {"qid": qid, "model": worker, "k": 0, "correct": float(is_right), "answer": answer}
                outcomes.append(row | {"in_tokens": 10, "out_tokens": 5, "cost_usd": 0.001, "latency_s": 0.5})
    return write_recorded(folder, questions, outcomes, models={w: {"model": f"maker/{w}"} for w in VOICES})


def save_trinity(
    folder: Path,
    ability: Mapping[str, float],
    *,
    encoder: str,
    dim: int,
    role: Weights = {},  # noqa: B006
    worker: Weights = {"worker": {"ability": 1.0}},  # noqa: B006
    rules: Rules = Rules(roles=("worker", "verifier")),  # noqa: B008  # frozen
    models: Mapping[str, str] = {},
) -> Path:
    """A head that reads no question. `ability`: worker -> what the feature of this name says; a worker stands for the
    model of its name unless `models` says another.
    """
    features = FeatureMap(np.zeros(dim, np.float32), np.zeros((dim, 1), np.float32))
    card = Card(
        encoder=encoder,
        workers=tuple(WorkerIdentity(id, models.get(id, id)) for id in ability),
        training={},
        metrics={},
        baselines={"best_single": {"worker": max(ability, key=lambda id: ability[id]), "accuracy": 0.5}},
    )
    CoordinatorHead.create(
        features,
        np.zeros((len(ability), features.size)),
        make_evidence(len(ability), ability=np.array(list(ability.values()))),
        make_tri_head(role, worker),
        rules,
        card,
    ).save(folder)
    return folder
