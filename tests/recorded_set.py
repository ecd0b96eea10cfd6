"""A folder of the recorded format with workers of chosen skills: what tests of training and evaluation start from."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

OPENERS: dict[str, Callable[..., Any]] = {".jsonl": open, ".jsonl.xz": lzma.open, ".jsonl.gz": gzip.open}
SPLITS = ("train", "train", "train", "validation", "test")
"""Question i of a family belongs to split i modulo 5."""


def write_rows(folder: Path, stem: str, rows: Iterable[Mapping[str, Any]], ending: str = ".jsonl") -> None:
    """One JSON line per row."""
    folder.mkdir(parents=True, exist_ok=True)
    with OPENERS[ending](folder / (stem + ending), "wb") as file:
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def write_set(
    folder: Path,
    skills: Mapping[str, Mapping[str, float]],
    *,
    per_family: int = 20,
    seed: int = 0,
    missing: float = 0.0,
    splits: tuple[str, ...] = SPLITS,
    ending: str = ".jsonl",
) -> Path:
    """`skills`: worker -> family -> how often it is right. A share `missing` of the outcomes was never recorded.

    Who is wrong answers "wrong <worker>", so that wrong answers never agree. Each worker costs 1 and 2 USD per million
    tokens; a question has 10 tokens and an answer 5.
    """
    rng = np.random.default_rng(seed)
    families = sorted({family for by_family in skills.values() for family in by_family})
    questions, outcomes = [], []
    for family in families:
        for i in range(per_family):
            qid, gold = f"{family}/{i}", f"gold {i}"
            prompt, split = f"{family} question {i} of seed {seed}", splits[i % len(splits)]
            names = {"dataset": "made-up", "category": f"about {family}", "family": family, "source": "a test"}
            questions.append({"qid": qid, "prompt": prompt, "split": split, "gold": gold, **names})
            for worker, by_family in skills.items():
                is_right, is_missing = rng.random() < by_family[family], rng.random() < missing
                if not is_missing:
                    answer = gold if is_right else f"wrong {worker}"
                    outcomes.append(outcome(qid, worker, int(is_right), answer=answer, in_tokens=10, out_tokens=5))
    write_rows(folder, "questions", questions, ending)
    write_rows(folder, "outcomes", outcomes, ending)
    prices = {"price_usd_per_million": {"input": 1, "output": 2}}
    models = {worker: {"model": f"{worker}-1", **prices} for worker in skills}
    (folder / "models.json").write_text(json.dumps({"models": models}))
    return folder


def question(qid: str, split: str = "test", **fields: Any) -> dict[str, Any]:
    """A row of `questions`."""
    return {"qid": qid, "prompt": f"question {qid}", "split": split, "dataset": "d", **fields}


def outcome(qid: str, model: str, correct: float, **fields: Any) -> dict[str, Any]:
    """A row of `outcomes`."""
    return {"qid": qid, "model": model, "k": 0, "correct": correct, **fields}
