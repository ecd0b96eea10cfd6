"""Workers that ship for tests, demos and drills: `Scripted` answers as told, `Failing` fails as told. Real backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..config import read_table
from ..errors import ConfigError, WorkerError
from ..types import ToolCall, Usage
from .backend import Backend, Completion, Delta, OnDelta, Query
from .spec import WorkerSpec

__all__ = ["Failing", "Fault", "Script", "Scripted", "make_scripted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a scripted worker in a pool file does: its `extra_body`."""

    text: str | None = None
    """Its answer to everything; None repeats the last message."""
    latency_s: float = 0.0
    pieces: int = 8
    """Of a streamed answer."""

    def __post_init__(self) -> None:
        if not 0 <= self.latency_s < float("inf"):
            raise ConfigError(f"latency_s {self.latency_s}: expected 0 or more seconds")
        if self.pieces < 1:
            raise ConfigError(f"pieces {self.pieces}: expected at least 1")


def make_scripted(spec: WorkerSpec) -> Scripted:
    """The backend of a scripted worker, so that a server can be tried without a key.

    Raises:
        ConfigError: `extra_body` holds what no script has.
    """
    script = read_table(Script, spec.extra_body, where=f"worker {spec.id!r}: extra_body")

    def answer(query: Query) -> str:
        return query.messages[-1].text if script.text is None else script.text

    return Scripted(answer, latency_s=script.latency_s, pieces=script.pieces, worker=spec.id)


class Scripted:
    """Answers from a list, one per call, or by a function of the query. A list that has ended is `unavailable`."""

    def __init__(
        self,
        answers: Iterable[str | Completion] | Callable[[Query], str | Completion],
        *,
        latency_s: float = 0.0,
        pieces: int = 1,
        usage: Usage = Usage(),  # noqa: B008  # frozen
        worker: str = "scripted",
    ) -> None:
        self._answer = answers if callable(answers) else _in_turn(answers, worker)
        self._latency_s = latency_s
        self._pieces = pieces
        self._usage = usage
        self.queries: list[Query] = []
        """What it was asked, in order."""

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        """One attempt; the latency passes before the first piece."""
        self.queries.append(query)
        answer = self._answer(query)
        if isinstance(answer, str):
            answer = Completion(text=answer, finish_reason="stop", usage=self._usage)
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        if on_delta is not None:
            for piece in _split(answer.text, self._pieces):
                await on_delta(Delta(text=piece))
        return answer

    async def close(self) -> None:
        """Nothing is held."""


Fault: TypeAlias = Literal["hang", "die", "empty", "garbage"]


class Failing:
    """Fails the first `times` calls (None: every call) and then answers as `then` does.

    A `WorkerError` is raised as it is. `hang` never returns; `die` breaks the stream after `deltas` pieces; `empty`
    answers nothing; `garbage` calls a tool that nobody offered, with arguments that are not JSON.
    """

    def __init__(
        self, fault: WorkerError | Fault, *, times: int | None = None, then: Backend | None = None, deltas: int = 0
    ) -> None:
        if times is not None and then is None:
            raise ValueError("what follows the failures? give `then`")
        self._fault = fault
        self._left = times
        self._then = then
        self._deltas = deltas
        self.calls = 0

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        """One attempt, which fails while there are failures left."""
        self.calls += 1
        if self._left is not None and self._then is not None:
            if self._left == 0:
                return await self._then.complete(query, on_delta)
            self._left -= 1
        if isinstance(self._fault, WorkerError):
            raise _again(self._fault)
        return await self._fail(self._fault, on_delta)

    async def _fail(self, fault: Fault, on_delta: OnDelta | None) -> Completion:
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "die":
            return await self._die(on_delta)
        call = ToolCall(id="call_0", name="no_such_tool", arguments='{"broken":')
        calls = (call,) if fault == "garbage" else ()
        return Completion(text="", finish_reason="tool_calls" if calls else "stop", tool_calls=calls)

    async def _die(self, on_delta: OnDelta | None) -> Completion:
        if on_delta is not None:
            for i in range(self._deltas):
                await on_delta(Delta(text=f"piece {i} "))
        raise WorkerError(
            "worker 'failing': the stream broke",
            worker="failing",
            code="truncated",
            partial=on_delta is not None and self._deltas > 0,
        )

    async def close(self) -> None:
        """Nothing is held."""


def _again(error: WorkerError) -> WorkerError:
    """A fresh one: raised twice, an exception would gather the tracebacks and marks of both."""
    fresh = WorkerError(
        error.message,
        worker=error.worker,
        code=error.code,
        retry_after_s=error.retry_after_s,
        partial=error.partial,
    )
    for note in getattr(error, "__notes__", ()):
        fresh.add_note(note)
    return fresh


def _in_turn(answers: Iterable[str | Completion], worker: str) -> Callable[[Query], str | Completion]:
    script = iter(answers)

    def next_answer(query: Query) -> str | Completion:
        del query
        answer = next(script, None)
        if answer is None:
            raise WorkerError(f"worker {worker!r}: the script has ended", worker=worker, code="unavailable")
        return answer

    return next_answer


def _split(text: str, pieces: int) -> Sequence[str]:
    size = max(1, -(-len(text) // pieces))
    return [text[i : i + size] for i in range(0, len(text), size)]
