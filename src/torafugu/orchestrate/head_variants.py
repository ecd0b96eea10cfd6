"""The heads of the TRINITY paper (arXiv 2512.04695, Tables 3 and 6): hidden states -> logits, from one flat vector.

Each has a parameter count, a way to start, and a pure function (vector, hidden) -> logits. Shapes and the order of the
parameters in the vector are those of the authors' code (`head_modules`), in its inference mode: their sparse head adds
Gumbel noise while it trains, which an evolution strategy has no use for. No dropout, no bias, no state.

The authors' evolution starts from the zero vector whatever the head; `initial` is what their modules start from when
nothing overwrites it. From zeros the low-rank head's logits are second-order small: start it from `initial`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ModelError

__all__ = ["HEAD_VARIANTS", "HeadVariant", "find_variant", "low_rank_of", "slices_of"]

Array = npt.NDArray[np.floating]
Count = Callable[[int, int], int]
Logits = Callable[[Array, Array, int], Array]
Start = Callable[[int, int, np.random.Generator], Array]

ELU_ALPHA, OUTPUT_SCALE = 0.1, 3.0  # of the low-rank head; not trained
GAINS = (1.0, 3.0)  # Xavier, of the low-rank head's two factors


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadVariant:
    """One form of head, for any number of outputs."""

    name: str
    count: Count
    """(dim, outputs) -> parameters."""
    compute: Logits
    """(vector, hidden, outputs) -> logits; of arguments that fit."""
    start: Start
    """(dim, outputs, rng) -> vector."""

    def parameter_count(self, dim: int, outputs: int) -> int:
        """N. Raises ConfigError: no such head can read `dim` numbers into so many outputs."""
        if outputs < 1 or dim < outputs:
            raise ConfigError(f"head {self.name!r}: {outputs} outputs of {dim} numbers: expected 1 to {dim} outputs")
        return self.count(dim, outputs)

    def logits(self, vector: Array, hidden: Array, *, outputs: int) -> Array:
        """(N,), (n, dim) -> (n, outputs).

        Raises:
            ModelError: the vector is not one of this head's, or not finite.
        """
        expected = self.parameter_count(hidden.shape[1], outputs)
        if vector.shape != (expected,) or not np.isfinite(vector).all():
            raise ModelError(
                f"head {self.name!r}: vector of shape {vector.shape}: expected ({expected},), finite numbers only, for "
                f"{outputs} outputs of {hidden.shape[1]} numbers"
            )
        return self.compute(vector, hidden, outputs)

    def initial(self, dim: int, outputs: int, rng: np.random.Generator) -> Array:
        """(N,): where the authors' module starts."""
        self.parameter_count(dim, outputs)
        return self.start(dim, outputs, rng)


def find_variant(name: str) -> HeadVariant:
    """Raises ConfigError: there is no such head; names those that there are."""
    if (variant := HEAD_VARIANTS.get(name)) is None:
        raise ConfigError(f"head {name!r}: expected one of {', '.join(HEAD_VARIANTS)}")
    return variant


# --- linear: dim x outputs, row-major -------------------------------------------------------------------------------


def _linear(vector: Array, hidden: Array, outputs: int) -> Array:
    logits: Array = hidden @ vector.reshape(outputs, -1).T
    return logits


def _start_linear(dim: int, outputs: int, rng: np.random.Generator) -> Array:
    start: Array = rng.uniform(-1, 1, dim * outputs) / np.sqrt(dim)  # torch's nn.Linear
    return start


# --- low-rank: U (r, dim), an ELU, V (outputs, r), times three -------------------------------------------------------


def low_rank_of(dim: int, outputs: int) -> int:
    """r: for three quarters of the linear head's parameters, but at least 8 and 2 per output: 20 for 10 outputs.

    That floor makes the "low-rank" head twice as large as the linear one.
    """
    target = int(0.75 * dim * outputs) // (dim + outputs)
    return max(8, 2 * outputs, min(dim // 4, 32 * outputs, target))


def _low_rank(vector: Array, hidden: Array, outputs: int) -> Array:
    dim = hidden.shape[1]
    rank = low_rank_of(dim, outputs)
    u, v = vector[: rank * dim].reshape(rank, dim), vector[rank * dim :].reshape(outputs, rank)
    inner = hidden @ u.T  # (n, r)
    inner = np.where(inner > 0, inner, ELU_ALPHA * np.expm1(np.minimum(inner, 0)))
    return OUTPUT_SCALE * (inner @ v.T)


def _start_low_rank(dim: int, outputs: int, rng: np.random.Generator) -> Array:
    rank = low_rank_of(dim, outputs)
    u = GAINS[0] * np.sqrt(6 / (dim + rank)) * rng.uniform(-1, 1, rank * dim)
    v = GAINS[1] * np.sqrt(6 / (rank + outputs)) * rng.uniform(-1, 1, outputs * rank)
    return np.concatenate([u, v])


# --- sparse: a linear head over the top-k of the hidden numbers ------------------------------------------------------


def _sparse(vector: Array, hidden: Array, outputs: int) -> Array:
    """Vector: weight (outputs, dim), a score per hidden number, temperature, sparsity logit.

    The best int(dim * (1 - sigmoid(sparsity logit))) numbers by score are read, at least one. The temperature belongs
    to the noise of the authors' training mode: here it is counted, and does nothing.
    """
    dim = hidden.shape[1]
    weight, rest = vector[: dim * outputs].reshape(outputs, dim), vector[dim * outputs :]
    scores, sparsity_logit = rest[:dim], float(rest[-1])
    kept = max(1, int(dim * (0.5 - 0.5 * np.tanh(sparsity_logit / 2))))  # 1 - sigmoid, without overflow
    chosen = np.sort(np.argsort(-scores, kind="stable")[:kept])
    return hidden[:, chosen] @ weight[:, chosen].T


def _start_sparse(dim: int, outputs: int, rng: np.random.Generator) -> Array:
    return np.concatenate([_start_linear(dim, outputs, rng), 2 * rng.standard_normal(dim), [10.0, 0.0]])


# --- block-diagonal: each block of outputs reads its own slice of the hidden state -----------------------------------


def slices_of(dim: int, outputs: int, blocks: int) -> list[tuple[slice, slice]]:
    """(hidden numbers, outputs) of each block. Outputs are shared out evenly, later blocks taking the rest; hidden
    numbers in proportion, rounded down, the last block taking the rest.

    Of an odd number of outputs the authors' code makes three blocks, 3 + 3 + 1 of 7; here two are two, 3 + 4.
    """
    ends = [outputs * block // blocks for block in range(1, blocks + 1)]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    widths = [size * dim // outputs for size in sizes[:-1]]
    stops = [*accumulate(widths), dim]
    starts = [0, *stops[:-1]]
    return [
        (slice(start, stop), slice(end - size, end))
        for start, stop, size, end in zip(starts, stops, sizes, ends, strict=True)
    ]


def _block_diagonal(blocks_of: Callable[[int], int], name: str) -> HeadVariant:
    def areas(dim: int, outputs: int) -> list[tuple[slice, slice, int]]:
        return [
            (read, write, _length(read) * _length(write)) for read, write in slices_of(dim, outputs, blocks_of(outputs))
        ]

    def compute(vector: Array, hidden: Array, outputs: int) -> Array:
        parts, at = [], 0
        for read, write, area in areas(hidden.shape[1], outputs):
            parts.append(hidden[:, read] @ vector[at : at + area].reshape(_length(write), -1).T)
            at += area
        return np.concatenate(parts, axis=1)

    def start(dim: int, outputs: int, rng: np.random.Generator) -> Array:
        blocks = areas(dim, outputs)
        return np.concatenate([rng.uniform(-1, 1, area) / np.sqrt(_length(read)) for read, _, area in blocks])

    def count(dim: int, outputs: int) -> int:
        return sum(area for *_, area in areas(dim, outputs))

    return HeadVariant(name=name, count=count, compute=compute, start=start)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


_VARIANTS: Sequence[HeadVariant] = (
    HeadVariant(name="linear", count=lambda dim, outputs: dim * outputs, compute=_linear, start=_start_linear),
    HeadVariant(
        name="low-rank",
        count=lambda dim, outputs: low_rank_of(dim, outputs) * (dim + outputs),
        compute=_low_rank,
        start=_start_low_rank,
    ),
    HeadVariant(
        name="sparse",
        count=lambda dim, outputs: dim * outputs + dim + 2,
        compute=_sparse,
        start=_start_sparse,
    ),
    _block_diagonal(lambda outputs: min(2, outputs), "block-diagonal-2"),
    # "10" is the paper's number of outputs: one block, of one slice, for each. The paper decides it by argmax.
    _block_diagonal(lambda outputs: outputs, "block-diagonal-10"),
)
HEAD_VARIANTS: dict[str, HeadVariant] = {variant.name: variant for variant in _VARIANTS}
"""By the names of the paper's Table 6. Of 10 outputs and 1024 numbers: 10240, 20680, 11266, 5120, 1024 parameters."""
