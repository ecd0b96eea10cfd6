"""Reading a text for who did what, and what follows from two statements."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

from .reading import Skill, Worked

__all__ = ["REASONING"]

_WHO = re.compile(r"(?:^|\n) ?Who ([^?\n]{3,200})\?")
_STATEMENT = re.compile(r"\b(All|No|Some) ([a-z]{2,30}) are (not )?([a-z]{2,30})")


def find_who(question: str) -> Worked | None:
    """The subject of the statement that ends in the words asked for."""
    asked = _WHO.search(question)
    if asked is None:
        return None
    for statement in re.split(r"\.\s", question[: asked.start()] + " "):
        if statement.endswith(f" {asked[1]}"):
            name = statement.removesuffix(f" {asked[1]}").strip()
            return Worked(name, f"The text says so: {name} {asked[1]}.") if len(name) <= 60 else None
    return None


def judge_syllogism(question: str) -> Worked | None:
    """Whether the last of three statements holds wherever the first two hold, if none of the three kinds is empty."""
    statements = _STATEMENT.findall(question)
    if len(statements) != 3 or "follow" not in question:
        return None
    kinds = sorted({kind for _, first, _, second in statements for kind in (first, second)})
    if len(kinds) != 3:
        return None
    *premises, conclusion = statements
    members = list(product((False, True), repeat=3))  # which kinds a thing may belong to
    for world in range(1, 2 ** len(members)):
        things = [dict(zip(kinds, m, strict=True)) for i, m in enumerate(members) if world >> i & 1]
        if not all(any(thing[kind] for thing in things) for kind in kinds):
            continue
        if all(_holds(premise, things) for premise in premises) and not _holds(conclusion, things):
            return Worked("No", "There is a case in which both statements hold and the conclusion does not.")
    return Worked("Yes", "In every case in which both statements hold, so does the conclusion.")


def _holds(statement: tuple[str, str, str, str], things: list[dict[str, bool]]) -> bool:
    quantifier, first, negation, second = statement
    is_second = [thing[second] != bool(negation) for thing in things if thing[first]]
    if quantifier == "All":
        return all(is_second)
    return any(is_second) == (quantifier == "Some")


REASONING: Mapping[str, Skill] = {"find_who": find_who, "judge_syllogism": judge_syllogism}
