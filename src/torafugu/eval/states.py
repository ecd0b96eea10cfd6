"""Hidden states of questions, kept on disk: encoding is most of the time of a training run, and never changes.

The cache is a folder per encoder, of files named by the texts in them. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..orchestrate.encoder import Encoding
from ..pool.recorded import Question
from ..types import Message

__all__ = ["BulkEncoder", "KnownStates", "default_cache", "encode_questions"]

_log = logging.getLogger(__name__)

_CHUNK = 64
"""Questions per cache write and progress step."""
_SUFFIX = ".states"
_KEY_BYTES = 16
_DIGEST_BYTES = 32


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
    """(n, dim). `cache` None keeps nothing. `progress` is told how many more are known.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
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
    """One file per chunk of newly encoded texts: SHA-256 of the rest, keys (n, 16), states (n, dim) little-endian.

    A file that is damaged is passed over with a warning: what it held is encoded again.
    """

    def __init__(self, cache: Path | None, encoder: str, dim: int) -> None:
        self._folder = None if cache is None else cache / hashlib.sha256(encoder.encode()).hexdigest()[:16]
        self._dim = dim
        self._states: dict[bytes, npt.NDArray[np.float32]] = {}
        if self._folder is None or not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                self._states.update(self._unpack(path.read_bytes()))
            except (OSError, ValueError) as error:
                _log.warning("%s: hidden states are encoded again: %s", path, error)

    def get(self, text: str) -> npt.NDArray[np.float32] | None:
        return self._states.get(_key(text))

    def put(self, texts: Sequence[str], states: npt.NDArray[np.float32]) -> None:
        if self._folder is None:
            return
        keys = b"".join(map(_key, texts))
        path = self._folder / f"{hashlib.sha256(keys).hexdigest()[:24]}{_SUFFIX}"
        partial = path.with_suffix(f".{secrets.token_hex(8)}.partial")  # others may be writing the very same chunk
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            body = keys + states.astype("<f4").tobytes()
            partial.write_bytes(self._digest(body) + body)
            partial.replace(path)  # whole or not at all
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: hidden states cannot be kept: {error.strerror}: choose another folder with --cache"
            ) from None

    def _unpack(self, raw: bytes) -> dict[bytes, npt.NDArray[np.float32]]:
        body = raw[_DIGEST_BYTES:]
        if self._digest(body) != raw[:_DIGEST_BYTES]:
            raise ValueError("its content does not have the SHA-256 that it begins with")
        count = len(body) // (_KEY_BYTES + 4 * self._dim)
        states = np.frombuffer(body, "<f4", offset=count * _KEY_BYTES).reshape(count, self._dim).astype(np.float32)
        return {body[i * _KEY_BYTES : (i + 1) * _KEY_BYTES]: state for i, state in enumerate(states)}

    def _digest(self, body: bytes) -> bytes:
        return hashlib.sha256(self._dim.to_bytes(4, "little") + body).digest()


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]
