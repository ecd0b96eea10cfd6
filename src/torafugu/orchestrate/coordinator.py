"""`fugu-trinity`: the tri-role coordinator. Each turn it sees the answers so far and picks one (worker, role).

    Thinker   plans, may suggest the next role          Worker   answers; the last Worker's reply is the run's answer
    Verifier  solves it again and compares; accepting ends the run, and nothing is verified before there is an answer

TRINITY (arXiv 2512.04695), with argmax when serving. What a call would only repeat is recalled (`tri_head.py`). Of the
replies that say the same as the answer, the wording that most share is returned (`situation.choose_wording`). Each
decision is made anew from the run's events: what stands in the record is all that the coordinator ever saw.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import numpy.typing as npt

from ..agreement import canonical_answer
from ..config import read_table
from ..errors import ConfigError, ModelError, PlanError
from ..events import Failed
from ..types import Answer, Json, Plan, Reply, Step
from .answers import asks_for_answer, read_answer, read_verified
from .artefact import Card, Tensors, check_pool, check_workers, load_artefact, pack, save_artefact, seal
from .encoder import Encoder, Encoding
from .head import FeatureMap, check_encoder, pack_features, softmax, unpack_features
from .prompts import parse_suggestion, parse_verdict
from .run import Run
from .situation import (
    RUN_FEATURES,
    WORKER_FEATURES,
    Evidence,
    Lengths,
    Prospect,
    Situation,
    View,
    choose_wording,
    look,
    measure_length,
)
from .tri_head import ROLES, THINKER, VERIFIER, WORKER, Rules, TriHead, callable_workers, choices, is_free

__all__ = ["Coordinator", "CoordinatorHead", "familiarity_of"]

Floats = npt.NDArray[np.float64]


class CoordinatorHead:
    """All that is trained: how questions are read, how much voices count, and the tri-role head."""

    def __init__(
        self, features: FeatureMap, question: Floats, evidence: Evidence, head: TriHead, rules: Rules, card: Card
    ) -> None:
        self.features = features
        self.question = question  # (L, F): features of a question -> deviation of each worker's score
        self.evidence = evidence
        self.head = head
        self.rules = rules
        self.card = card

    @property
    def id(self) -> str:
        return self.card.short_hash

    def prospect(self, hidden: npt.NDArray[np.float32]) -> Prospect:
        """(n, d) hidden states of questions."""
        features = self.features(hidden).astype(np.float64)  # (n, F)
        deviation = (features[:, None, :] * self.question[None]).sum(2)  # sums, not BLAS: the same bits for any n
        return Prospect(deviation=deviation, familiarity=familiarity_of(self.features, features))

    def save(self, folder: Path) -> None:
        save_artefact(folder, _pack(self), self.card)

    @staticmethod
    def create(
        features: FeatureMap, question: Floats, evidence: Evidence, head: TriHead, rules: Rules, card: Card
    ) -> CoordinatorHead:
        """The head that loading these weights will give.

        Raises:
            ModelError: the shapes do not fit together, or a weight is not finite.
        """
        table = msgspec.json.decode(msgspec.json.encode(asdict(rules)))
        card = msgspec.structs.replace(card, kind="coordinator", rules=table)
        tensors, card = seal(_pack(CoordinatorHead(features, question, evidence, head, rules, card)), card)
        return _unpack(tensors, card)

    @staticmethod
    def load(folder: Path) -> CoordinatorHead:
        """Raises ModelError: a file is missing, damaged, of another kind, or the weights are not the card's."""
        return _unpack(*load_artefact(folder, "coordinator"))


def familiarity_of(features: FeatureMap, values: Floats) -> Floats:
    """(n, F) -> (n,): nearness to the nearest landmark, 0..1; 0 where the map has no landmarks."""
    if features.landmarks is None:
        return np.zeros(len(values))
    nearest: Floats = values[:, :-1].max(1)
    return nearest


class Coordinator:
    """The policy behind the model name `fugu-trinity`."""

    def __init__(self, head: CoordinatorHead, encoder: Encoder, pool: Mapping[str, str]) -> None:
        """`pool`: id -> model of the workers that can be called.

        Raises:
            ModelError: the head was trained for another encoder or other workers.
        """
        check_encoder(head.card, head.features, name=encoder.name, dim=encoder.dim)
        check_pool(head.card, pool)
        self.id = f"fugu-trinity@{head.id}"
        self.head = head
        self._encoder = encoder
        self._workers = [worker.id for worker in head.card.workers]
        self._column = {worker: j for j, worker in enumerate(self._workers)}
        self._pool = frozenset(pool)
        self._read: WeakKeyDictionary[Run, tuple[Encoding, Prospect, float]] = WeakKeyDictionary()

    async def decide(self, run: Run) -> Plan | Answer:
        allowed = self._pool if run.request.allowed is None else self._pool & run.request.allowed
        if not allowed:
            raise PlanError("no worker of the pool is allowed for this request")
        if run not in self._read:
            started = time.perf_counter()
            encoding = await self._encoder.encode(run.request.messages)
            prospect = self.head.prospect(encoding.hidden[None])
            if not np.isfinite(prospect.deviation).all():
                raise ModelError(f"head {self.head.id}: expected scores are not finite: {prospect.deviation[0]}")
            self._read[run] = encoding, prospect, (time.perf_counter() - started) * 1e3
        table = _Table(run, self._column, np.array([worker in allowed for worker in self._workers]), self.head.rules)
        if table.over:
            return table.answer(table.over)
        return self._choose(run, table, sorted(self._pool - allowed))

    def _choose(self, run: Run, table: _Table, masked: list[str]) -> Plan | Answer:
        """Turns are taken until one needs a call, or the run is over."""
        head, rules = self.head.head, self.head.rules
        encoding, prospect, encode_ms = self._read[run]
        while table.turns < rules.max_turns:
            situation = table.situation()
            view = look(situation, prospect, self.head.evidence)
            possible = choices(
                situation, view, rules, allowed=table.allowed[None], calls=np.array([table.calls])
            )  # (1, 3, L)
            if not possible.any():
                return table.answer("exhausted")
            role_logits = np.where(possible.any(2), head.role_logits(view), -np.inf)
            suggested = table.suggested if table.suggested is not None and possible[0, table.suggested].any() else None
            role = role_logits.argmax(1) if suggested is None else np.array([suggested])
            logits = np.where(possible[[0], role], head.worker_logits(view, role), -np.inf)
            worker = int(logits[0].argmax())
            if is_free(situation, view, rules, role, np.array([worker]))[0]:
                table.recall(int(role[0]), worker)
                if role[0] == VERIFIER:
                    return table.answer("accepted", trust=_trust(view, table))
                continue
            order = [int(j) for j in np.argsort(-logits[0], kind="stable") if np.isfinite(logits[0, j])]
            scores = softmax(logits[0])
            called = [j for j in order if not is_free(situation, view, rules, role, np.array([j]))[0]]
            return Plan(
                steps=(table.step(int(role[0]), [self._workers[j] for j in called]),),
                scores={self._workers[j]: float(scores[j]) for j in order},
                masked=tuple(masked),
                stand_in=table.step_of[table.current] if table.current >= 0 else None,
                notes={
                    "turn": table.turns,
                    "recalled": table.recalled,
                    "roles": dict(zip(ROLES, map(float, softmax(role_logits[0])), strict=True)),
                    "suggested": None if suggested is None else ROLES[suggested],
                    "trust": _trust(view, table),
                    **_reading(encoding, encode_ms if not run.replies else None),
                },
            )
        return table.answer("turns")


class _Table:
    """What lies on the table of one run, read off its events."""

    def __init__(self, run: Run, column: Mapping[str, int], allowed: npt.NDArray[np.bool_], rules: Rules) -> None:
        size = len(column)
        self._run, self._rules = run, rules
        self._ids = list(column)
        self.known, self.worked = np.zeros(size, bool), np.zeros(size, bool)
        self.answers: list[str | None] = [None] * size
        self.length = np.full(size, np.nan)
        """Of each worker's latest reply as Worker."""
        self.step_of: dict[int, int] = {}
        """Column -> the step of its latest reply as Worker."""
        self.current = -1
        self.thinkers: list[int] = []
        """Steps of Thinkers whose advice is not used yet."""
        self.suggested: int | None = None
        self.turns = self.calls = 0
        self.recalled: list[list[str]] = []
        """Turns recalled since the last call: (role, worker)."""
        self.over: str | None = None
        """Why the run is over, if it is."""
        self.allowed = allowed.copy()
        for planned in run.plans:
            self._replay(planned.plan, column)
        replied = {reply.worker for reply in run.replies.values()}
        for event in run.events:  # who failed in this run is not asked again: others are waited for
            if isinstance(event, Failed) and event.worker not in replied:
                self.allowed[column[event.worker]] = False

    def _replay(self, plan: Plan, column: Mapping[str, int]) -> None:
        for role, worker in plan.notes.get("recalled", ()):
            self.recall(ROLES.index(role), column[worker])
        self.recalled = []
        self.turns += 1
        self.calls += 1
        (step,) = plan.steps
        reply = self._run.replies.get(step.id)
        if reply is None:
            return
        self._take(ROLES.index(step.role), step, reply, column[reply.worker])

    def _take(self, role: int, step: Step, reply: Reply, worker: int) -> None:
        if role == THINKER:
            suggestion = parse_suggestion(reply.text)
            self.thinkers = [step.id]
            self.suggested = None if suggestion is None else ROLES.index(suggestion.role)
            return
        self.suggested = None
        if role == VERIFIER:
            answer = read_verified(reply)
            accepts = parse_verdict(reply.text) == "accept"
            if accepts:
                self.over = "accepted"
                judged = self.answers[self.current] or answer
                answer = answer if canonical_answer(answer) == canonical_answer(judged) else judged
            if not self.worked[worker]:  # else its answer is that of the reply that it can be recalled with
                self.answers[worker] = answer
            self.known[worker] = True
            return
        self.known[worker] = self.worked[worker] = True
        self.answers[worker] = read_answer(self._run.request, reply)
        self.length[worker] = measure_length(reply.usage.output_tokens)
        self.current, self.step_of[worker] = worker, step.id
        self.thinkers = []
        if reply.tool_calls:  # the client's tools: whoever asks for them is answered by the client
            self.over = "tool_calls"

    def recall(self, role: int, worker: int) -> None:
        """A turn that needs no call."""
        self.turns += 1
        self.recalled.append([ROLES[role], self._ids[worker]])
        if role == WORKER:
            self.current, self.suggested = worker, None

    def situation(self) -> Situation:
        answers = self.answers
        unreadable = self._is_unreadable()
        forms = [canonical_answer(answer or "") for answer in answers]
        same = alike = np.eye(len(answers), dtype=bool)
        if not unreadable:
            same, alike = _compare(forms), _compare(answers)
        return Situation(
            known=self.known[None],
            worked=self.worked[None],
            current=np.array([self.current]),
            same=same[None],
            alike=alike[None],
            empty=np.array([[not unreadable and not form for form in forms]]),
            length=self.length[None],
            unreadable=np.array([unreadable]),
            thought=np.array([bool(self.thinkers)]),
            exhausted=np.array([self._is_exhausted()]),
        )

    def _is_unreadable(self) -> bool:
        """No answer can be compared: none was asked for in a form of ours, and no Worker gave one (a Verifier always
        does, to an essay too).
        """
        given = any(answer for answer, worked in zip(self.answers, self.worked, strict=True) if worked)
        return not asks_for_answer(self._run.request) and not given

    def _is_exhausted(self) -> bool:
        """Nobody new can be called."""
        calls = np.array([self.calls])
        return not callable_workers(self.known[None], self.allowed[None], calls, self._rules).any()

    def step(self, role: int, workers: list[str]) -> Step:
        """The next call: `workers` best first."""
        sees: list[int] = []
        if self._rules.transcript == "shared" or role == THINKER:
            sees += sorted(self.step_of.values())
        if role != WORKER and self.current >= 0:  # what it judges comes last
            judged = self.step_of[self.current]
            sees = [*(step for step in sees if step != judged), judged]
        if role != THINKER:
            sees = [*self.thinkers, *sees]
        best, *others = workers
        return Step(
            id=len(self._run.plans),
            worker=best,
            role=ROLES[role],
            sees=tuple(sees),
            alternates=tuple(others),
            is_optional=self.current >= 0,
        )

    def answer(self, why: str, *, trust: float | None = None) -> Answer:
        """Raises PlanError: there is none."""
        if self.current < 0:
            raise PlanError(f"the run is over ({why}), and no Worker has answered")
        notes: dict[str, Json] = {"stopped": why, "recalled": self.recalled, "turns": self.turns}
        if trust is not None:
            notes["trust"] = trust
        returned = self.current
        if self._rules.recall and why != "tool_calls":
            returned = int(choose_wording(self.situation())[0])
        if returned != self.current:
            notes["worded_by"] = self._ids[returned]
        return Answer(step=self.step_of[returned], notes=notes)


def _compare(forms: Sequence[str | None]) -> npt.NDArray[np.bool_]:
    """(L, L): equal, and not empty."""
    return np.array([[bool(a) and a == b for b in forms] for a in forms])


def _trust(view: View, table: _Table) -> float | None:
    """How far the evidence model trusts the current answer; None before there is one."""
    return None if table.current < 0 else round(float(view.trust[0, table.current]), 4)


def _reading(encoding: Encoding, encode_ms: float | None) -> dict[str, Any]:
    """Once per run."""
    if encode_ms is None:
        return {}
    return {
        "encode_ms": round(encode_ms, 3),
        "tokens_read": encoding.tokens_read,
        "tokens_total": encoding.tokens_total,
    }


def _pack(head: CoordinatorHead) -> bytes:
    evidence, lengths = head.evidence, head.evidence.lengths
    of_deviation, of_easiness = np.array([evidence.of_deviation]), np.array([evidence.of_easiness])
    if evidence.in_log_odds:
        of_question = {"evidence.of_log_odds": np.concatenate([of_deviation, of_easiness])}
    else:
        of_question = {"evidence.of_deviation": of_deviation, "evidence.of_easiness": of_easiness}
    return pack(
        {
            "question.weight": head.question,
            "evidence.weight": evidence.weight,
            **of_question,
            "evidence.none": evidence.none,
            "evidence.ability": evidence.ability,
            "evidence.overlap": evidence.overlap,
            "evidence.cost": evidence.cost,
            "evidence.lengths": np.stack([lengths.mean, lengths.scale]),
            "evidence.of_length": np.array([lengths.of_voice, lengths.of_none]),
            "head.role": head.head.role,
            "head.worker": head.head.worker,
        }
        | pack_features(head.features)
    )


def _unpack(tensors: Tensors, card: Card) -> CoordinatorHead:
    size = check_workers(card, tensors.where)
    features = unpack_features(tensors)

    def take(name: str, *shape: int) -> Floats:
        return tensors.take(name, *shape).astype(np.float64)

    return CoordinatorHead(
        features,
        take("question.weight", size, features.size),
        _read_evidence(tensors, size),
        TriHead(take("head.role", 3, len(RUN_FEATURES)), take("head.worker", 3, len(WORKER_FEATURES))),
        read_rules(card.rules, tensors.where),
        card,
    )


def _read_evidence(tensors: Tensors, size: int) -> Evidence:
    """Heads of earlier versions count deviations in points. The first of them have one number for deviation and
    easiness, and know no lengths.
    """

    def take(name: str, *shape: int) -> Floats:
        return tensors.take(f"evidence.{name}", *shape).astype(np.float64)

    in_log_odds = "evidence.of_log_odds" in tensors
    is_first = not any(f"evidence.{name}" in tensors for name in ("of_log_odds", "of_easiness", "lengths", "of_length"))
    if in_log_odds:
        of_deviation, of_easiness = take("of_log_odds", 2)
    else:
        (of_deviation,) = take("of_deviation", 1)
        (of_easiness,) = (of_deviation,) if is_first else take("of_easiness", 1)
    lengths = Lengths.unread(size)
    if not is_first:
        mean, scale = take("lengths", 2, size)
        of_voice, of_none = take("of_length", 2)
        lengths = Lengths(mean=mean, scale=scale, of_voice=float(of_voice), of_none=float(of_none))
    if (lengths.scale <= 0).any():
        raise ModelError(f"{tensors.where}: evidence.lengths: a standard deviation of {lengths.scale.min():g}")
    return Evidence(
        weight=take("weight", size),
        of_deviation=float(of_deviation),
        of_easiness=float(of_easiness),
        none=take("none", 5),
        ability=take("ability", size),
        in_log_odds=in_log_odds,
        overlap=take("overlap", size, size),
        cost=take("cost", size),
        lengths=lengths,
    )


def read_rules(table: Mapping[str, Json], where: str) -> Rules:
    """Raises ModelError: a rule is unknown, or of the wrong type."""
    try:
        return read_table(Rules, dict(table), where=where)
    except ConfigError as error:
        raise ModelError(f"{error}") from None
