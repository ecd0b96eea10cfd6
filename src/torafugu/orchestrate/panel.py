"""`fugu-panel`: the fixed pipeline. Panellists answer at the same time, none seeing another; then one of three decides:

    judge   a worker reads all answers and names one: that one is the run's answer, word for word
    merge   a worker that has read all answers writes the reply, streamed
    vote    answers that can be compared are counted by weight; nobody else is called

Nothing is learned here: it is the baseline that a trained policy has to beat. Weights count, they filter nothing: every
answer reaches whoever decides. Where a judge or merger cannot, the vote does, and the answer's notes say why.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, TypeAlias

import msgspec

from ..agreement import canonical_answer
from ..errors import ConfigError, PlanError, WorkerError
from ..types import Answer, Json, Plan, Reply, Request, Sampling, Step
from .answers import read_answer
from .prompts import Candidate, parse_choice, render_judge, render_merge
from .run import Run

__all__ = ["Panel", "PanelConfig"]

MOST_PANELLISTS = 31
"""A run's default budget is 32 calls, and one of them is for whoever judges."""

Mode: TypeAlias = Literal["judge", "merge", "vote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelConfig:
    """What stands in `[panel]`."""

    workers: tuple[str, ...]
    """Who answers. Of two that weigh the same, the first counts more where all else is equal."""
    samples: int = 1
    """Replies of each of them. A client's seed is counted up from one to the next, or they would be the same reply."""
    mode: Mode = "merge"
    judge: str | None = None
    """The worker that judges or merges. None: nobody, which only a vote allows."""
    weights: Mapping[str, Decimal] = field(default_factory=dict)
    """How much each reply of a worker counts; 1 for those that are not named."""
    quorum: int | None = None
    """So many replies are enough: those who have not replied by then are dropped. None: all are waited for."""
    timeout_s: float | None = None
    """Of each panellist, retries included. None: as long as its worker may take."""

    def __post_init__(self) -> None:
        self._check_workers()
        if self.mode == "vote" and self.judge is not None:
            raise ConfigError(f"judge {self.judge!r}: nobody judges with mode 'vote': remove it, or change the mode")
        if self.mode != "vote" and self.judge is None:
            raise ConfigError(
                f"judge: missing: mode {self.mode!r} needs a worker that does it (mode 'vote' needs none)"
            )
        for worker, weight in self.weights.items():
            if worker not in self.workers:
                raise ConfigError(f"weights: {worker!r} is not on the panel: expected one of {_names(self.workers)}")
            if not (weight.is_finite() and weight > 0):
                raise ConfigError(f"weights: {worker} = {weight}: expected a number above 0")
        if self.timeout_s is not None and not 0 < self.timeout_s < float("inf"):  # also refuses NaN
            raise ConfigError(f"timeout_s {self.timeout_s}: expected a number of seconds above 0")

    def _check_workers(self) -> None:
        if twice := {worker for worker in self.workers if self.workers.count(worker) > 1}:
            raise ConfigError(f"workers: {min(twice)!r} is named twice: for more replies of each worker set samples")
        if self.samples < 1:
            raise ConfigError(f"samples {self.samples}: expected at least 1")
        size = len(self.workers) * self.samples
        if not 2 <= size <= MOST_PANELLISTS:
            raise ConfigError(
                f"workers: {len(self.workers)} with samples {self.samples} make {size} replies: "
                f"a panel has 2 to {MOST_PANELLISTS}"
            )
        if self.quorum is not None and not 2 <= self.quorum <= size:
            raise ConfigError(f"quorum {self.quorum}: expected 2 to {size}, the replies that the panel can give")


class Panel:
    """The policy behind the model name `fugu-panel`."""

    def __init__(self, config: PanelConfig, pool: Mapping[str, str]) -> None:
        """`pool`: id -> model of the workers that can be called.

        Raises:
            ConfigError: a panellist or the judge is not in the pool.
        """
        for key, names in (("workers", config.workers), ("judge", () if config.judge is None else (config.judge,))):
            if unknown := sorted(set(names) - set(pool)):
                raise ConfigError(f"panel.{key}: {unknown[0]!r} is not in the pool: expected one of {_names(pool)}")
        self._config = config
        self._weight = {worker: config.weights.get(worker, Decimal(1)) for worker in config.workers}
        self._ranked = sorted(config.workers, key=lambda worker: -self._weight[worker])  # stable: ties as in the config
        self.id = f"fugu-panel@{self._hash(pool)}"

    def _hash(self, pool: Mapping[str, str]) -> str:
        config = self._config
        identity = [
            [[worker, pool[worker], str(self._weight[worker].normalize())] for worker in config.workers],
            [config.mode, config.judge, None if config.judge is None else pool[config.judge]],
            [config.samples, config.timeout_s, config.quorum],
        ]
        return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:8]

    async def decide(self, run: Run) -> Plan | Answer:
        if not run.plans:
            return self._convene(run)
        count = _count(self._listen(run))
        if len(run.plans) > 1:
            return self._conclude(run, count, judging=run.plans[1].plan.steps[0])
        judge, allowed = self._config.judge, run.request.allowed
        if len(count.voices) == 1:
            return count.answer("only_reply")
        if judge is None:
            return count.answer("vote")
        if allowed is not None and judge not in allowed:
            return count.answer("vote", because="judge_masked")
        if (limit := run.budget.ended) is not None:  # the vote costs nothing, and is more than one panellist's word
            return count.answer("vote", because="budget_ended", stopped_by=f"budget:{limit}")
        return self._hand_over(run, count, judge)

    def _convene(self, run: Run) -> Plan:
        """All panellists at once, the strongest last: if the run has to end, the last of the replies is its answer."""
        allowed, config = run.request.allowed, self._config
        workers = [worker for worker in self._ranked if allowed is None or worker in allowed]
        if not workers:
            raise PlanError("no worker of the panel is allowed for this request")
        seats = [(worker, k) for worker in workers for k in range(config.samples)]
        is_alone = len(seats) == 1  # its reply is the answer, whatever it is, so it may be streamed
        return Plan(
            steps=tuple(
                Step(
                    id=id,
                    worker=worker,
                    sampling=_vary(run.request.sampling, k),
                    timeout_s=config.timeout_s,
                    is_final=is_alone,
                    is_optional=not is_alone,
                )
                for id, (worker, k) in enumerate(reversed(seats))
            ),
            quorum=None if config.quorum is None else min(config.quorum, len(seats)),
            masked=self._masked(run),
            notes={"mode": config.mode, "weights": {worker: float(self._weight[worker]) for worker in workers}},
        )

    def _masked(self, run: Run) -> tuple[str, ...]:
        members = {*self._config.workers, *filter(None, (self._config.judge,))}
        return () if run.request.allowed is None else tuple(sorted(members - run.request.allowed))

    def _listen(self, run: Run) -> list[_Voice]:
        """The panel's replies, strongest first. Empty ones (held back by a provider) count only if there is no other.

        Raises:
            FuguError: nobody replied; the last worker's fault, or the client's if no worker could take the request.
        """
        voices = [
            _Voice(
                step=step.id,
                reply=reply,
                weight=self._weight[step.worker],
                answer=_read(run.request, reply),
                says=_says(run.request, reply),
            )
            for step in reversed(run.plans[0].plan.steps)
            if (reply := run.replies.get(step.id)) is not None
        ]
        if not voices:
            errors = list(run.failed.values())[::-1]
            raise next((error for error in errors if isinstance(error, WorkerError)), errors[0])
        return [voice for voice in voices if _says_something(voice.reply)] or voices[:1]

    def _hand_over(self, run: Run, count: _Count, judge: str) -> Plan:
        """The second plan: the judge, or whoever merges, is shown all answers."""
        is_merge = self._config.mode == "merge"
        shown = sorted(count.voices, key=lambda voice: _shuffle(run.id, voice.step))
        total = sum(voice.weight for voice in shown)
        candidates = [Candidate(text=_show(voice.reply), share=float(voice.weight / total)) for voice in shown]
        step = Step(
            id=len(run.plans[0].plan.steps),
            worker=judge,
            role="worker" if is_merge else "judge",
            sees=tuple(voice.step for voice in shown),
            messages=(render_merge if is_merge else render_judge)(run.request.messages, candidates),
            is_final=is_merge,
        )
        return Plan(steps=(step,), stand_in=count.winner.step, on_error="replan", notes=count.notes(count.winner.says))

    def _conclude(self, run: Run, count: _Count, *, judging: Step) -> Answer:
        """What came of the second plan."""
        reply = run.replies.get(judging.id)
        if reply is None:
            return count.answer("vote", because=f"{self._config.mode}_failed:{run.failed[judging.id].code}")
        if self._config.mode == "merge":
            if not _says_something(reply) and not run.has_streamed:
                return count.answer("vote", because="merge_empty")
            return Answer(step=judging.id, notes={"decided_by": "merge", **count.notes(_says(run.request, reply))})
        chosen = parse_choice(reply.text, size=len(judging.sees))
        if chosen is None:
            return count.answer("vote", because="choice_unreadable")
        voice = next(voice for voice in count.voices if voice.step == judging.sees[chosen])
        return Answer(step=voice.step, notes={"decided_by": "judge", **count.notes(voice.says)})


# --- the count ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Voice:
    """A panellist's reply."""

    step: int
    reply: Reply
    weight: Decimal
    answer: str | None
    """As it is written; None when there is none, and it votes for nobody."""
    says: str | None
    """What is counted: the same for answers that say the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """How the panel voted."""

    voices: list[_Voice]
    """Strongest first."""
    tally: dict[str, Decimal]
    """What is said -> the weight of all that say it."""
    winner: _Voice
    """The strongest of those with the winning answer, in the wording that most of these chose; of all, where no answer
    can be compared."""

    def notes(self, given: str | None) -> dict[str, Json]:
        """For the record. Dissent is from the answer that the run gives; None when that one cannot be compared."""
        dissent = [voice.reply.worker for voice in self.voices if voice.says not in (None, given)]
        wording = {voice.says: voice.answer for voice in reversed(self.voices)}  # the strongest voice's
        return {
            "tally": {str(wording[says]): float(weight) for says, weight in self.tally.items()},
            "dissent": None if given is None else dissent,
            "unreadable": [voice.reply.worker for voice in self.voices if voice.says is None],
        }

    def answer(self, decided_by: str, *, because: str | None = None, stopped_by: str = "answer") -> Answer:
        """The winner's reply. `because`: why it is not the judge who decides; None where none should."""
        notes = {"decided_by": decided_by, "because": because, **self.notes(self.winner.says)}
        return Answer(step=self.winner.step, stopped_by=stopped_by, notes=notes)


def _count(voices: list[_Voice]) -> _Count:
    """Ties go to the answer with the strongest single voice, then to the order of the config.

    That is the order in which answers first appear among voices sorted so, and `max` takes the first of equals.
    """
    tally: dict[str, Decimal] = {}
    for voice in voices:
        if voice.says is not None:
            tally[voice.says] = tally.get(voice.says, Decimal(0)) + voice.weight
    best = max(tally, key=lambda says: tally[says]) if tally else None
    agreeing = [voice for voice in voices if voice.says == best or best is None]
    wordings = Counter(voice.answer for voice in agreeing)  # ties: the strongest voice's, which comes first
    winner = next(voice for voice in agreeing if best is None or wordings[voice.answer] == max(wordings.values()))
    return _Count(voices=voices, tally=tally, winner=winner)


def _read(request: Request, reply: Reply) -> str | None:
    """What a reply votes for. The same calls of the client's tools are the same answer."""
    if reply.tool_calls:
        return "\n".join(f"{call.name} {_sort_keys(call.arguments)}" for call in reply.tool_calls)
    return read_answer(request, reply) or None


def _says(request: Request, reply: Reply) -> str | None:
    answer = _read(request, reply)
    return answer if answer is None or reply.tool_calls else canonical_answer(answer) or None


def _sort_keys(arguments: str) -> str:
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments), order="sorted").decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # a tool of free text
        return arguments


# --- small things ---


def _vary(sampling: Sampling, k: int) -> Sampling | None:
    """Of the k-th reply of the same worker; None: the client's own."""
    return msgspec.structs.replace(sampling, seed=sampling.seed + k) if k and sampling.seed is not None else None


def _shuffle(run_id: str, step: int) -> bytes:
    """Judges favour places: this order differs from run to run, and is the same when a run is replayed."""
    return hashlib.sha256(f"{run_id}:{step}".encode()).digest()


def _says_something(reply: Reply) -> bool:
    return bool(reply.text.strip() or reply.tool_calls)


def _show(reply: Reply) -> str:
    calls = [f"[tool call: {call.name}]\n{call.arguments}" for call in reply.tool_calls]
    return "\n".join([*filter(None, (reply.text,)), *calls])


def _names(names: Sequence[str] | Mapping[str, str]) -> str:
    return ", ".join(sorted(names))
