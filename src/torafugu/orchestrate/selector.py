"""`fugu`: the selector. One encoder pass over the conversation, one row of scores, one worker; then its reply.

The client's next call routes afresh, but leaves a worker whose prompt cache is warm only for one that is worth it
(docs/decisions/0014). TRINITY's coordinator without its roles, as Fugu serves it (technical report, arXiv 2606.21228,
section 3): argmax when serving; the other workers, by score, are who the pool fails over to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ..errors import ModelError, PlanError
from ..pool.prices import Price
from ..types import Answer, Json, Plan, Step, Usage, Warm
from .encoder import Encoder
from .head import Head, check_encoder
from .policy import SWITCH_MARGIN
from .run import Run

__all__ = ["SCALE_METRIC", "Selector", "advantage", "know_no_price"]

SCALE_METRIC = "reward_per_advantage"
"""Name in a card's metrics: what an advantage of 1 came to in reward, on questions that were held out in training."""
HALF_TOKENS = 4_000
"""Lost tokens for which half of the margin is asked. Chosen: an agent's first prompt has two to four times as many."""
CACHED_PRICE = 0.1
"""Of a token that a cache holds, relative to one that is read anew; so at Anthropic and OpenAI."""


Floats: TypeAlias = npt.NDArray[np.float64]


def know_no_price(worker: str) -> Price | None:
    del worker
    return None


class Selector:
    """The policy behind the model name `fugu`."""

    def __init__(
        self,
        head: Head,
        encoder: Encoder,
        pool: Mapping[str, str],
        *,
        switch_margin: float = SWITCH_MARGIN,
        price_of: Callable[[str], Price | None] = know_no_price,
    ) -> None:
        """`pool`: id -> model of the workers that can be called. `switch_margin`: the gain in expected reward, 0 to 1,
        for which a large warm cache is given up.

        Raises:
            ModelError: the head was trained for another encoder or other workers, or its card is damaged.
        """
        check_encoder(head.card, head.features, name=encoder.name, dim=encoder.dim)
        head.check_pool(pool)
        self.id = f"fugu@{head.id}"
        self._head = head
        self._encoder = encoder
        self._pool = frozenset(pool)
        self._scale = _read_scale(head)
        self._switch_margin = switch_margin
        self._price_of = price_of

    async def decide(self, run: Run) -> Plan | Answer:
        if run.replies:
            return Answer(step=0)
        allowed = self._pool if run.request.allowed is None else self._pool & run.request.allowed
        if not allowed:
            raise PlanError("no worker of the pool is allowed for this request")
        started = time.perf_counter()
        encoding = await self._encoder.encode(run.request.messages)
        encode_ms = (time.perf_counter() - started) * 1e3
        scores = self._head.scores(encoding.hidden, allowed)
        chosen, weighed = self._weigh(scores, run.request.warm, encoding.tokens_total)
        others = tuple(worker for worker in scores if worker != chosen)
        return Plan(
            steps=(Step(id=0, worker=chosen, alternates=others, is_final=True),),
            scores=scores,
            masked=tuple(sorted(self._pool - allowed)),
            notes={
                "encode_ms": round(encode_ms, 3),
                "tokens_read": encoding.tokens_read,
                "tokens_total": encoding.tokens_total,
                **weighed,
            },
        )

    def _weigh(
        self, scores: Mapping[str, float], warm: Warm | None, tokens_total: int | None
    ) -> tuple[str, dict[str, Json]]:
        """Who is called, and what was weighed: is the best worker better by more than the warm one's cache is worth?"""
        best = next(iter(scores))
        if warm is None:
            return best, {"session": "cold"}
        if warm.worker not in scores:  # it may not be called now, or the head does not know it
            return best, {"session": "switched", "session_worker": warm.worker}
        tokens = tokens_total if warm.input_tokens is None else warm.input_tokens
        lost = 0.0 if best == warm.worker else self._tokens_lost(warm.worker, best, tokens)
        margin = self._switch_margin * (1.0 if lost is None else lost / (lost + HALF_TOKENS))
        gain = (1.0 if self._scale is None else self._scale) * advantage(scores[best], scores[warm.worker])
        is_kept = gain <= margin
        return warm.worker if is_kept else best, {
            "session": "kept" if is_kept else "switched",
            "session_worker": warm.worker,
            "session_gain": round(gain, 4),
            "session_margin": round(margin, 4),
            "session_tokens_lost": None if lost is None else round(lost),
        }

    def _tokens_lost(self, warm: str, best: str, tokens: int | None) -> float | None:
        """What `best` would cost more for reading the session than `warm` does, in input tokens of `warm`.

        Where a price is unknown, or the warm worker is free and what is lost is time, they are taken to cost the same.
        None: nobody counted the tokens.
        """
        if tokens is None:
            return None
        prices = [self._price_to_read(worker, tokens) for worker in (warm, best)]
        here, there = (None if price is None else float(price) for price in prices)
        ratio = there / here if here and there is not None else 1.0
        return tokens * max(0.0, ratio - CACHED_PRICE)

    def _price_to_read(self, worker: str, tokens: int) -> Decimal | None:
        price = self._price_of(worker)
        return None if price is None else price.cost_usd(Usage(input_tokens=tokens, output_tokens=0))


@overload
def advantage(best: float, other: float) -> float: ...
@overload
def advantage(best: Floats, other: Floats) -> Floats: ...
def advantage(best: float | Floats, other: float | Floats) -> float | Floats:
    """How much rather the head asks the one than the other, 0 to 1; the rest of the pool has no part in it.

    Its probabilities are no rewards: how far apart they lie depends on how it was trained. `SCALE_METRIC` says what
    this comes to.
    """
    return (best - other) / (best + other)


def _read_scale(head: Head) -> float | None:
    """None: the head is older than the measure, or chooses one worker always. Then an advantage counts as reward."""
    scale = head.card.metrics.get(SCALE_METRIC)
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < float("inf"):
        raise ModelError(f"head {head.id}: {SCALE_METRIC} {scale!r}: expected a number, 0 or more: train it again")
    return float(scale)
