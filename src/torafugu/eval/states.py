"""Hidden states of questions, kept on disk: encoding is most of the time of a training run, and never changes.

The cache is a folder of `.npy` files named by the encoder and by the texts. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..orchestrate.encoder import Encoding
from ..pool.recorded import Question
from ..types import Message

__all__ = ["BulkEncoder", "KnownStates", "default_cache", "encode_questions"]

_CHUNK = 64
"""Questions per cache write and progress step."""


class BulkEncoder(Protocol):
    """An encoder that also reads many texts at once."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, dim), each text as the only message of a conversation."""
        ...


def default_cache() -> Path:
    """$XDG_CACHE_HOME/torafugu/states, or ~/.cache/torafugu/states."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "torafugu" / "states"


def encode_questions(
    encoder: BulkEncoder,
    questions: Sequence[Question],
    *,
    cache: Path | None,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """(n, dim). `cache` None keeps nothing. `progress` is told how many more are known."""
    out = np.empty((len(questions), encoder.dim), np.float32)
    held = _Held(cache, encoder.name, encoder.dim)
    unknown: list[int] = []
    for i, question in enumerate(questions):
        state = held.get(question.text)
        if state is None:
            unknown.append(i)
        else:
            out[i] = state
    if progress and len(unknown) < len(questions):
        progress(len(questions) - len(unknown))
    unknown.sort(key=lambda i: len(questions[i].text))  # like lengths together: less padding
    for start in range(0, len(unknown), _CHUNK):
        rows = unknown[start : start + _CHUNK]
        out[rows] = encoder.encode_texts([questions[i].text for i in rows])
        held.put([questions[i].text for i in rows], out[rows])
        if progress:
            progress(len(rows))
    return out


class KnownStates:
    """An `Encoder` of states that are already known, by the text of the last message."""

    def __init__(self, name: str, states: Mapping[str, npt.NDArray[np.float32]], dim: int) -> None:
        self.name = name
        self.dim = dim
        self._states = states

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        return Encoding(hidden=self._states[messages[-1].text], tokens_read=0, tokens_total=None)


class _Held:
    """One file per chunk of newly encoded texts: keys (n, 16) uint8 and states (n, dim)."""

    def __init__(self, cache: Path | None, encoder: str, dim: int) -> None:
        self._folder = None if cache is None else cache / hashlib.sha256(encoder.encode()).hexdigest()[:16]
        self._states: dict[bytes, npt.NDArray[np.float32]] = {}
        if self._folder is None or not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                if file["states"].shape[1:] == (dim,):
                    keys = (key.tobytes() for key in file["keys"])
                    self._states.update(zip(keys, file["states"], strict=True))

    def get(self, text: str) -> npt.NDArray[np.float32] | None:
        return self._states.get(_key(text))

    def put(self, texts: Sequence[str], states: npt.NDArray[np.float32]) -> None:
        if self._folder is None:
            return
        keys = np.array([np.frombuffer(_key(text), np.uint8) for text in texts])
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{hashlib.sha256(keys.tobytes()).hexdigest()[:24]}.npz"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, keys=keys, states=states)
        partial.rename(path)  # whole or not at all


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
