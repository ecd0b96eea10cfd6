"""MiniLM in numpy, whose singular values can be scaled: the paper's method at a size that any CPU trains.

The weights are those of the shipped model.onnx, taken out of their 8-bit blocks to float32; its initialisers are read
here, as names, shapes and numbers, without the `onnx` package. Layers below the first scaled one are the same for
every vector of offsets: their output (a `Prefix`) is computed once per text, and a candidate costs the layers above.

Hidden states of different offsets are not comparable; `name` tells them apart.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..orchestrate.encoder import Encoding
from ..types import Message
from .encoder import FOLDER, READINGS, Reading, combine, load_tokeniser, read_card, read_checked, read_state
from .svf import Spectrum, SvfLayout, SvfMatrix, apply_offsets, decompose, hash_offsets
from .windows import MAX_WINDOWS, WINDOW_PIECES, Cut, Window, cut

__all__ = ["PAPER_LAYERS", "Prefix", "SvfMiniLM", "read_initialisers"]

Array = NDArray[np.float32]
Weights = dict[str, Array]

HEADS, LAYER_NORM_EPS = 12, 1e-12
PARTS = ("query", "key", "value", "attention.out", "inner", "outer")
"""Of a layer, its matrices, in the order of their offsets."""
PAPER_LAYERS = (4,)  # "the second-to-last" of six
CHUNK_TOKENS = 512  # of one pass through the upper layers: what stays in a core's cache
MAX_CACHED_TOKENS = 32_768  # of 1.5 kB: 50 MB of prefixes


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Texts up to the first scaled layer: the same for every vector of offsets. 1.5 kB per token."""

    hidden: tuple[Array, ...]  # per window: (T, dim)
    windows: tuple[tuple[int, ...], ...]
    """Per text, the indices of its windows; texts may share one."""


class SvfMiniLM:
    """An `Encoder`, and a `BulkEncoder`. Construction takes 0.3 s; `with_offsets` gives another beside it in 20 ms."""

    def __init__(
        self,
        *,
        folder: Path = FOLDER,
        reading: Reading = "mean",
        layers: Sequence[int] = PAPER_LAYERS,
        offsets: NDArray[np.floating] | None = None,
    ) -> None:
        """`layers`: whose matrices are scaled, from 0. `offsets`: as `layout` has them; None for zeros.

        Raises:
            ModelError: a file is damaged, there is no such layer or reading, or the offsets do not fit.
        """
        self._base = _Base.load(folder, layers)
        if reading not in READINGS:
            raise ModelError(f"reading {reading!r}: expected one of {', '.join(READINGS)}")
        self._set(reading, np.zeros(self.layout.size, np.float32) if offsets is None else offsets)

    @property
    def layout(self) -> SvfLayout:
        """Which matrices are scaled, and where their offsets are: 2,304 per layer."""
        return self._base.layout

    @property
    def dim(self) -> int:
        return self._base.dim

    def with_offsets(self, offsets: NDArray[np.floating]) -> SvfMiniLM:
        """The same encoder with these offsets instead. It shares weights, prefixes and thread with this one.

        Raises:
            ModelError: the offsets do not fit.
        """
        other = object.__new__(SvfMiniLM)
        other._base = self._base
        other._set(self._reading, offsets)
        return other

    def prefix(self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None) -> Prefix:
        """The texts, each as the only message of a conversation, up to the first scaled layer. Blocks."""
        cuts = [self._base.cut((Message(role="user", content=text),)) for text in texts]
        index = {window: i for i, window in enumerate(dict.fromkeys(w for cut_ in cuts for w in cut_.windows))}
        hidden = []
        for window in index:
            hidden.append(self._base.run_lower(window))
            if progress is not None:
                progress(len(hidden), len(index))
        return Prefix(tuple(hidden), tuple(tuple(index[window] for window in cut_.windows) for cut_ in cuts))

    def encode_prefix(self, prefix: Prefix) -> Array:
        """(n, dim): what these offsets make of the texts. Blocks; any thread may call it."""
        states = self._run_upper(prefix.hidden)
        rows = [
            combine([range(len(prefix.hidden[i])) for i in windows], [states[i] for i in windows])
            for windows in prefix.windows
        ]
        return np.stack(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    def encode_texts(self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None) -> Array:
        """(n, dim): each text as `encode` reads a conversation of that one user message, but for rounding. Blocks."""
        return self.encode_prefix(self.prefix(texts, progress=progress))

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        """The conversation as one vector. Prefixes of its windows are kept, for any offsets."""
        return await asyncio.get_running_loop().run_in_executor(self._base.thread, self._encode, tuple(messages))

    def close(self) -> None:
        """Ends the encoder thread, also for all that were made by `with_offsets`. Idempotent."""
        self._base.thread.shutdown(cancel_futures=True)

    def _set(self, reading: Reading, offsets: NDArray[np.floating]) -> None:
        base = self._base
        self._reading: Reading = reading
        self._weights = base.weights | base.scale(offsets)
        layers = "+".join(str(layer) for layer in base.layers)
        self.name = (
            f"minilm-numpy@{base.sha256[:8]}/{reading}-{MAX_WINDOWS}x{WINDOW_PIECES}"
            f"/svf-{layers}-{hash_offsets(base.layout, offsets)}"
        )

    def _encode(self, messages: tuple[Message, ...]) -> Encoding:
        cut_ = self._base.cut(messages)
        states = self._run_upper([self._base.recall_lower(window) for window in cut_.windows])
        hidden = combine(cut_.windows, states)
        return Encoding(hidden=hidden, tokens_read=cut_.pieces_read, tokens_total=cut_.pieces_total)

    def _run_upper(self, lower: Sequence[Array]) -> list[Array]:
        """(T, dim) of each window up to the first scaled layer -> its (dim,) state."""
        states = []
        for start, stop in _chunks([len(hidden) for hidden in lower]):
            part = lower[start:stop]
            lengths = [len(hidden) for hidden in part]
            x = np.concatenate(part)  # (T of all, dim)
            for layer in range(self._base.first, self._base.depth):
                x = _run_layer(self._weights, layer, x, lengths)
            states += [read_state(hidden, self._reading) for hidden in np.split(x, np.cumsum(lengths)[:-1])]
        return states


class _Base:
    """What encoders with different offsets share: weights, spectra, prefixes of windows, and the one thread."""

    def __init__(self, weights: Weights, tokeniser: Any, sha256: str, layers: Sequence[int]) -> None:
        self.weights, self.sha256 = weights, sha256
        self.depth = sum(name.endswith(".inner") for name in weights)
        self.dim = int(weights["positions"].shape[1])
        self.layers = tuple(sorted(set(layers)))
        if not self.layers or not set(self.layers) <= set(range(self.depth)):
            raise ModelError(f"layers {tuple(layers)}: expected at least one of 0 to {self.depth - 1}")
        self.first = self.layers[0]
        names = [f"layer{layer}.{part}" for layer in self.layers for part in PARTS]
        self.layout = SvfLayout(
            tuple(SvfMatrix(name=name, rows=len(weights[name]), columns=weights[name].shape[1]) for name in names)
        )
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="encoder-svf")
        self._tokeniser = tokeniser
        self._spectra: dict[str, Spectrum] = {}
        self._lower: OrderedDict[Window, Array] = OrderedDict()  # the encoder thread's alone
        self._tokens_kept = 0

    @staticmethod
    def load(folder: Path, layers: Sequence[int]) -> _Base:
        card = read_card(folder)
        network = read_checked(folder, "model.onnx", card)
        tokeniser = load_tokeniser(read_checked(folder, "tokenizer.json", card))
        where = str(folder / "model.onnx")
        return _Base(
            _dequantise(read_initialisers(network, where), where), tokeniser, card.sha256["model.onnx"], layers
        )

    def scale(self, offsets: NDArray[np.floating]) -> Weights:
        """The scaled matrices. Each is decomposed when it is first scaled."""
        scaled = {}
        for name, part in self.layout.split(offsets).items():
            if np.any(part):
                if name not in self._spectra:
                    self._spectra[name] = decompose(self.weights[name])
                scaled[name] = apply_offsets(self.weights[name], self._spectra[name], part)
        return scaled

    def cut(self, messages: Sequence[Message]) -> Cut:
        return cut(messages, lambda text: self._tokeniser.encode(text, add_special_tokens=False).ids)

    def run_lower(self, window: Window) -> Array:
        """(T, dim): a window up to the first scaled layer."""
        ids = list(window)
        words = self.weights["word.codes"][ids] * self.weights["word.scales"][ids]
        x = _norm(self.weights, "embedding.norm", words + self.weights["positions"][: len(ids)])
        for layer in range(self.first):
            x = _run_layer(self.weights, layer, x, [len(ids)])
        return x

    def recall_lower(self, window: Window) -> Array:
        """`run_lower`, kept for the windows that were asked for lately. Only the encoder thread may call it."""
        hidden = self._lower.get(window)
        if hidden is None:
            hidden = self._lower[window] = self.run_lower(window)
            self._tokens_kept += len(window)
            while self._tokens_kept > MAX_CACHED_TOKENS:
                self._tokens_kept -= len(self._lower.popitem(last=False)[0])
        else:
            self._lower.move_to_end(window)
        return hidden


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of windows of at most CHUNK_TOKENS together, or of one."""
    start = tokens = 0
    for i, length in enumerate(lengths):
        if tokens and tokens + length > CHUNK_TOKENS:
            yield start, i
            start, tokens = i, 0
        tokens += length
    if lengths:
        yield start, len(lengths)


# --- the network ----------------------------------------------------------------------------------------------------


def _run_layer(w: Mapping[str, Array], layer: int, x: Array, lengths: Sequence[int]) -> Array:
    """One layer over windows laid end to end: x (T of all, dim). Windows attend to themselves only."""
    name = f"layer{layer}"
    q, k, v = (_dense(w, f"{name}.{part}", x) for part in PARTS[:3])
    attended, start = np.empty_like(x), 0
    for length in lengths:
        here = slice(start, start + length)
        attended[here] = _attend(q[here], k[here], v[here])
        start += length
    x = _norm(w, f"{name}.attention.norm", x + _dense(w, f"{name}.attention.out", attended))
    inner = _gelu(_dense(w, f"{name}.inner", x))
    return _norm(w, f"{name}.norm", x + _dense(w, f"{name}.outer", inner))


def _attend(q: Array, k: Array, v: Array) -> Array:
    """(T, dim) each -> (T, dim)."""
    tokens, dim = q.shape
    q, k, v = (part.reshape(tokens, HEADS, dim // HEADS).transpose(1, 0, 2) for part in (q, k, v))  # (H, T, dim / H)
    scores: Array = q @ k.transpose(0, 2, 1)  # (H, T, T)
    scores *= np.float32(1 / math.sqrt(dim // HEADS))
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    attended: Array = scores @ v  # (H, T, dim / H)
    return attended.transpose(1, 0, 2).reshape(tokens, dim)


def _dense(w: Mapping[str, Array], name: str, x: Array) -> Array:
    result: Array = x @ w[name].T
    result += w[f"{name}.bias"]
    return result


def _norm(w: Mapping[str, Array], name: str, x: Array) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    x *= 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(LAYER_NORM_EPS))
    x *= w[f"{name}.gain"]
    x += w[f"{name}.bias"]
    return x


def _gelu(x: Array) -> Array:
    """x * (1 + erf(x / sqrt 2)) / 2. numpy has no erf: Abramowitz and Stegun 7.1.26, off by at most 1.5e-7."""
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series *= t
        series += np.float32(coefficient)
    tail = series * t * np.exp(-z * z)  # 1 - erf(|x| / sqrt 2)
    result: Array = x * np.where(x > 0, 1 - tail / 2, tail / 2)
    return result


# --- the file -------------------------------------------------------------------------------------------------------


def _dequantise(tensors: Mapping[str, NDArray[Any]], where: str) -> Weights:
    """The graph's matrices as float32, named as its nodes are. Word rows keep their codes: 12 MB instead of 47."""
    weights: Weights = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind == "codes" and stem.startswith("layer"):  # (N, K / block, block) around 128
            scales = tensors.get(f"{stem}.scales")
            if (
                tensor.ndim != 3
                or tensor.dtype != np.uint8
                or scales is None
                or scales.size != math.prod(tensor.shape[:2])
            ):
                raise ModelError(f"{where}: {name!r} of shape {tensor.shape}, {tensor.dtype}: expected 8-bit blocks")
            blocks = (tensor.astype(np.float32) - 128) * scales.reshape(*tensor.shape[:2], 1)
            weights[stem] = blocks.reshape(len(tensor), -1)
        elif kind != "scales" or stem == "word":
            weights[name] = tensor
    for name in ("word.codes", "word.scales", "positions", "embedding.norm.gain", "layer0.inner"):
        if name not in weights:
            raise ModelError(f"{where}: no initialiser {name!r}: not the network that scripts/build_minilm.py builds")
    return weights


# ONNX is protobuf: a message is a row of keys (field number, wire type), each with a number or with so many bytes.
_GRAPH, _INITIALISER = 7, 5  # of ModelProto, of GraphProto
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9  # of TensorProto
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 7: np.dtype("<i8")}


def read_initialisers(content: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The constants of an ONNX graph by name: float32, uint8, int8 and int64, stored as raw bytes.

    Raises:
        ModelError: the file is damaged, or has none.
    """
    tensors = {}
    for number, graph in _fields(memoryview(content), where):
        if number == _GRAPH:
            for inner, tensor in _fields(_bytes(graph, where), where):
                if inner == _INITIALISER:
                    name, array = _read_tensor(_bytes(tensor, where), where)
                    tensors[name] = array
    if not tensors:
        raise ModelError(f"{where}: no initialisers: expected an ONNX model with its weights inside")
    return tensors


def _read_tensor(raw: memoryview, where: str) -> tuple[str, NDArray[Any]]:
    shape: list[int] = []
    kind, name, numbers = 0, "", memoryview(b"")
    for number, value in _fields(raw, where):
        if number == _DIMS and isinstance(value, int):
            shape.append(value)
        elif number == _DIMS:
            shape += _packed(_bytes(value, where), where)
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME:
            name = bytes(_bytes(value, where)).decode("utf-8", "replace")
        elif number == _RAW:
            numbers = _bytes(value, where)
    dtype = _DTYPES.get(kind)
    if dtype is None or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ModelError(f"{where}: tensor {name!r} of type {kind}, shape {shape}, {len(numbers)} bytes: {_DAMAGED}")
    return name, np.frombuffer(numbers, dtype).reshape(shape)


_DAMAGED = "expected float32, uint8, int8 or int64 in as many bytes: the file is damaged or of another kind"


def _fields(raw: memoryview, where: str) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at, where)
        if key & 7 == 0:
            value, at = _varint(raw, at, where)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, at = _varint(raw, at, where)
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
        else:
            raise ModelError(f"{where}: wire type {key & 7}: not protobuf: the file is damaged")
        if at + size > len(raw):
            raise ModelError(f"{where}: a field of {size} bytes where {len(raw) - at} are left: the file is damaged")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: memoryview, at: int, where: str) -> tuple[int, int]:
    """(number, where it ends): seven bits a byte, lowest first."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            break
        number |= (raw[at] & 0x7F) << shift
        at += 1
        if raw[at - 1] < 0x80:
            return number, at
    raise ModelError(f"{where}: a number does not end: the file is damaged")


def _packed(raw: memoryview, where: str) -> list[int]:
    numbers, at = [], 0
    while at < len(raw):
        number, at = _varint(raw, at, where)
        numbers.append(number)
    return numbers


def _bytes(value: int | memoryview, where: str) -> memoryview:
    if isinstance(value, int):
        raise ModelError(f"{where}: a number where bytes were expected: the file is damaged")
    return value
