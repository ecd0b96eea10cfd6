"""The seam between the endpoints and one wire dialect: what was asked, and the forms of the answer.

Nothing of a wire format is known on this side of it; `dialects.py` puts the three dialects behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..orchestrate import Run
from ..pool.backend import Delta
from ..types import Json, Reply, Request, ToolCall
from .auth import Client
from .errors import HttpError

__all__ = ["COMMENT", "Dialect", "Form", "Frames", "Parsed"]

COMMENT = b": still working\n\n"
"""What shows a stream's life where the dialect has no event for it."""


class Frames(Protocol):
    """One streamed answer. Each method returns the bytes of the next frames; none, where there is nothing to tell."""

    @property
    def heartbeat(self) -> bytes:
        """What shows that the stream is alive, at any time."""
        ...

    @property
    def breaks_off(self) -> bool:
        """The connection has to break after `error`, for clients take a clean end for success."""
        ...

    def first(self) -> bytes:
        """Before anything else."""
        ...

    def delta(self, delta: Delta) -> bytes:
        """A piece of text, of reasoning, or of both."""
        ...

    def tool_calls(self, calls: tuple[ToolCall, ...]) -> bytes:
        """Each call whole."""
        ...

    def last(self, run: Run, reply: Reply, *, policy: str) -> bytes:
        """The end of an answer that is complete."""
        ...

    def error(self, problem: HttpError) -> bytes:
        """The end of one that failed."""
        ...


class Form(Protocol):
    """How the answer to one request is written."""

    def to_frames(self, *, run_id: str, created: int) -> Frames:
        """As a stream; `created` in UTC epoch seconds."""
        ...

    def to_body(self, run: Run, reply: Reply, *, created: int, policy: str) -> bytes:
        """Whole."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A request that was understood."""

    request: Request
    is_stream: bool
    form: Form
    session: str | None = None
    """What of the body groups requests into a session."""
    wire: Mapping[str, Json] | None = None
    """What has to be on record so that the answer can be told again later."""


class Dialect(Protocol):
    """One wire dialect."""

    async def read(self, body: bytes, client: Client) -> Parsed:
        """
        Raises:
            RequestError: it cannot be understood, or asks for what cannot be done.
            StoreError: what it refers to cannot be looked up.
        """
        ...

    def error_body(self, problem: HttpError, *, run_id: str | None) -> bytes:
        """An error as this dialect's clients read it."""
        ...
