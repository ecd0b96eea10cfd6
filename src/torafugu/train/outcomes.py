"""Recorded outcomes as training material: what is left of a matrix, how it is split, what is written down of a run."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import ConfigError
from ..eval.matrix import OutcomeMatrix, best_single, build_matrix
from ..eval.provenance import describe_data, find_commit
from ..pool.recorded import RecordedSet
from ..types import Json

__all__ = ["answered", "describe_best_single", "keep_log", "read_outcomes", "write_run"]

_CARVED_SHARE = 5
"""Without a validation split, every fifth training question stands in."""
_FEW = 100
"""Questions. What is chosen by fewer is mostly chance."""
_PACKAGES: Sequence[str] = ("numpy", "onnxruntime", "safetensors", "tokenizers")


def answered(matrix: OutcomeMatrix) -> OutcomeMatrix:
    """Without the questions that no worker was asked, as a profile that was cut short leaves them."""
    return matrix.rows(np.flatnonzero(np.isfinite(matrix.mean).any(1)))


def read_outcomes(recorded: RecordedSet, say: Callable[[str], None]) -> tuple[OutcomeMatrix, OutcomeMatrix]:
    """(train, validation) of what can be learnt from; what is left out of the data is said.

    Raises:
        ConfigError: there are fewer than two training questions, or fewer than two workers.
    """
    matrix = answered(build_matrix(recorded).split("train", "validation"))
    known = [j for j in range(len(matrix.workers)) if np.isfinite(matrix.mean[:, j]).any()]
    if len(matrix) and len(known) < len(matrix.workers):
        unknown = ", ".join(worker for j, worker in enumerate(matrix.workers) if j not in known)
        say(f"left out: {unknown}: answered no question of the splits 'train' and 'validation'")
        matrix = matrix.columns(known)
    if 1 < len(matrix) < _FEW:
        say(f"{len(matrix)} questions of the splits 'train' and 'validation': better some hundred, or chance chooses")
    return _split(matrix, recorded)


def _split(matrix: OutcomeMatrix, recorded: RecordedSet) -> tuple[OutcomeMatrix, OutcomeMatrix]:
    train, validation = matrix.split("train"), matrix.split("validation")
    path = recorded.path
    if len(train) == 0:
        found = ", ".join(sorted({q.split for q in recorded.questions}))
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


@contextmanager
def keep_log(out: Path, recorded: RecordedSet, config: Json) -> Iterator[Callable[..., None]]:
    """Gives what writes a row of `metrics.jsonl`; `run.json` is written beside it at the end. Until then, and where the
    run is cut, the files of an earlier one stay: they belong to the head that is there.

    Raises:
        ConfigError: the folder is a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{out}: a file: expected a folder") from None
    part = out / "metrics.jsonl.part"
    with part.open("w") as file:

        def log(**row: Json) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield log
    part.replace(out / "metrics.jsonl")
    write_run(out, recorded, config)


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
