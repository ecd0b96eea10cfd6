"""The recorded answers of real models in `../shared/data`: that they are read whole, and score as their table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torafugu.errors import ConfigError
from torafugu.eval.matrix import OutcomeMatrix, best_single, build_matrix
from torafugu.pool.recorded import read_recorded

HERE = Path(__file__).resolve().parents[2] / "shared" / "data" / "recorded"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not (HERE / "MANIFEST.json").exists(), reason=f"no recorded answers at {HERE}"),
]
POOLS = ("pool_a", "pool_b", "pool_c", "pool_e")


def read_json(name: str) -> Any:
    return json.loads((HERE / name).read_bytes())


@pytest.fixture(scope="module", params=POOLS)
def matrix(request: pytest.FixtureRequest) -> OutcomeMatrix:
    return build_matrix(read_recorded(HERE / request.param))


def test_counts(matrix: OutcomeMatrix) -> None:
    """Every row of the manifest is read: questions, answers, and a worker for each model of the table."""
    pool, manifest = matrix.recorded.path.name, read_json("MANIFEST.json")
    assert len(matrix) == manifest[f"{pool}/questions.jsonl.xz"]["rows"]
    assert sum(map(len, matrix.recorded.samples.values())) == manifest[f"{pool}/outcomes.jsonl.xz"]["rows"]
    listed = {name for name, model in read_json("models.json")["models"].items() if pool in model}
    assert set(matrix.workers) == listed
    assert {q.split for q in matrix.questions} == {"train", "validation", "test"}


def test_accuracies(matrix: OutcomeMatrix) -> None:
    """Every worker's share of right answers in every dataset is the table's, as near as one can expect.

    The table is of all questions; a fifth of them, and some whole families, are kept out of these folders.
    """
    families_out = 0.05 if matrix.recorded.path.name == "pool_e" else 0.02  # law and engineering are harder than most
    datasets = np.array([q.dataset for q in matrix.questions])
    table, compared = read_json("models.json")["models"], 0
    for j, worker in enumerate(matrix.workers):
        for dataset, expected in table[worker][matrix.recorded.path.name]["accuracy"].items():
            scores = matrix.first[datasets == dataset, j]
            scores = scores[np.isfinite(scores)]
            if not len(scores):
                continue  # a dataset that is kept out as a whole
            error = 4 * (expected * (1 - expected) / len(scores)) ** 0.5 + families_out
            assert scores.mean() == pytest.approx(expected, abs=error), (worker, dataset)
            compared += 1
    assert compared >= len(matrix.workers)


def test_prices(matrix: OutcomeMatrix) -> None:
    """A worker has a price exactly where the table has one, and so its answers have a cost."""
    models = read_json("models.json")["models"]
    for j, worker in enumerate(matrix.workers):
        price = models[worker]["price_usd_per_million"]
        assert (worker in matrix.recorded.prices) == (price is not None)
        asked = np.isfinite(matrix.first[:, j])
        assert np.isfinite(matrix.cost_usd[asked, j]).all() == (price is not None)
        assert not np.isfinite(matrix.cost_usd[~asked, j]).any()


@pytest.mark.parametrize(
    ("pool", "datasets", "worker"),
    [
        ("pool_a", ["rg-hard"], "o3-mini"),
        ("pool_b", ["kor", "crux", "math-l5"], "gpt-4o-2024-08-06"),
        ("pool_c", [], "deepseek-r1"),
        ("pool_e", [], "gemini-1.5-pro-002"),
    ],
)
def test_best_single(pool: str, datasets: list[str], worker: str) -> None:
    """The best single worker on the training split is the one that the table says, too."""
    train = build_matrix(read_recorded(HERE / pool, datasets=datasets)).split("train")
    assert train.workers[best_single(train)] == worker


def test_texts() -> None:
    """Texts are read where they were recorded: one for every question of pool_a, from a worker of the pool."""
    recorded = read_recorded(HERE / "pool_a", with_texts=True)
    assert set(recorded.texts) == {q.qid for q in recorded.questions}
    assert {worker for texts in recorded.texts.values() for worker in texts} <= set(recorded.workers)


def test_other_collections() -> None:
    """pool_d holds its files under other names and is no folder of the format, which is said."""
    with pytest.raises(ConfigError, match=r"pool_d: no questions\.jsonl, questions\.jsonl\.xz or"):
        read_recorded(HERE / "pool_d")
