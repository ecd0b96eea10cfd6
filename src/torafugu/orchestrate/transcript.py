"""TRINITY as in the paper (arXiv 2512.04695): a head on the hidden state of the transcript picks (worker, role).

Each turn the transcript is read again: the conversation and, as reference thoughts, every Worker's reply so far. One
head gives a logit per worker and per role; both are drawn from their softmax in training, argmax when serving. A
Thinker's suggested role holds for the next turn only; a Verifier that accepts ends the run; the answer is the last
Worker's reply. Every turn is a call: nothing is recalled, no answers are compared. That is `coordinator.py`.

Departures: `TranscriptConfig.dead_ends`, `.state` and `.state_norm`; and a draw that cannot be called is masked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from ..config import read_table
from ..errors import ConfigError, ModelError, PlanError
from ..types import Answer, Message, Plan, Step
from .artefact import Card, Tensors, check_pool, check_workers, load_artefact, pack, save_artefact, seal
from .encoder import Encoder, Encoding
from .head import softmax
from .head_variants import find_variant
from .prompts import parse_suggestion, parse_thought, parse_verdict, render_worker
from .run import Run
from .tri_head import ROLES, THINKER, VERIFIER, WORKER

__all__ = [
    "Draw",
    "Scalable",
    "TranscriptConfig",
    "TranscriptCoordinator",
    "TranscriptHead",
    "count_head",
    "read_transcript",
]

Array = npt.NDArray[np.float32]

_DISPATCH = """\
You dispatch messages among {count} assistants. You see a conversation and, in <reference_thought> tags, what they \
have written about it so far. Decide which assistant acts next, and whether it answers, plans or verifies."""


@runtime_checkable
class Scalable(Protocol):
    """An encoder with singular values to scale (`local/minilm_numpy.py`, `local/huggingface.py`)."""

    def with_offsets(self, offsets: npt.NDArray[np.floating]) -> Encoder: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptConfig:
    """What a head was trained to read and to do; it stands on its card."""

    head: str = "linear"
    """One of `head_variants.HEAD_VARIANTS`."""
    state: Literal["whole", "parts"] = "whole"
    """`whole`: the encoder reads all of the transcript at once, as in the paper. `parts`: it reads the conversation and
    each thought alone, and the state is the mean of theirs, scaled to length one. A departure for small encoders: the
    states can be kept by text, and a short window is not filled by one thought."""
    state_norm: float = 175.0
    """The length that states are given. Encoders here give length one; logits of the paper's released head are those of
    states about this long. Together with sigma0 it says how decided the first candidates are."""
    dead_ends: Literal["masked", "ends"] = "masked"
    """`ends`, as in the paper: a Verifier before any answer ends the run without one, and so do turns spent on Thinkers
    alone; both score 0. `masked`: neither can be chosen, so that a served run has an answer."""
    max_turns: int = 5
    roles: tuple[str, ...] = ROLES
    """Which roles exist; `worker` always does."""
    transcript: Literal["shared", "independent"] = "shared"
    """`shared`: a Worker reads the thoughts before its own, as in the paper. `independent`: it answers alone."""

    def __post_init__(self) -> None:
        find_variant(self.head)
        if unknown := set(self.roles) - set(ROLES):
            raise ConfigError(f"roles: {sorted(unknown)[0]!r}: expected some of {', '.join(ROLES)}")
        if self.max_turns < 1 or not self.state_norm > 0:
            raise ConfigError(f"max_turns {self.max_turns!r}, state_norm {self.state_norm!r}: expected more than 0")


def count_head(config: TranscriptConfig, *, dim: int, workers: int) -> int:
    """Parameters of the head: its outputs are the workers, then the three roles."""
    return find_variant(config.head).parameter_count(dim, workers + len(ROLES))


class TranscriptHead:
    """All that is trained: the head's vector and, with SVF, the encoder's offsets."""

    def __init__(self, vector: Array, offsets: Array | None, config: TranscriptConfig, card: Card) -> None:
        self.vector = vector  # (N,)
        self.offsets = offsets
        self.config = config
        self.card = card
        self._variant = find_variant(config.head)

    @property
    def id(self) -> str:
        return self.card.short_hash

    def logits(self, hidden: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(d,) -> workers (L,), roles (3,)."""
        size = len(self.card.workers)
        states = (hidden.astype(np.float64) * self.config.state_norm)[None]
        row = self._variant.logits(self.vector.astype(np.float64), states, outputs=size + len(ROLES))[0]
        return row[:size], row[size:]

    def save(self, folder: Path) -> None:
        save_artefact(folder, _pack(self), self.card)

    @staticmethod
    def create(
        vector: Array, offsets: Array | None, config: TranscriptConfig, *, dim: int, card: Card
    ) -> TranscriptHead:
        """The head that loading these weights will give. `card.encoder` is the encoder with its offsets applied.

        Raises:
            ModelError: the vector does not fit the head's form, or a weight is not finite.
        """
        table = msgspec.json.decode(msgspec.json.encode({"config": asdict(config), "dim": dim}))
        card = msgspec.structs.replace(card, kind="transcript", rules={**card.rules, **table})
        tensors, card = seal(_pack(TranscriptHead(vector, offsets, config, card)), card)
        return _unpack(tensors, card)

    @staticmethod
    def load(folder: Path) -> TranscriptHead:
        """Raises ModelError: a file is missing, damaged, of another kind, or the weights are not the card's."""
        return _unpack(*load_artefact(folder, "transcript"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """A turn's choice and what it was made from: what a policy gradient needs to know."""

    hidden: Array  # (d,) as the encoder gives it
    workers: npt.NDArray[np.floating]  # (L,) probabilities: 0 where a worker cannot be called
    roles: npt.NDArray[np.floating]  # (3,)
    worker: int
    role: int | None
    """None: the role was a Thinker's suggestion, not drawn."""


class TranscriptCoordinator:
    """The policy of a `TranscriptHead`."""

    def __init__(
        self,
        head: TranscriptHead,
        encoder: Encoder,
        pool: Mapping[str, str],
        *,
        draw: np.random.Generator | None = None,
        observe: Callable[[Draw], None] | None = None,
    ) -> None:
        """`pool`: id -> model of the workers that can be called. `draw`: of training; None takes the argmax. A drawn
        worker has no stand-in: its fault is the run's, for training to leave out. `observe` is told every choice, also
        one that ends the run.

        Raises:
            ModelError: the head was trained for another encoder or other workers.
        """
        if head.offsets is not None:
            encoder = _scale(encoder, head.offsets)
        if head.card.encoder != encoder.name:
            raise ModelError(
                f"head {head.id} reads hidden states of {head.card.encoder!r}; this is {encoder.name!r}: "
                "train a head for this encoder"
            )
        check_pool(head.card, pool)
        self.id = f"fugu-trinity@{head.id}"
        self.head = head
        self._encoder = encoder
        self._workers = [worker.id for worker in head.card.workers]
        self._pool = frozenset(pool)
        self._draw = draw
        self._observe = observe

    async def decide(self, run: Run) -> Plan | Answer:
        allowed = self._pool if run.request.allowed is None else self._pool & run.request.allowed
        if not allowed:
            raise PlanError("no worker of the pool is allowed for this request")
        table = _Table(run)
        callable_ = np.array([worker in allowed - table.silent for worker in self._workers])
        if table.turns >= self.head.config.max_turns:
            table.over = table.over or "turns"
        elif not callable_.any():
            table.over = table.over or "exhausted"
        if table.over:
            return table.answer()
        started = time.perf_counter()
        encoding = await read_transcript(
            self._encoder, run.request.messages, table.thoughts, state=self.head.config.state, count=len(self._workers)
        )
        encode_ms = (time.perf_counter() - started) * 1e3
        return self._choose(table, encoding, encode_ms, callable_, sorted(self._pool - allowed))

    def _choose(
        self, table: _Table, encoding: Encoding, encode_ms: float, callable_: npt.NDArray[np.bool_], masked: list[str]
    ) -> Plan:
        possible = self._possible_roles(table)
        worker_logits, role_logits = self.head.logits(encoding.hidden)
        workers = softmax(np.where(callable_, worker_logits, -np.inf))
        roles = softmax(np.where(possible, role_logits, -np.inf))
        worker, role = self._pick(workers), self._pick(roles)  # both are drawn, also where one is overruled
        suggested = table.suggested if table.suggested is not None and possible[table.suggested] else None
        if suggested is not None:
            role = suggested
        if self._observe is not None:
            drawn = None if suggested is not None else role
            self._observe(Draw(hidden=encoding.hidden, workers=workers, roles=roles, worker=worker, role=drawn))
        if role == VERIFIER and not table.worked:
            raise PlanError("the run is over: a Verifier was chosen before any Worker had answered")
        order = [int(j) for j in np.argsort(-workers, kind="stable") if callable_[j]]
        others = [] if self._draw is not None else [self._workers[j] for j in order if j != worker]
        return Plan(
            steps=(
                Step(
                    id=table.turns,
                    worker=self._workers[worker],
                    role=ROLES[role],
                    sees=table.sees(role, is_shared=self.head.config.transcript == "shared"),
                    alternates=tuple(others),
                    is_optional=bool(table.worked) and self._draw is None,
                ),
            ),
            scores={self._workers[j]: float(workers[j]) for j in order},
            masked=tuple(masked),
            notes={
                "turn": table.turns,
                "roles": dict(zip(ROLES, map(float, roles), strict=True)),
                "suggested": None if suggested is None else ROLES[suggested],
                "encode_ms": round(encode_ms, 3),
                "tokens_read": encoding.tokens_read,
                "tokens_total": encoding.tokens_total,
            },
        )

    def _possible_roles(self, table: _Table) -> npt.NDArray[np.bool_]:
        config = self.head.config
        possible = np.array([role in config.roles or role == ROLES[WORKER] for role in ROLES])
        if config.dead_ends == "masked" and not table.worked:
            possible[VERIFIER] = False
            possible[THINKER] &= table.turns + 1 < config.max_turns
        return possible

    def _pick(self, shares: npt.NDArray[np.floating]) -> int:
        return int(shares.argmax()) if self._draw is None else int(self._draw.choice(len(shares), p=shares))


class _Table:
    """What lies on the table of one run, read off its events."""

    def __init__(self, run: Run) -> None:
        self.turns = len(run.plans)
        self.worked: list[int] = []
        """Steps with a Worker's reply, in order."""
        self.thoughts: list[str] = []
        """Of these."""
        self.advice: int | None = None
        """Step of the Thinker whose advice no Worker has had yet."""
        self.suggested: int | None = None
        """The role that the last turn, a Thinker's, suggests."""
        self.silent: set[str] = set()
        """Workers that did not reply when called: they are not asked again."""
        self.over: str | None = None
        for planned in run.plans:
            (step,) = planned.plan.steps
            self._take(step, run)

    def _take(self, step: Step, run: Run) -> None:
        self.suggested = None
        reply = run.replies.get(step.id)
        if reply is None:
            self.silent |= {step.worker, *step.alternates}
        elif step.role == ROLES[THINKER]:
            suggestion = parse_suggestion(reply.text)
            self.suggested = None if suggestion is None else ROLES.index(suggestion.role)
            self.advice = step.id
        elif step.role == ROLES[VERIFIER]:
            self.over = "accepted" if parse_verdict(reply.text) == "accept" else None
        else:
            self.worked.append(step.id)
            self.thoughts.append(parse_thought(reply.text))
            self.advice = None
            self.over = "tool_calls" if reply.tool_calls else None  # whoever asks for tools is answered by the client

    def sees(self, role: int, *, is_shared: bool) -> tuple[int, ...]:
        """What a Verifier verifies comes last."""
        advice = () if self.advice is None or role == THINKER else (self.advice,)
        if is_shared or role == THINKER:
            return (*advice, *self.worked)
        return (*advice, *self.worked[-1:]) if role == VERIFIER else advice

    def answer(self) -> Answer:
        """Raises PlanError: there is none."""
        if not self.worked:
            raise PlanError(f"the run is over ({self.over}), and no Worker has answered")
        return Answer(step=self.worked[-1], notes={"stopped": self.over, "turns": self.turns})


def _scale(encoder: Encoder | Scalable, offsets: Array) -> Encoder:
    if not isinstance(encoder, Scalable):
        raise ModelError(f"the head scales its encoder's singular values, and {encoder.name!r} has none to scale")
    return encoder.with_offsets(offsets)


async def read_transcript(
    encoder: Encoder, messages: Sequence[Message], thoughts: Sequence[str], *, state: str, count: int
) -> Encoding:
    """`thoughts`: of the Workers, oldest first. `count`: workers that the head chooses among."""
    if state == "whole":
        return await encoder.encode(_dispatch(render_worker(messages, thoughts=thoughts), count))
    parts = [await encoder.encode(messages)]
    parts += [await encoder.encode((Message(role="user", content=thought),)) for thought in thoughts if thought]
    if len(parts) == 1:
        return parts[0]
    mean = np.stack([part.hidden for part in parts]).mean(axis=0, dtype=np.float64)
    totals = [part.tokens_total for part in parts if part.tokens_total is not None]
    return Encoding(
        hidden=np.asarray(mean / np.linalg.norm(mean), dtype=np.float32),
        tokens_read=sum(part.tokens_read for part in parts),
        tokens_total=sum(totals) if len(totals) == len(parts) else None,
    )


def _dispatch(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    """With the dispatcher's prompt; a system prompt of the client's joins it, for templates that take one only."""
    prompt = _DISPATCH.format(count=count)
    first, *others = messages
    if first.role in ("system", "developer"):
        return (Message(role="system", content=f"{prompt}\n\n{first.text}"), *others)
    return (Message(role="system", content=prompt), first, *others)


def _pack(head: TranscriptHead) -> bytes:
    return pack({"head": head.vector} | ({} if head.offsets is None else {"svf": head.offsets}))


def _unpack(tensors: Tensors, card: Card) -> TranscriptHead:
    where = tensors.where
    try:
        config = read_table(TranscriptConfig, card.rules.get("config", {}), where=where)
        expected = count_head(config, dim=int(card.rules.get("dim", 0)), workers=check_workers(card, where))
    except ConfigError as error:
        raise ModelError(f"{error}") from None
    return TranscriptHead(
        tensors.take("head", expected), tensors.take("svf", None) if "svf" in tensors else None, config, card
    )
