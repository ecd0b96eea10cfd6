"""One's own tasks, from a JSON-lines file: one object per line.

    {"prompt": "What is 2 + 2?", "gold": "4", "family": "sums", "category": "maths"}

`prompt` and `gold` are required. `id` defaults to the line number, `split` to the home pool's rule (by hash of the
prompt), `options` makes it multiple choice. Answers are compared as numbers or normalised text.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..grade.task import Task
from .home import prompt_to_split

__all__ = ["read_tasks"]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    gold: str
    id: str | None = None
    family: str = "own"
    category: str = "own"
    split: str | None = None
    options: tuple[str, ...] | None = None


def read_tasks(path: Path) -> list[Task]:
    """Raises ConfigError: the file is missing or empty, or a line is malformed or has the id of another."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            expected = '{"prompt": "...", "gold": "..."}'
            raise ConfigError(f"{path}: line {number}: {error}: expected {expected}") from None
        if not row.prompt.strip() or not row.gold.strip():
            raise ConfigError(f"{path}: line {number}: an empty prompt or gold: there would be nothing to grade")
        task = _to_task(row, number, path.stem)
        if task.id in tasks:
            raise ConfigError(f"{path}: line {number}: id {task.id!r} stands twice")
        tasks[task.id] = task
    if not tasks:
        raise ConfigError(f"{path}: no tasks in it")
    return list(tasks.values())


def _to_task(row: _Line, number: int, dataset: str) -> Task:
    prompt = row.prompt
    if row.options:
        prompt += "\n\n" + "\n".join(f"{chr(65 + i)}. {option}" for i, option in enumerate(row.options))
    return Task(
        id=row.id or f"{dataset}/{number}",
        family=row.family,
        category=row.category,
        dataset=dataset,
        prompt=prompt,
        gold=row.gold,
        split=row.split or prompt_to_split(prompt),
        options=row.options,
        meta={"grader": "exact"},
    )
