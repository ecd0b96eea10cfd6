"""What a query demands of a worker, so that nobody is asked who cannot take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..types import ImagePart, OtherPart, Part
from .backend import Query
from .documents import FILE_KINDS, read_inline, to_plain
from .spec import WorkerSpec

__all__ = ["TOOLS", "Need", "find_needs"]

_MAX_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One thing that a worker has to take."""

    what: str
    modality: str | None = None
    dialect: str | None = None
    """The only one that has a form for it; None: all have."""

    def is_met_by(self, spec: WorkerSpec) -> bool:
        if self == TOOLS:
            return spec.tools
        return (self.modality is None or self.modality in spec.modalities) and self.dialect in (None, spec.dialect)

    @property
    def lack(self) -> str:
        """What is to be said of a worker that does not meet it."""
        return "it calls no tools" if self == TOOLS else f"it takes no {self.what}"


TOOLS = Need(what="tools")
_IMAGES = Need(what="images", modality="image")
_PDFS = Need(what="PDFs", modality="pdf")


def find_needs(query: Query) -> tuple[Need, ...]:
    """Each once: those of the messages in their order, then tools."""
    found: dict[Need, None] = {}
    for message in query.messages:
        for part in message.content if isinstance(message.content, tuple) else ():
            found |= dict.fromkeys(_needs_of(part))
    return (*found, *([TOOLS] if query.sampling.tools else []))


def _needs_of(part: Part) -> Iterator[Need]:
    if isinstance(part, ImagePart):
        yield _IMAGES
    elif isinstance(part, OtherPart):
        plain = to_plain(part)
        if plain is None:
            yield _need_of_other(part)
        else:
            for piece in plain:
                yield from _needs_of(piece)


def _need_of_other(part: OtherPart) -> Need:
    inline = read_inline(part)
    if inline is not None and inline.is_pdf:
        return _PDFS
    if part.kind == "document" or part.kind in FILE_KINDS:
        things, dialect = ("documents", "anthropic") if part.kind == "document" else ("files", "openai")
        where = "by reference" if inline is None else f"of type {inline.media_type[:_MAX_SHOWN]!r}"
        return Need(what=f"{things} {where}", modality="pdf", dialect=dialect)
    if part.kind == "input_audio":
        return Need(what="audio", modality="audio", dialect="openai")
    # Only requests in chat completions' form bring parts that we do not know.
    return Need(what=f"parts of type {part.kind[:_MAX_SHOWN]!r}", dialect="openai")
