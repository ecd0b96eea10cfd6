"""The embedded encoder: all-MiniLM-L6-v2 with 8-bit weights (scripts/build_minilm.py), run by onnxruntime on the CPU.

One window is one run of the network: on a CPU a batch is no faster per window, and a window alone needs no padding, so
training and serving compute the same bits. The windows' states of served conversations are kept, most recent first;
they belong to the one encoder thread, which alone reads and writes them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..orchestrate.encoder import Encoding
from ..types import Message
from .windows import MAX_WINDOWS, WINDOW_PIECES, Cut, Window, cut

__all__ = ["READINGS", "MiniLM", "Reading"]

Reading: TypeAlias = Literal["mean", "last", "penultimate", "cls"]
"""What of a window's hidden states is read: the mean over its tokens, [SEP], the token before it, or [CLS]."""
READINGS: tuple[str, ...] = get_args(Reading)

FOLDER = Path(__file__).parent / "minilm"
MAX_CACHED_WINDOWS = 8192  # of 1.5 kB: 12 MB

Vector: TypeAlias = NDArray[np.float32]


class _Card(msgspec.Struct, frozen=True):
    dim: int
    sha256: dict[str, str]


class MiniLM:
    """An `Encoder`. Construction loads the network, about 0.2 s, and checks its files.

    The encoder thread works on one conversation at a time; others wait, as many as the server lets in. One that is
    cancelled while it waits is never encoded.
    """

    def __init__(
        self,
        *,
        folder: Path = FOLDER,
        reading: Reading = "mean",
        threads: int = 1,
        max_cached_windows: int = MAX_CACHED_WINDOWS,
    ) -> None:
        """`threads` is for one run of the network: two were no faster on two cores.

        Raises:
            ModelError: a file is missing or is not the one that was built, or there is no such reading.
        """
        if reading not in READINGS:
            raise ModelError(f"reading {reading!r}: expected one of {', '.join(READINGS)}")
        card = read_card(folder)
        self._session = _load_network(read_checked(folder, "model.onnx", card), threads=threads)
        self._tokeniser = load_tokeniser(read_checked(folder, "tokenizer.json", card))
        self._reading = reading
        self._max_states = max_cached_windows
        self._states: OrderedDict[bytes, Vector] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self.dim = card.dim
        self.name = f"minilm-8bit@{card.sha256['model.onnx'][:8]}/{reading}-{MAX_WINDOWS}x{WINDOW_PIECES}"
        self.runs = 0
        """How often the network ran."""

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        """The conversation as one vector; only windows that were not seen lately are computed."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, tuple(messages))

    def encode_texts(
        self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """(len(texts), dim): each text as `encode` reads a conversation of that one user message. Blocks, on all cores.

        `progress` is called with the windows done and their number. Keeps nothing.
        """
        cuts = [self._cut((Message(role="user", content=text),)) for text in texts]
        windows = list(dict.fromkeys(window for cut_ in cuts for window in cut_.windows))
        states: dict[Window, Vector] = {}
        pool = ThreadPoolExecutor(_count_cores(), thread_name_prefix="encoder-bulk")
        try:
            for window, state in zip(windows, pool.map(self._run, windows), strict=True):
                states[window] = state
                if progress is not None:
                    progress(len(states), len(windows))
        finally:
            pool.shutdown(cancel_futures=True)
        self.runs += len(windows)
        rows = [combine(cut_.windows, [states[window] for window in cut_.windows]) for cut_ in cuts]
        return np.stack(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    def close(self) -> None:
        """Ends the encoder thread. Idempotent."""
        self._thread.shutdown(cancel_futures=True)

    def _encode(self, messages: tuple[Message, ...]) -> Encoding:
        cut_ = self._cut(messages)
        hidden = combine(cut_.windows, [self._recall(window) for window in cut_.windows])
        return Encoding(hidden=hidden, tokens_read=cut_.pieces_read, tokens_total=cut_.pieces_total)

    def _cut(self, messages: Sequence[Message]) -> Cut:
        return cut(messages, lambda text: self._tokeniser.encode(text, add_special_tokens=False).ids)

    def _recall(self, window: Window) -> Vector:
        key = hashlib.blake2b(np.array(window, dtype=np.uint16).tobytes(), digest_size=16).digest()
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self._run(window)
            self.runs += 1
            if len(self._states) > self._max_states:
                self._states.popitem(last=False)
        self._states.move_to_end(key)
        return state

    def _run(self, window: Window) -> Vector:
        """(dim,): one run of the network. Any thread may call it."""
        (hidden,) = self._session.run(None, {"input_ids": np.array([window], dtype=np.int64)})  # (1, T, dim)
        return read_state(hidden[0], self._reading)


def read_state(hidden: Vector, reading: Reading) -> Vector:
    """(T, dim) -> (dim,). A copy, lest the cache keep all T rows alive."""
    if reading == "mean":
        mean: Vector = hidden.mean(axis=0)
        return mean
    row: Vector = hidden[{"last": -1, "penultimate": -2, "cls": 0}[reading]]
    return row.copy()


def combine(windows: Sequence[Sequence[int]], states: Sequence[Vector]) -> Vector:
    """The mean of the windows' states, weighted by their tokens, scaled to length one."""
    weights = np.array([len(window) for window in windows], dtype=np.float32)
    mean = weights @ np.stack(states)  # (dim,)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def read_card(folder: Path) -> _Card:
    path = folder / "card.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Card)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}: {_ADVICE}") from None
    except msgspec.MsgspecError as error:
        raise ModelError(f"{path}: {error}: {_ADVICE}") from None


def read_checked(folder: Path, name: str, card: _Card) -> bytes:
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}: {_ADVICE}") from None
    found, wanted = hashlib.sha256(content).hexdigest(), card.sha256.get(name)
    if found != wanted:
        raise ModelError(f"{path}: sha256 {found}, expected {wanted}: the file is damaged: {_ADVICE}")
    return content


_ADVICE = "install torafugu again (`pip install --force-reinstall --no-deps torafugu`)"


def _load_network(content: bytes, *, threads: int) -> Any:
    import onnxruntime  # 0.1 s and 40 MB that only an encoder needs

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A waiting thread that spins takes the core from everything else on a small machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def load_tokeniser(content: bytes) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content.decode())


def _count_cores() -> int:
    """Cores that this process may use, not those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
