"""Text out of tokens while they come: what is certain is passed on, what may still change is held. Pure; no torch.

Both classes are pushed pieces and give back what has become certain; `finish` gives the rest. What they give back is
the same in total, however it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

__all__ = ["Detokeniser", "StopScanner"]

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet


class Detokeniser:
    """Tokens in, text out as soon as it is certain: never part of a character, never a blank that a decoder would eat.

    Text is held while it ends in what may be the first bytes of a character. Tokens are decoded together with those of
    the piece before, since decoders strip the blank before the first word that they see.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token makes certain; often "" or more than the token's own."""
        self._held.append(token)
        piece = self._new_text()
        if not piece or piece.endswith(UNFINISHED):
            return ""
        self._before, self._held = self._held, []
        return piece

    def finish(self) -> str:
        """What was held: nothing more can complete it."""
        piece = self._new_text()
        self._before, self._held = self._held, []
        return piece

    def _new_text(self) -> str:
        return self._decode(self._before + self._held)[len(self._decode(self._before)) :] if self._held else ""


class StopScanner:
    """Passes text on up to the stop sequence that is complete first, of several the longest; that itself is dropped.

    Holds back what may be the beginning of one, so how the text was cut into pieces makes no difference.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_over = False
        """A stop sequence was met: nothing more is passed on."""

    def push(self, piece: str) -> str:
        """The text that no stop sequence can claim any more."""
        if self.is_over:
            return ""
        text = self._held + piece
        met = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if met:
            self.is_over, self._held = True, ""
            return text[: min(met)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back: no stop sequence came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` are the first ones of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
