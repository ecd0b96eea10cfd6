"""Made-up recorded sets whose right choice is known, and an encoder that sees only what a question is about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = {"train": 96, "validation": 48, "test": 96}
SUBJECTS = ("rivers", "chess", "bread", "steam engines", "Latin verbs", "beetles")
SPECIALISTS: Mapping[str, Mapping[str, float]] = {
    "miller": {"rivers": 0.9, "bread": 0.9},
    "player": {"chess": 0.9, "steam engines": 0.9},
    "scholar": {"Latin verbs": 0.9, "beetles": 0.9},
    "handyman": dict.fromkeys(SUBJECTS, 0.55),
}
"""Worker -> subject -> how often it is right; 0.1 where nothing is said. The handyman is the best single worker."""
ALIKE = {"best": dict.fromkeys(SUBJECTS, 0.8), "second": dict.fromkeys(SUBJECTS, 0.5), "third": {}}
"""A pool without anything to gain: one worker is the best at everything."""


def write_world(
    folder: Path,
    skills: Mapping[str, Mapping[str, float]] = SPECIALISTS,
    *,
    seed: int = 0,
    subjects: Sequence[str] = SUBJECTS,
    splits: Mapping[str, int] = SPLITS,
    unseen: Sequence[str] = (),
    repeats: int = 1,
) -> Path:
    """A folder of the recorded format: `splits` questions of each split about `subjects`, and as many of the split
    `unseen` as of the split test about the subjects in `unseen`. Outcomes hang on the seed, the question and the
    worker's skill at it, so that no worker's name or place matters.
    """
    questions = []
    for split, count in {**splits, **({"unseen": splits["test"]} if unseen else {})}.items():
        about = unseen if split == "unseen" else subjects
        for number in range(count):
            subject = about[number % len(about)]
            questions.append(
                _question(f"{split}-{number}", subject, split, f"question {seed}.{number} for the {split}")
            )
    outcomes = [
        _outcome(question, worker, k, of_subject.get(question["family"], 0.1), place, seed)
        for question in questions
        for place, (worker, of_subject) in enumerate(skills.items())
        for k in range(repeats)
    ]
    return write_recorded(folder, questions, outcomes, models={w: {"model": f"maker/{w}"} for w in skills})


def write_recorded(
    folder: Path, questions: Iterable[object], outcomes: Iterable[object], *, models: Mapping[str, object] | None = None
) -> Path:
    """Rows as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("questions", questions), ("outcomes", outcomes)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if models is not None:
        (folder / "models.json").write_text(json.dumps({"models": models}))
    return folder


def read_rows(path: Path) -> list[dict[str, object]]:
    """A JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(*parts: object) -> float:
    """A number in 0..1 that hangs on nothing but the parts."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Subjects:
    """A `BulkEncoder`: the subject that a text names gives its direction, the rest of the text some noise."""

    name = "subjects"
    dim = 24

    def __init__(self, noise: float = 0.6) -> None:
        self._noise = noise

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        states = np.array([_direction(_subject_of(text)) + self._noise * _direction(text) for text in texts])
        return (states / np.linalg.norm(states, axis=1, keepdims=True)).astype(np.float32)


def forget(data: Path, worker: str) -> None:
    """Takes the answers of a worker out of a folder that `write_world` made, but for those of the split test."""
    outcomes = data / "outcomes.jsonl"
    rows = [json.loads(line) for line in outcomes.read_text().splitlines()]
    kept = [row for row in rows if row["model"] != worker or row["qid"].startswith("test-")]
    outcomes.write_text("".join(json.dumps(row) + "\n" for row in kept))


class Quiet:
    """A `Reporter` that keeps what it was told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.advanced = 0
        self.lines: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def advance(self, units: int) -> None:
        self.advanced += units

    def say(self, line: str) -> None:
        self.lines.append(line)


def _question(qid: str, subject: str, split: str, words: str) -> dict[str, object]:
    return {
        "qid": qid,
        "prompt": f"About {subject}: {words}?",
        "split": split,
        "gold": "yes",
        "dataset": "made-up",
        "category": subject.split()[-1],
        "family": subject,
    }


def _outcome(
    question: dict[str, object], worker: str, k: int, skill: float, place: int, seed: int
) -> dict[str, object]:
    is_right = draw(seed, question["qid"], place, k) < skill
    return {
        "qid": question["qid"],
        "model": worker,
        "k": k,
        "correct": float(is_right),
        "answer": "yes" if is_right else f"no {place}",
        "in_tokens": 10,
        "out_tokens": 5,
        "cost_usd": 0.001,
        "latency_s": 0.5,
    }


def _subject_of(text: str) -> str:
    return text.partition(":")[0]


def _direction(text: str) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(Subjects.dim)
    return vector / np.linalg.norm(vector)
