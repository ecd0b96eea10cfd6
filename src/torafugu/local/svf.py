"""Singular-value fine-tuning: a matrix W = U diag(s) V^T becomes

    W' = U diag(s * (1 + d)) V^T * (sum s / sum(s * (1 + d)))

for a vector of offsets d, one per singular value, largest value first. Here: which matrices, where their offsets lie in
the flat vector, and the arithmetic, in numpy. Not here: where the matrices come from and where they go.

With f = (1 + d) * sum s / sum(s * (1 + d)), W' is W V diag(f) V^T and also U diag(f) U^T W. So only the singular
vectors of the shorter side are kept, a square matrix (4 MB, not 600, for a vocabulary of 152k x 1024), and W' is
computed as W plus a change: what is not scaled stays as it is, bit for bit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from ..errors import ModelError

__all__ = [
    "QWEN3_0_6B",
    "Spectrum",
    "SvfLayout",
    "SvfMatrix",
    "apply_offsets",
    "count_layers",
    "count_parameters",
    "decompose",
    "hash_offsets",
    "layer_of",
    "layout_of_layers",
    "quantise_offsets",
    "spectrum_of_gram",
]

Array = npt.NDArray[np.float32]
Offsets = npt.NDArray[np.floating]
Wide = npt.NDArray[np.float64]

# A smaller share of sum s left would multiply the matrix by more than 100: no candidate that anyone means.
MIN_SHARE_LEFT = 0.01
# `model.layers.26.`, `encoder.layer.4.`, `transformer.h.3.`: the parameter names of Hugging Face's models.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SvfMatrix:
    """One matrix whose singular values are scaled."""

    name: str
    rows: int
    columns: int

    @property
    def values(self) -> int:
        """How many singular values, and so offsets, it has."""
        return min(self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class SvfLayout:
    """The matrices in the order in which their offsets stand in the flat vector."""

    matrices: tuple[SvfMatrix, ...]

    @property
    def size(self) -> int:
        """Offsets in all."""
        return sum(matrix.values for matrix in self.matrices)

    @property
    def ranges(self) -> dict[str, range]:
        """Name -> positions of its offsets in the flat vector."""
        stops = list(accumulate(matrix.values for matrix in self.matrices))
        return {
            matrix.name: range(stop - matrix.values, stop) for matrix, stop in zip(self.matrices, stops, strict=True)
        }

    def split(self, offsets: Offsets) -> dict[str, Offsets]:
        """Name -> its offsets, as views.

        Raises:
            ModelError: not this layout's number of offsets, or one that is not finite.
        """
        if offsets.shape != (self.size,):
            raise ModelError(
                f"offsets of shape {offsets.shape}: expected ({self.size},), one for each singular value of "
                f"{len(self.matrices)} matrices"
            )
        if not np.isfinite(offsets).all():
            raise ModelError(f"offsets: {int((~np.isfinite(offsets)).sum())} of {self.size} are not finite")
        return {name: offsets[where.start : where.stop] for name, where in self.ranges.items()}


def layer_of(name: str) -> int | None:
    """The index of the layer that a parameter belongs to; None for embeddings, output heads and final norms."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def count_layers(names: Iterable[str]) -> int:
    """One more than the highest layer index among the parameters' names."""
    return 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)


def layout_of_layers(
    shapes: Iterable[tuple[str, Sequence[int]]], layers: Iterable[int], *, outside_layers: bool
) -> SvfLayout:
    """The 2-D parameters of these layers and, as in the paper's code, those of no layer; in the given order.

    Raises:
        ModelError: a layer has no 2-D parameter.
    """
    wanted = set(layers)
    chosen = []
    for name, shape in shapes:
        layer = layer_of(name)
        if len(shape) == 2 and (layer in wanted or (layer is None and outside_layers)):
            chosen.append(SvfMatrix(name=name, rows=shape[0], columns=shape[1]))
    if missing := wanted - {layer_of(matrix.name) for matrix in chosen}:
        raise ModelError(f"layers {sorted(missing)}: the model has no matrices there: expected indices from 0 upwards")
    return SvfLayout(tuple(chosen))


def count_parameters(layout: SvfLayout, *, dim: int, workers: int, roles: int = 3) -> int:
    """N of the paper: a linear head over the workers and the roles, and the offsets. 19,456 for Qwen3-0.6B and 7."""
    return dim * (workers + roles) + layout.size


def _qwen3(layer: int, *, vocabulary: int, dim: int, queries: int, keys: int, inner: int) -> SvfLayout:
    parts = (
        ("self_attn.q_proj", queries, dim),
        ("self_attn.k_proj", keys, dim),
        ("self_attn.v_proj", keys, dim),
        ("self_attn.o_proj", dim, queries),
        ("mlp.gate_proj", inner, dim),
        ("mlp.up_proj", inner, dim),
        ("mlp.down_proj", dim, inner),
    )
    matrices = [SvfMatrix(name="model.embed_tokens.weight", rows=vocabulary, columns=dim)]
    matrices += [SvfMatrix(name=f"model.layers.{layer}.{part}.weight", rows=m, columns=n) for part, m, n in parts]
    return SvfLayout((*matrices, SvfMatrix(name="lm_head.weight", rows=vocabulary, columns=dim)))


QWEN3_0_6B = _qwen3(26, vocabulary=151_936, dim=1024, queries=2048, keys=1024, inner=3072)
"""The paper's backbone, of 28 layers, as its code lays it out: 9 matrices, 9,216 offsets."""


# --- arithmetic -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """What of a matrix's decomposition is needed to scale it; computed once, from the untouched matrix."""

    values: Wide  # (k,), falling
    basis: Array  # (k, k): the columns are the right singular vectors, or the left ones of fewer rows than columns

    def factors(self, offsets: Offsets) -> Wide:
        """(k,): what each singular value is multiplied by, sum s / sum(s * (1 + d)) included.

        An offset below -1 turns a value's sign; it is the sum with signs that is preserved.

        Raises:
            ModelError: hardly anything of sum s would be left to divide by.
        """
        scales = 1 + offsets.astype(np.float64)
        total, left = float(self.values.sum()), float((self.values * scales).sum())  # summed alike: 1 for no offsets
        if not left >= MIN_SHARE_LEFT * total:
            raise ModelError(
                f"offsets from {offsets.min():.3g} to {offsets.max():.3g}: sum of s * (1 + offset) is {left:.6g}, of "
                f"{total:.6g} without offsets: expected at least {MIN_SHARE_LEFT:.0%} of it; use smaller offsets"
            )
        factors: Wide = scales * (total / left)
        return factors

    def change(self, offsets: Offsets) -> Array:
        """(k, k) matrix C: W' = W + W C, or W + C W of fewer rows than columns. Exactly 0 for no offsets."""
        change: Array = (self.basis * (self.factors(offsets) - 1).astype(np.float32)) @ self.basis.T
        return change


def decompose(weight: npt.NDArray[np.floating]) -> Spectrum:
    """The spectrum of a matrix.

    Raises:
        ModelError: not a matrix of finite numbers, or all zeros.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ModelError(f"weight of shape {weight.shape}: only a matrix has singular values")
    wide = weight.astype(np.float64)
    return spectrum_of_gram(wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T)


def spectrum_of_gram(gram: Wide) -> Spectrum:
    """From W^T W or W W^T, whichever is smaller, in float64.

    Squaring costs half of the digits of the smallest values: in float64 an error of 1.5e-8 of the largest, a quarter of
    the rounding of a float32 weight. In float32 it would be 3e-4, which is too much.

    Raises:
        ModelError: a number is not finite, or the matrix was all zeros.
    """
    if not np.isfinite(gram).all():
        raise ModelError("weight: not all of its numbers are finite: it cannot be decomposed")
    squares, basis = np.linalg.eigh(gram)  # rising
    values = np.sqrt(np.maximum(squares[::-1], 0))
    if values[0] == 0:
        raise ModelError("weight: all zeros: there is nothing to scale")
    return Spectrum(values, np.ascontiguousarray(basis[:, ::-1], dtype=np.float32))


def apply_offsets(weight: Array, spectrum: Spectrum, offsets: Offsets) -> Array:
    """W', of W's shape. `spectrum` is that of `weight`.

    The decomposition, the sums and the factors are float64. The products are float32: their error is proportional to
    the change, not to the matrix, and float64 would take twice the time of every candidate.
    """
    change = spectrum.change(offsets)
    scaled: Array = weight + (weight @ change if weight.shape[0] >= weight.shape[1] else change @ weight)
    return scaled


def hash_offsets(layout: SvfLayout, offsets: Offsets) -> str:
    """8 hex digits that name a layout and its offsets, as float32; "none" if all are zero."""
    if not np.any(offsets):
        return "none"
    names = " ".join(f"{matrix.name}:{matrix.rows}x{matrix.columns}" for matrix in layout.matrices)
    content = f"{names} ".encode() + np.ascontiguousarray(offsets, dtype="<f4").tobytes()
    return hashlib.sha256(content).hexdigest()[:8]


def quantise_offsets(offsets: Offsets) -> Array:
    """The offsets that are left when 1 + d is formed in bfloat16, as the paper's code does: steps of 2^-7 above 0 and
    2^-8 below.

    Only to reproduce what was trained that way. Here offsets are not rounded; a bfloat16 model rounds W' once.
    """
    rounded: Array = (_to_bfloat16(1 + _to_bfloat16(offsets)) - 1).astype(np.float32)
    return rounded


def _to_bfloat16(numbers: Offsets) -> Array:
    """Rounded to the nearest bfloat16, ties to even, as float32. Finite numbers only."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)
