"""A task: a problem with a grader. Where tasks come from is `envs`; how they are graded is beside this file."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import Json, Value

__all__ = ["Task"]


class Task(Value, frozen=True, kw_only=True):
    """One question whose answer can be checked."""

    id: str
    family: str
    """The kind of question, as fine as its source distinguishes."""
    category: str
    dataset: str
    """Name of the source."""
    prompt: str
    """What a worker is asked, word for word."""
    gold: str | None
    """A right answer; None when only the grader can tell."""
    split: str
    """train | validation | test"""
    options: tuple[str, ...] | None = None
    """The choices of a multiple-choice question, A first; the prompt shows them as well."""
    meta: Mapping[str, Json] = {}
    """What the grader needs beyond `gold`. Workers and policies never see it."""
