"""The whole report of one policy on one split: what `fugu eval` prints and writes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..local.open import open_encoder, read_encoder_config
from ..orchestrate.artefact import Card, read_card
from ..orchestrate.encoder import Encoder
from ..orchestrate.policies import KINDS, load_policy
from ..pool.recorded import RecordedSet, create_recorded_pool
from .baselines import rank_workers
from .diagnostics import alarms, diagnose
from .evaluate import LearnedBaselines, episodes_to_turns, measure_baselines, run_policy, summarise
from .matrix import OutcomeMatrix, build_matrix
from .provenance import describe_data, find_commit
from .states import BulkEncoder, KnownStates, encode_questions

__all__ = ["Reporter", "evaluate"]


class Reporter(Protocol):
    """Where long work shows how far it is."""

    def stage(self, name: str, total: int) -> None:
        """A new stage of `total` units begins."""
        ...

    def advance(self, units: int) -> None: ...

    def say(self, line: str) -> None: ...


def evaluate(
    policy: Path,
    recorded: RecordedSet,
    *,
    split: str,
    encoder: BulkEncoder,
    seed: int,
    cache: Path | None,
    report: Reporter,
) -> dict[str, Any]:
    """The JSON artefact of the head in the folder `policy`. `seed` is the bootstrap's.

    Raises:
        ConfigError: the split has no questions, or the head knows none of the workers.
        ModelError: the head is damaged, or reads another encoder's states.
    """
    started = time.time()
    card = read_card(policy, *KINDS)
    matrix = build_matrix(recorded)
    target, train, validation = matrix.split(split), matrix.split("train"), matrix.split("validation")
    if len(target) == 0:
        found = ", ".join(sorted({q.split for q in matrix.questions}))
        raise ConfigError(f"{recorded.path}: no questions of split {split!r}: the folder has {found}")
    if split == "validation":  # what is measured on chooses nothing
        validation = matrix.rows([])
    ranking, chosen_on = _rank(card, train, validation, target)
    models = {worker.id: worker.model for worker in card.workers}
    known = {w: recorded.models[w] for w in target.workers if w in models}
    if not known:
        names = ", ".join(target.workers)
        raise ConfigError(f"{policy}: head {card.short_hash} knows none of the workers of {recorded.path}: {names}")
    parts = {"train": train, "validation": validation, "target": target}
    report.stage("encode questions", sum(map(len, parts.values())))
    states = {
        name: encode_questions(encoder, part.questions, cache=cache, progress=report.advance)
        for name, part in parts.items()
    }
    encoded = {q.text: states["target"][i] for i, q in enumerate(target.questions)}
    with _open_reader(card, policy, KnownStates(encoder.name, encoded, encoder.dim)) as reader:
        loaded = load_policy(policy, reader, known)
        report.stage("run the policy", len(target))
        pool = create_recorded_pool(recorded)
        episodes = asyncio.run(run_policy(target, loaded, pool, known=frozenset(known), progress=report.advance))
    report.say("measuring the baselines")
    baselines = measure_baselines(train, validation, target, _learned(states, train, validation))
    roles, limit = _roles_of(card)
    diagnostics = diagnose(episodes_to_turns(target, episodes), target, ranking=ranking, turn_limit=limit, roles=roles)
    return {
        **summarise(target, episodes, ranking, baselines, seed=seed),
        "diagnostics": diagnostics,
        "alarms": [
            msgspec.to_builtins(alarm)
            for alarm in alarms(diagnostics)
            if card.kind != "selector" or not alarm.code.startswith("verifier_")  # it has none
        ],
        "best_single_chosen_on": chosen_on,
        "policy": {"id": loaded.id, "training": dict(card.training), "encoder": card.encoder},
        "workers_unknown_to_head": [w for w in target.workers if w not in models],
        "data": describe_data(recorded),
        "split": split,
        "seed": seed,
        "commit": find_commit(),
        "command": sys.argv,
        "seconds": round(time.time() - started, 1),
    }


@contextmanager
def _open_reader(card: Card, folder: Path, known: Encoder) -> Iterator[Encoder]:
    """What the policy reads with: states that are known already, or, of whole transcripts, its own encoder."""
    if card.kind != "transcript":
        yield known
        return
    encoder = open_encoder(read_encoder_config(card.rules, where=str(folder)))
    try:
        yield encoder
    finally:
        encoder.close()


def _roles_of(card: Card) -> tuple[tuple[str, ...], int | None]:
    """The roles that the policy may call, and its limit of turns. What is recalled is not called."""
    if card.kind == "selector":
        return ("worker",), None
    rules = card.rules["config"] if card.kind == "transcript" else card.rules
    roles = ("worker",) if rules.get("recall") else tuple(rules["roles"])
    return roles, int(rules["max_turns"])


def _rank(
    card: Card, train: OutcomeMatrix, validation: OutcomeMatrix, target: OutcomeMatrix
) -> tuple[npt.NDArray[np.int64], str]:
    """Columns, the best single worker first: by the data's splits train and validation; without, the card names it."""
    if len(train) or len(validation):
        there = [name for name, part in (("train", train), ("validation", validation)) if len(part)]
        return rank_workers(OutcomeMatrix.join(train, validation)), " and ".join(there)
    named = card.baselines["best_single"]["worker"]
    if named not in target.workers:
        raise ConfigError(
            f"the data has neither train nor validation split, and not the head's best single worker {named!r} either"
        )
    first = target.workers.index(named)
    others = [j for j in range(len(target.workers)) if j != first]
    return np.array([first, *others], dtype=np.int64), "the head's card"


def _learned(
    states: dict[str, npt.NDArray[np.float32]], train: OutcomeMatrix, validation: OutcomeMatrix
) -> LearnedBaselines | None:
    if not len(train) or not len(validation):
        return None
    return LearnedBaselines(train=states["train"], validation=states["validation"], target=states["target"])
