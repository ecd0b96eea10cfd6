"""Calls that an agent makes beside the conversation, for itself: titles and labels. They go to the cheapest worker.

Taken for housekeeping is only what a known agent sends, is small, brings no tools, opens a conversation, and is marked
as such by the agent's own wording or by the form of the answer it wants. Whoever uses a plain SDK always gets what was
asked for. A call that is missed costs a little money; one that is wrongly found would cost an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from ..orchestrate import Run
from ..pool.prices import Price
from ..pool.spec import WorkerSpec
from ..types import Answer, Json, Message, Plan, Request, Step, TextPart, Usage
from .connection import find_header

__all__ = ["Housekeeper", "choose_housekeeper", "find_agent", "is_housekeeping"]

_AGENTS = {"opencode": re.compile(r"opencode/\d"), "claude-code": re.compile(r"claude-cli/\d")}
"""How the User-Agent begins of those that were seen to make such calls. Codex makes none, and aider's bear the name of
the SDK that sends them."""
_MAX_CHARACTERS = 20_000
"""Of all messages together; recorded titles have about 2,200, of which the question is the smallest part."""
_CHARACTERS_PER_TOKEN = 3
"""Fewer than most tokenizers need, so that what is counted to fit does fit."""
_OUTPUT_TOKENS = 200
"""Taken for an answer, for the price and for the room that it needs."""

_TITLE_REQUEST = "Generate a title for this conversation:"  # opencode's first message from its user, recorded
_TITLE_PROMPT = "You are a title generator."  # how its system prompt begins
_LABEL_PROMPTS = (  # how lines of Claude Code's system prompts begin, read in version 2.1.329
    "Write a short summary label describing what these tool calls",
    "You write a 3-5 word progress label for",
)
_TITLE_FIELD = "title"  # and of its titles: the only field of the object that they shall be

_NOT_WRITERS = frozenset({"home", "recorded"})
"""Dialects whose workers answer what they were made for, and nothing else."""


def find_agent(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Which known agent sent it, as far as it says; None: another client."""
    agent = (find_header(list(headers), b"user-agent") or b"").decode("latin-1")
    return next((name for name, begins in _AGENTS.items() if begins.match(agent)), None)


def is_housekeeping(request: Request, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What for, in words for the record (`opencode: title`); None: it is part of a conversation, or may be."""
    agent = find_agent(headers)
    if agent is None or not _is_small(request):
        return None
    what = _opencode(request.messages) if agent == "opencode" else _claude_code(request)
    return None if what is None else f"{agent}: {what}"


def choose_housekeeper(
    specs: Mapping[str, WorkerSpec], price_of: Callable[[str], Price | None], request: Request
) -> str | None:
    """The worker that would answer this small request for the least; None when nobody's price is known.

    Workers of equal price go by the order of `specs`.
    """
    input_tokens = sum(len(message.text) for message in request.messages) // _CHARACTERS_PER_TOKEN + 1
    usage = Usage(input_tokens=input_tokens, output_tokens=_OUTPUT_TOKENS)
    costs: dict[str, Decimal] = {}
    for worker, spec in specs.items():
        if not _is_able(spec, request, input_tokens + _OUTPUT_TOKENS):
            continue
        price = price_of(worker)
        cost_usd = None if price is None else price.cost_usd(usage)
        if cost_usd is not None:
            costs[worker] = cost_usd
    return min(costs, key=costs.__getitem__, default=None)


class Housekeeper:
    """The policy of such a call: this worker, and on record why."""

    def __init__(self, worker: str, *, why: str) -> None:
        self.id = f"housekeeping:{worker}"
        self._worker = worker
        self._why = why

    async def decide(self, run: Run) -> Plan | Answer:
        if run.replies:
            return Answer(step=0)
        step = Step(id=0, worker=self._worker, is_final=True)
        return Plan(steps=(step,), notes={"housekeeping": self._why})


def _is_able(spec: WorkerSpec, request: Request, tokens: int) -> bool:
    if request.allowed is not None and spec.id not in request.allowed:
        return False
    if spec.dialect in _NOT_WRITERS or (request.sampling.tools and not spec.tools):
        return False
    return _is_text(request) and (spec.context_tokens is None or spec.context_tokens >= tokens)


def _is_small(request: Request) -> bool:
    if request.sampling.tools or any(message.role in ("assistant", "tool") for message in request.messages):
        return False
    return _is_text(request) and sum(len(message.text) for message in request.messages) <= _MAX_CHARACTERS


def _is_text(request: Request) -> bool:
    """Nothing in it but text."""
    return all(
        isinstance(message.content, str) or all(isinstance(part, TextPart) for part in message.content or ())
        for message in request.messages
    )


def _opencode(messages: tuple[Message, ...]) -> str | None:
    first = next((message.text for message in messages if message.role == "user"), "")
    is_title = first.strip() == _TITLE_REQUEST or _begins_line(messages, (_TITLE_PROMPT,))
    return "title" if is_title else None


def _claude_code(request: Request) -> str | None:
    if _begins_line(request.messages, _LABEL_PROMPTS):
        return "label"
    return "title" if _only_field(request.sampling.response_format) == _TITLE_FIELD else None


def _begins_line(messages: tuple[Message, ...], marks: tuple[str, ...]) -> bool:
    """Agents put who they are before what they want."""
    lines = (line for m in messages if m.role in ("system", "developer") for line in m.text.splitlines())
    return any(line.startswith(marks) for line in lines)


def _only_field(response_format: Json | None) -> str | None:
    """The one field of the object that the answer shall be."""
    wrapped = response_format.get("json_schema") if isinstance(response_format, dict) else None
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    fields = schema.get("properties") if isinstance(schema, dict) else None
    return next(iter(fields)) if isinstance(fields, dict) and len(fields) == 1 else None
