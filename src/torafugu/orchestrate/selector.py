"""`fugu`: the selector. One encoder pass over the conversation, one row of scores, one worker; then its reply.

The client's next call routes afresh. TRINITY's coordinator without its roles, as Fugu serves it (technical report,
arXiv 2606.21228, section 3): argmax when serving; the other workers, by score, are who the pool fails over to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..errors import PlanError
from ..types import Answer, Plan, Step
from .encoder import Encoder
from .head import Head, check_encoder
from .run import Run

__all__ = ["Selector"]


class Selector:
    """The policy behind the model name `fugu`."""

    def __init__(self, head: Head, encoder: Encoder, pool: Mapping[str, str]) -> None:
        """`pool`: id -> model of the workers that can be called.

        Raises:
            ModelError: the head was trained for another encoder or other workers.
        """
        check_encoder(head.card, head.features, name=encoder.name, dim=encoder.dim)
        head.check_pool(pool)
        self.id = f"fugu@{head.id}"
        self._head = head
        self._encoder = encoder
        self._pool = frozenset(pool)

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
        best, *others = scores
        return Plan(
            steps=(Step(id=0, worker=best, alternates=tuple(others), is_final=True),),
            scores=scores,
            masked=tuple(sorted(self._pool - allowed)),
            notes={
                "encode_ms": round(encode_ms, 3),
                "tokens_read": encoding.tokens_read,
                "tokens_total": encoding.tokens_total,
            },
        )
