"""The seam between a policy and whatever reads a conversation for it: an `Encoder` turns messages into a hidden state.

A policy keeps the name of the encoder that it was trained on and refuses any other: the same numbers of another encoder
mean something else. numpy is not imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..types import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Encoder", "Encoding"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoding:
    """A conversation as the encoder sees it."""

    hidden: NDArray[np.float32]
    """(dim,), of length one."""
    tokens_read: int
    tokens_total: int | None
    """Of all that could have been read; None when the conversation was too long to be counted."""


class Encoder(Protocol):
    """Text -> hidden state, in this process."""

    @property
    def name(self) -> str:
        """Identity: model, weights and reading. Equal names give comparable hidden states."""
        ...

    @property
    def dim(self) -> int: ...

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        """What the conversation is about, as one vector. Does not block the event loop."""
        ...
