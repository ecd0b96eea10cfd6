"""What holds a model to the plan language while it writes: a JSON Schema, and a grammar in llama.cpp's notation."""

from __future__ import annotations

from collections.abc import Iterable

from ..types import Json
from .plan import PlanFormat, Workflow, limit_entries, write_workflow
from .plan_text import ORDERS

__all__ = ["workflow_grammar", "workflow_schema"]


def workflow_schema(format: PlanFormat) -> Json:
    """A JSON Schema of an object with the three lists, in the format's order, for strict structured outputs.

    What it allows is read, but for what a schema cannot say: that the lists are equally long, that references point
    back and leave out no step, that subtasks are not blank, that the conductor comes last. Of keywords that not all
    providers take it has only `minItems` and `maxItems` (fine-tuned models at OpenAI, Anthropic); the parser checks
    lengths anyway, so these may be taken out for them.
    """
    length = {"maxItems": format.max_steps} | ({} if format.may_return else {"minItems": 1})
    seen = _list_referable(format)
    entries: list[Json] = [{"type": "string", "enum": ["all"]}]
    if seen:
        entries.append({"type": "integer", "enum": list(seen)})
    access = {
        "type": "array",
        "items": {"anyOf": entries} if seen else entries[0],
        "maxItems": max(1, limit_entries(format)),
    }
    items: dict[str, Json] = {
        "model_id": {"type": "integer", "enum": list(format.offered)},
        "subtasks": {"type": "string"},
        "access_list": access,
    }
    order = ORDERS[format.order]
    return {
        "type": "object",
        "properties": {label: {"type": "array", "items": items[label], **length} for label in order},
        "required": list(order),
        "additionalProperties": False,
    }


def _list_referable(format: PlanFormat) -> tuple[int, ...]:
    """The numbers that an access list may hold."""
    if format.access == "worker":
        return tuple(number for number in format.offered if number != format.itself)
    return tuple(range(format.max_steps - 1)) if format.access == "position" else ()


# Blank first, then something to see. Whatever an escape stands for counts as blank, but \" \\ and \/.
_TEXT_RULES = r"""
subtask ::= "\"" blank* solid char* "\""
blank ::= [ \xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\x80-\x9F] | "\\" ([nrt] | "u00" [0-7] [0-9a-fA-F])
solid ::= [^"\\\x00-\x20\x7F-\xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000] | "\\" ["\\/]
char ::= [^"\\\x00-\x1F\x7F] | "\\" (["\\/nrt] | "u00" [0-7] [0-9a-fA-F])"""


def workflow_grammar(format: PlanFormat) -> str:
    """A GBNF grammar (llama.cpp) of the canonical text, without a thought before it.

    One rule per number of steps, so the lists are equally long and positions point back: list lengths that do not agree
    are the commonest fault of small models. What it cannot say: that each step is read by a later one (positions), and
    that a model in an access list has had a step (workers).
    """
    counts = range(1, format.max_steps + 1)
    rules = ["root ::= " + " | ".join([*["nothing"] * format.may_return, *(f"plan-{n}" for n in counts)])]
    if format.may_return:
        rules.append("nothing ::= " + _quote(write_workflow(Workflow(steps=()), format)))
    rules += [_plan_rule(n, format) for n in counts]
    workers = [number for number in format.offered if number != format.itself]
    rules.append("worker ::= " + _alternate(workers))
    if format.itself in format.offered and format.max_steps > 1:
        rules.append("last ::= " + _alternate(format.offered))
    rules += [_access_rule(i, format) for i in range(format.max_steps)]
    return "\n".join(rules) + _TEXT_RULES + "\n"


def _plan_rule(count: int, format: PlanFormat) -> str:
    workers = ["worker"] * count
    if count > 1 and format.itself in format.offered:
        workers[-1] = "last"
    items = {
        "model_id": workers,
        "subtasks": ["subtask"] * count,
        "access_list": [f"access-{i}" for i in range(count)],
    }
    lines = [f'"{label}: [" ' + ' ", " '.join(items[label]) for label in ORDERS[format.order]]
    return f"plan-{count} ::= " + r' "]\n" '.join(lines) + ' "]"'


def _access_rule(position: int, format: PlanFormat) -> str:
    rule = f'access-{position} ::= "[]"'
    if position or format.has_history:
        rule += r' | "[\"all\"]"'
    if position == 0 or format.access == "binary":
        return rule
    numbers = range(position) if format.access == "position" else _list_referable(format)
    one = f"({_alternate(numbers)})"
    return f'{rule} | "[" {one} (", " {one}){{0,{limit_entries(format) - 1}}} "]"'


def _alternate(numbers: Iterable[int]) -> str:
    return " | ".join(f'"{number}"' for number in numbers)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
