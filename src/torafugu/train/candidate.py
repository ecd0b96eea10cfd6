"""One candidate of `evolve`: a vector plays recorded questions through the loop that serves. What a fleet's members do.

Reading transcripts is most of the time. What does not change with the candidate is kept: without offsets, the states;
with offsets of MiniLM, each text up to the first scaled layer.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from ..episode import Episode, run_episode
from ..eval.states import BulkEncoder
from ..eval.stats import routing_entropy_bits
from ..grade.recorded import RecordedGrader
from ..grade.task import Task
from ..local.minilm_numpy import Prefix, SvfMiniLM
from ..local.svf import SvfLayout
from ..orchestrate.artefact import Card
from ..orchestrate.encoder import Encoder, Encoding
from ..orchestrate.transcript import Draw, TranscriptConfig, TranscriptCoordinator, TranscriptHead
from ..orchestrate.tri_head import ROLES
from ..pool.recorded import RecordedSet, create_recorded_pool
from ..types import Json, Message

__all__ = ["Job", "Player", "Sample", "Setup", "SvfEncoder", "Tally", "TranscriptEncoder"]

Array: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]

MAX_PREFIX_TOKENS = 400_000  # of 1.5 kB: 600 MB per member
MAX_STATES = 100_000  # of a transcript each; 1.5 to 4 kB


class TranscriptEncoder(Encoder, BulkEncoder, Protocol):
    """Reads conversations one by one, and texts in bulk."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...


@runtime_checkable
class SvfEncoder(Protocol):
    """Whose singular values can be scaled."""

    @property
    def layout(self) -> SvfLayout: ...

    def with_offsets(self, offsets: npt.NDArray[np.floating]) -> Encoder: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A candidate and what it plays: what a member of the fleet is sent."""

    vector: Array  # (N,)
    questions: Ints  # (m,) of the training, then the validation questions
    seed: tuple[int, ...] | None
    """Of the draws; None: argmax."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """An episode and what was drawn in it, turn by turn."""

    episode: Episode
    draws: tuple[Draw, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of a candidate's episodes."""

    scores: tuple[float, ...]
    """Of those that were scored."""
    workers: tuple[int, ...]
    """(L,) turns of each worker, in all episodes."""
    roles: tuple[int, ...]
    calls: int
    cost: float | None
    """USD of all episodes; None when one is unknown."""
    excluded: int
    """Episodes that were not scored: a worker's or the grader's fault."""
    samples: tuple[Sample, ...] = field(default=(), compare=False)
    """All episodes, where `Setup.keeps_draws` asks for them and there were draws; else none."""

    @property
    def episodes(self) -> int:
        return len(self.scores) + self.excluded

    @property
    def turns(self) -> int:
        return sum(self.workers)

    @staticmethod
    def of(episodes: Sequence[Episode], workers: Sequence[str]) -> Tally:
        turns = [turn for episode in episodes for turn in episode.replied]
        costs = [None if episode.cost_usd is None else float(episode.cost_usd) for episode in episodes]
        return Tally(
            scores=tuple(episode.score for episode in episodes if episode.score is not None),
            workers=tuple(sum(worker == name for worker, _ in turns) for name in workers),
            roles=tuple(sum(role == name for _, role in turns) for name in ROLES),
            calls=sum(episode.calls for episode in episodes),
            cost=None if None in costs else math.fsum(cost for cost in costs if cost is not None),
            excluded=sum(episode.score is None for episode in episodes),
        )

    @staticmethod
    def join(tallies: Sequence[Tally]) -> Tally:
        """In their order; without samples."""
        costs = [tally.cost for tally in tallies]
        return Tally(
            scores=tuple(score for tally in tallies for score in tally.scores),
            workers=tuple(map(sum, zip(*(tally.workers for tally in tallies), strict=True))),
            roles=tuple(map(sum, zip(*(tally.roles for tally in tallies), strict=True))),
            calls=sum(tally.calls for tally in tallies),
            cost=None if None in costs else math.fsum(cost for cost in costs if cost is not None),
            excluded=sum(tally.excluded for tally in tallies),
        )

    def describe(self) -> dict[str, Json]:
        """For a row of the metrics."""
        return {
            "score": float(np.mean(self.scores)) if self.scores else None,
            "calls": self.calls / self.episodes,
            "turns": self.turns / self.episodes,
            "entropy/calls_bits": routing_entropy_bits(self.workers) if self.turns else None,
            "entropy/roles_bits": routing_entropy_bits(self.roles) if self.turns else None,
            **{f"share/{role}": self.roles[i] / max(1, self.turns) for i, role in enumerate(ROLES)},
            "excluded": self.excluded,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """What every member of the fleet is made from. It may cross processes."""

    recorded: RecordedSet
    make_encoder: Callable[[], TranscriptEncoder]
    known: Mapping[str, Array]
    """Text -> its state, of those that were read beforehand."""
    config: TranscriptConfig
    offsets: int
    """How many of the vector's numbers are offsets."""
    tasks: tuple[Task, ...]
    allowed: tuple[frozenset[str], ...]
    card: Card
    keeps_draws: bool = False
    """Tallies hold every episode and its draws, for a gradient. A turn takes about 2 kB."""


class Player:
    """Plays jobs: a member's worker."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._encoder = setup.make_encoder()
        self._pool = create_recorded_pool(setup.recorded)
        self._grader = RecordedGrader(setup.recorded)
        self._models = {worker: setup.recorded.models[worker] for worker in setup.recorded.workers}
        self._prefixes = _Prefixes(self._encoder) if isinstance(self._encoder, SvfMiniLM) else None
        self._states: dict[_Key, Array] = {(("user", text),): state for text, state in setup.known.items()}

    def __call__(self, job: Job) -> Tally:
        return asyncio.run(self._play(job))

    async def _play(self, job: Job) -> Tally:
        setup, split = self.setup, self.setup.offsets
        encoder = self._scale(job.vector[:split]) if split else _Memo(self._encoder, self._states)
        card = msgspec.structs.replace(setup.card, encoder=encoder.name)
        draws: list[Draw] = []
        keeps = setup.keeps_draws and job.seed is not None
        policy = TranscriptCoordinator(
            TranscriptHead(job.vector[split:], None, setup.config, card),
            encoder,
            self._models,
            draw=None if job.seed is None else np.random.default_rng(job.seed),
            observe=draws.append if keeps else None,
        )
        samples = []
        for i in job.questions:
            draws.clear()
            episode = await run_episode(setup.tasks[i], policy, self._pool, self._grader, allowed=setup.allowed[i])
            samples.append(Sample(episode=episode, draws=tuple(draws)))
        tally = Tally.of([sample.episode for sample in samples], [worker.id for worker in card.workers])
        return replace(tally, samples=tuple(samples)) if keeps else tally

    def _scale(self, offsets: Array) -> _Memo:
        if self._prefixes is not None:
            return _Memo(self._prefixes.scaled(offsets), {})
        assert isinstance(self._encoder, SvfEncoder), "checked before the first job"
        return _Memo(self._encoder.with_offsets(offsets), {})


_Key: TypeAlias = tuple[tuple[str, str], ...]


class _Memo:
    """An `Encoder` that keeps the states of what it has read: transcripts begin alike, and parts come again."""

    def __init__(self, encoder: Encoder, states: dict[_Key, Array]) -> None:
        self.name, self.dim = encoder.name, encoder.dim
        self._encoder, self._states = encoder, states

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        key = tuple((message.role, message.text) for message in messages)
        hidden = self._states.get(key)
        if hidden is None:
            hidden = (await self._encoder.encode(messages)).hidden
            if len(self._states) < MAX_STATES:
                self._states[key] = hidden
        return Encoding(hidden=hidden, tokens_read=0, tokens_total=None)


class _Prefixes:
    """Texts up to the first scaled layer, which is the same for all candidates; those asked for lately are kept."""

    def __init__(self, encoder: SvfMiniLM) -> None:
        self._encoder = encoder
        self._kept: OrderedDict[str, Prefix] = OrderedDict()
        self._tokens = 0

    def scaled(self, offsets: Array) -> Encoder:
        return _Scaled(self._encoder.with_offsets(offsets), self)

    def of(self, text: str) -> Prefix:
        prefix = self._kept.get(text)
        if prefix is None:
            prefix = self._kept[text] = self._encoder.prefix([text])
            self._tokens += sum(map(len, prefix.hidden))
            while self._tokens > MAX_PREFIX_TOKENS and len(self._kept) > 1:
                self._tokens -= sum(map(len, self._kept.popitem(last=False)[1].hidden))
        else:
            self._kept.move_to_end(text)
        return prefix


class _Scaled:
    def __init__(self, encoder: SvfMiniLM, prefixes: _Prefixes) -> None:
        self.name, self.dim = encoder.name, encoder.dim
        self._encoder, self._prefixes = encoder, prefixes

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        if len(messages) > 1:
            return await self._encoder.encode(messages)
        state = self._encoder.encode_prefix(self._prefixes.of(messages[0].text))[0]
        return Encoding(hidden=state, tokens_read=0, tokens_total=None)
