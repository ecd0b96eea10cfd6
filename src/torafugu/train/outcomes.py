"""Recorded outcomes as training material: what is left of a matrix, how it is split, what is written down of a run."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import ConfigError
from ..eval.matrix import OutcomeMatrix, best_single
from ..eval.provenance import describe_data, find_commit
from ..pool.recorded import RecordedSet
from ..types import Json

__all__ = ["answered", "describe_best_single", "split_outcomes", "write_run"]

_CARVED_SHARE = 5
"""Without a validation split, every fifth training question stands in."""
_PACKAGES: Sequence[str] = ("numpy", "onnxruntime", "safetensors", "tokenizers")


def answered(matrix: OutcomeMatrix) -> OutcomeMatrix:
    """Without the questions that no worker was asked, as a profile that was cut short leaves them."""
    return matrix.rows(np.flatnonzero(np.isfinite(matrix.mean).any(1)))


def split_outcomes(matrix: OutcomeMatrix) -> tuple[OutcomeMatrix, OutcomeMatrix]:
    """(train, validation).

    Raises:
        ConfigError: there are fewer than two training questions, or fewer than two workers.
    """
    train, validation = matrix.split("train"), matrix.split("validation")
    path = matrix.recorded.path
    if len(train) == 0:
        found = ", ".join(sorted({q.split for q in matrix.questions}))
        raise ConfigError(f"{path}: no questions of split 'train': the folder has {found}")
    if len(train) == 1:
        raise ConfigError(f"{path}: one question of split 'train': expected at least 2, better some hundred")
    if len(matrix.workers) < 2:
        raise ConfigError(f"{path}: one worker, {matrix.workers[0]!r}: there is nothing to choose among")
    if len(validation) == 0:
        rows = np.arange(len(train))
        train, validation = train.rows(rows[rows % _CARVED_SHARE != 0]), train.rows(rows[rows % _CARVED_SHARE == 0])
    return train, validation


def describe_best_single(matrix: OutcomeMatrix) -> dict[str, Json]:
    column = best_single(matrix)
    return {
        "best_single": {"worker": matrix.workers[column], "accuracy": float(np.nanmean(matrix.mean[:, column]))},
        "chosen_on": "train and validation",
    }


def write_run(out: Path, recorded: RecordedSet, config: Json) -> None:
    """`run.json`: all that it takes to repeat the run."""
    row = {
        "command": sys.argv,
        "config": config,
        "data": describe_data(recorded),
        "commit": find_commit(),
        "python": platform.python_version(),
        "packages": {"torafugu": __version__, **{name: version(name) for name in _PACKAGES}},
    }
    (out / "run.json").write_text(json.dumps(row, indent=1) + "\n")
