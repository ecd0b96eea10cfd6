"""What a run does, told in words while it goes on: its plan, each step's start and outcome, another round. Pure.

Of what models wrote only the subtasks are told, which the conductor wrote for the workers, shortened and without what
could steer a terminal; never a reply or an error's text. A run that is one call, whose reply is the answer, has nothing
to tell; and as long as only a conductor was called nothing is told yet, since what fails then still has a status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from ..events import Called, Event, Failed, Planned, Replied
from ..types import Plan, Step, Usage
from .steps import is_one_step

__all__ = ["Narrator"]

_LONGEST_SUBTASK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a step stands."""

    round: int
    """Counts from 1; 0 before there is a plan to be told."""
    label: str
    """Its position in its plan where subtasks count the steps so, else its id; "conductor" for who plans."""
    is_counted: bool = False
    """It is the position, which steps of other rounds have, too."""

    @property
    def name(self) -> str:
        return self.label if self.label == "conductor" else f"step {self.label}"


class Narrator:
    """Tells of one run, event by event."""

    def __init__(self) -> None:
        self._plans: list[Planned] = []
        self._places: dict[int, _Place] = {}
        self._held: list[Replied | Failed] = []
        """Outcomes so far, for when there is something to be told."""
        self._is_telling = False
        self._round = 0

    def tell(self, event: Event) -> str:
        """What is to be told now, in whole lines; "" when it is nothing."""
        if isinstance(event, Planned):
            return _join(self._tell_plan(event))
        if isinstance(event, (Replied, Failed)):
            if self._is_telling:
                return _join([self._tell_end(event)])
            self._held.append(event)  # not put into words: most runs are over before they are to be told
        elif isinstance(event, Called) and self._is_telling:
            return _join([self._tell_call(event)])
        return ""

    def _tell_plan(self, planned: Planned) -> list[str]:
        steps = planned.plan.steps
        self._plans.append(planned)
        if all(step.role == "conductor" for step in steps):
            self._places |= {step.id: _Place(round=self._round, label="conductor") for step in steps}
            return []
        self._round += 1
        self._places |= _place(planned.plan, self._round)
        if is_one_step(self._plans):
            return []
        self._is_telling = True
        held = [self._tell_end(event) for event in self._held]
        self._held.clear()
        count = f"{len(steps)} step{'s' * (len(steps) > 1)}"
        head = f"plan: {count}" if self._round == 1 else f"round {self._round}: {count}"
        return [*held, head, *(f"  {self._tell_step(step)}" for step in steps)]

    def _tell_step(self, step: Step) -> str:
        sees = f", sees {self._list(step)}" if step.sees else ""
        task = "" if step.instruction is None else f": {_clean(step.instruction, _LONGEST_SUBTASK)}"
        return f"{self._places[step.id].label} {_clean(step.worker)} ({_clean(step.role)}){sees}{task}"

    def _list(self, step: Step) -> str:
        here = self._places[step.id].round
        seen = [self._places.get(id, _Place(round=here, label=str(id))) for id in step.sees]
        return ", ".join(
            f"{place.label} of round {place.round}" if place.is_counted and place.round != here else place.label
            for place in seen
        )

    def _tell_call(self, event: Called) -> str:
        worker = _clean(event.worker)
        what = {"retry": f"{worker} is asked again", "failover": f"failover to {worker}"}
        return f"{self._name(event.step)}: {what.get(event.reason, f'{worker} starts')}"

    def _tell_end(self, event: Replied | Failed) -> str:
        return f"{self._name(event.step)}: {_tell_reply(event) if isinstance(event, Replied) else _tell_failure(event)}"

    def _name(self, step: int) -> str:
        return self._places[step].name if step in self._places else f"step {step}"


def _place(plan: Plan, round: int) -> dict[int, _Place]:
    has_subtasks = any(step.instruction is not None for step in plan.steps)
    return {
        step.id: _Place(round=round, label=str(position if has_subtasks else step.id), is_counted=has_subtasks)
        for position, step in enumerate(plan.steps)
    }


def _tell_reply(event: Replied) -> str:
    reply = event.reply
    time = "" if reply.latency_ms is None else f" in {_time(reply.latency_ms)}"
    return f"{_clean(reply.worker)} ok{time}, {_tokens(reply.usage)}, {_usd(reply.cost_usd)}"


def _tell_failure(event: Failed) -> str:
    time = "" if event.latency_ms is None else f" after {_time(event.latency_ms)}"
    what = "is not waited for any more" if event.code == "dropped" else f"failed: {_clean(event.code)}"
    return f"{_clean(event.worker)} {what}{time}"


def _join(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _clean(text: str, longest: int = 200) -> str:
    """On one line, without control characters, unpaired surrogates and changes of direction."""
    head = text[: 20 * longest]  # subtasks may be long
    flat = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return flat if len(flat) <= longest else f"{flat[:longest]}…"


def _time(latency_ms: float) -> str:
    return f"{latency_ms:.0f} ms" if latency_ms < 1000 else f"{latency_ms / 1e3:.1f} s"


def _tokens(usage: Usage) -> str:
    counts = (usage.input_tokens, usage.output_tokens)
    return "tokens unknown" if None in counts else f"{sum(n or 0 for n in counts)} tokens"


def _usd(cost: Decimal | None) -> str:
    """Two digits are enough here; the exact sum is told at the end."""
    if cost is None:
        return "cost unknown"
    if cost >= 1 or cost == 0:
        return f"${cost:.2f}"
    return f"${format(round(cost, 1 - cost.adjusted()), 'f')}"
