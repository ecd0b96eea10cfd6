"""`envs/jsonl.py`: one's own tasks from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torafugu.envs.home import prompt_to_split
from torafugu.envs.jsonl import read_tasks
from torafugu.errors import ConfigError
from torafugu.grade import TaskGrader
from torafugu.types import Reply

GOOD = '{"prompt": "2 + 2?", "gold": "4"}\n'


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_line_is_a_task(tmp_path: Path) -> None:
    """Only prompt and gold are needed; the rest is filled in, and blank lines are passed over."""
    (task,) = read_tasks(write(tmp_path, "\n" + GOOD + "\n"))
    assert (task.id, task.prompt, task.gold, task.dataset) == ("mine/2", "2 + 2?", "4", "mine")
    assert task.split == prompt_to_split("2 + 2?")


def test_everything_can_be_said(tmp_path: Path) -> None:
    """Id, family, category, split and options are taken as they stand; the options are shown in the prompt."""
    row = {"prompt": "Which?", "gold": "B", "id": "q1", "family": "f", "category": "c", "split": "test"}
    (task,) = read_tasks(write(tmp_path, json.dumps({**row, "options": ["red", "green"]})))
    assert (task.id, task.family, task.category, task.split) == ("q1", "f", "c", "test")
    assert task.prompt == "Which?\n\nA. red\nB. green"


@pytest.mark.parametrize(
    ("answer", "correct"), [("so 4", False), ("<answer>4.0</answer>", True), ("5", False), ("", False)]
)
def test_tasks_are_graded_by_their_gold(tmp_path: Path, answer: str, correct: bool) -> None:
    """The answer counts as a number or as text, wherever the grader looks for it; a wrong or empty one does not."""
    (task,) = read_tasks(write(tmp_path, GOOD))
    verdict = TaskGrader().grade(task, Reply(worker="w", text=answer, finish_reason="stop"))
    assert verdict.correct is correct


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no tasks in it"),
        (
            '{"prompt": "2 + 2?"}',
            r'line 1: .*missing required field `gold`.*expected \{"prompt": "...", "gold": "..."\}',
        ),
        (GOOD + '{"prompt": "x", "gold": 3}', "line 2: Expected `str`, got `int`"),
        ('{"prompt": "x", "gold": "y", "splitt": "test"}', "line 1: .*unknown field `splitt`"),
        ('{"prompt": "x", "gold": " "}', "line 1: an empty prompt or gold"),
        ('{"prompt": "", "gold": "y"}', "line 1: an empty prompt or gold"),
        ('{"prompt": "x", "gold": "y", "id": "a"}\n' * 2, "line 2: id 'a' stands twice"),
        (b'{"prompt": "\xff", "gold": "y"}', "line 1"),
        ("[1]", "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    """What is wrong with a file is said with the line, before any worker is asked."""
    with pytest.raises(ConfigError, match=message):
        read_tasks(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is a clear error."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tasks(tmp_path / "none.jsonl")
