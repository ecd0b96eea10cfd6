"""Separable CMA-ES (Ros & Hansen, PPSN 2008): an evolution strategy with one variance per coordinate. It maximises.

Ask / tell: the strategy never calls you. Nothing handed in is changed, nothing handed out aliases the state, a refused
`tell` leaves the state as it was, and a strategy saved and loaded goes on bit for bit, also between ask and tell.
Equation numbers are those of Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772); with a diagonal C
they cost O(popsize * N). What differs from the tutorial, or from common libraries, is said in `Strategy`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ModelError

__all__ = ["SepCMA", "Strategy", "popsize"]

Floats: TypeAlias = NDArray[np.float64]

STATE_SCHEMA = 1
SIGMA_MAX = 1e32  # on a function without optimum sigma grows without end; this keeps the candidates finite


def popsize(n: int, rule: Literal["ceil", "floor"] = "ceil") -> int:
    """Candidates per generation for n parameters. "ceil" is TRINITY's rule, "floor" the usual one (eq. 48)."""
    if n < 1:
        raise ValueError(f"n {n!r}: expected at least 1 parameter")
    exact = 4 + 3 * math.log(n)
    return math.ceil(exact) if rule == "ceil" else math.floor(exact)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """The constants of a run; they follow from the number of parameters and the population size.

    Weights are ln((popsize + 1) / 2) - ln(rank) (eq. 49), positive ones only, as in `cma`. Ros & Hansen write
    ln(mu + 1), as `cmaes` does, which is the same for an odd population. The learning rate of C is theirs: the full one
    times (n + 2) / 3, split between the two updates by 1 / mu_eff. (`cmaes` 0.13 gives the whole of it to the rank-mu
    update and leaves the other unscaled.) A large population in few dimensions would bring it above 1 and variances
    below 0, so it ends at 1.
    """

    popsize: int
    weights: tuple[float, ...]
    """Of the mu best candidates, best first; they sum to 1."""
    mu_eff: float
    """Variance-effective number of parents."""
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float

    @property
    def mu(self) -> int:
        return len(self.weights)

    @staticmethod
    def of(n: int, size: int | None = None) -> Strategy:
        """The constants for n parameters; a population of None is `popsize(n, "ceil")`."""
        size = popsize(n, "ceil") if size is None else size
        if size < 2:
            raise ValueError(f"popsize {size!r}: expected at least 2 candidates per generation")
        raw = [math.log((size + 1) / 2) - math.log(rank) for rank in range(1, size // 2 + 1)]
        weights = tuple(w / math.fsum(raw) for w in raw)  # eq. 49
        mu_eff = 1 / math.fsum(w * w for w in weights)
        c_sigma = (mu_eff + 2) / (n + mu_eff + 3)
        rank_mu = min(1.0, (2 * mu_eff - 1) / ((n + 2) ** 2 + mu_eff))
        c_cov = 2 / (mu_eff * (n + math.sqrt(2)) ** 2) + (1 - 1 / mu_eff) * rank_mu
        c_cov = min(1.0, c_cov * (n + 2) / 3)
        return Strategy(
            popsize=size,
            weights=weights,
            mu_eff=mu_eff,
            c_sigma=c_sigma,
            d_sigma=1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma,
            c_c=4 / (n + 4),
            c_1=c_cov / mu_eff,
            c_mu=c_cov * (1 - 1 / mu_eff),
        )


class SepCMA:
    """The optimiser: `es.ask()`, evaluate, `es.tell(fitness)` where HIGHER IS BETTER, repeat; take `es.mean`."""

    def __init__(self, x0: ArrayLike, sigma0: float, *, popsize: int | None = None, seed: int) -> None:
        mean = np.array(x0, dtype=np.float64)  # a copy: the caller's array is the caller's
        if mean.ndim != 1 or mean.size == 0 or not np.isfinite(mean).all():
            raise ValueError(f"x0 of shape {mean.shape}: expected a vector of finite numbers")
        if not 0 < sigma0 <= SIGMA_MAX:
            raise ValueError(f"sigma0 {sigma0!r}: expected a number above 0 and at most {SIGMA_MAX:g}")
        self.strategy = Strategy.of(mean.size, popsize)
        self._mean: Floats = mean  # (N,)
        self._sigma = float(sigma0)
        self._variances: Floats = np.ones_like(mean)  # (N,) the diagonal of C
        self._path_sigma: Floats = np.zeros_like(mean)  # (N,)
        self._path_c: Floats = np.zeros_like(mean)  # (N,)
        self._generation = 0
        self._asked: Floats | None = None  # (popsize, N) normal samples of the generation that waits for its fitness
        self._rng = np.random.default_rng(seed)

    @property
    def mean(self) -> Floats:
        """(N,) The centre of the distribution: what training returns."""
        return self._mean.copy()

    @property
    def sigma(self) -> float:
        """The step size."""
        return self._sigma

    @property
    def variances(self) -> Floats:
        """(N,) The diagonal of C; candidates vary by sigma² times it."""
        return self._variances.copy()

    @property
    def generation(self) -> int:
        """Generations told so far."""
        return self._generation

    def ask(self) -> Floats:
        """(popsize, N) The candidates of this generation; asked again before `tell`, the same ones."""
        if self._asked is None:
            self._asked = self._rng.standard_normal((self.strategy.popsize, self._mean.size))
        candidates = self._asked * (self._sigma * np.sqrt(self._variances))  # eq. 39
        candidates += self._mean  # eq. 40
        return candidates

    def tell(self, fitness: ArrayLike) -> None:
        """Learn from the candidates of the last `ask`; `fitness` (popsize,) in their order, higher is better.

        Equal fitness is ranked by position, which is as good as chance because candidates are exchangeable.

        Raises:
            RuntimeError: nothing was asked since the last `tell`.
            ValueError: another shape, not real numbers, or not finite.
        """
        if self._asked is None:
            raise RuntimeError(f"tell in generation {self._generation} without an ask: call ask() before each tell()")
        order = np.argsort(-_checked_fitness(fitness, self.strategy.popsize), kind="stable")
        s, n = self.strategy, self._mean.size
        z_mean, z2_mean = _recombine(self._asked, order, s.weights)  # (N,), (N,)
        self._asked = None
        self._generation += 1

        y_mean = np.sqrt(self._variances) * z_mean  # eq. 41
        self._mean += self._sigma * y_mean  # eq. 42, c_m = 1
        # eq. 43: C^(-1/2) y_mean is z_mean when C is diagonal
        self._path_sigma *= 1 - s.c_sigma
        self._path_sigma += math.sqrt(s.c_sigma * (2 - s.c_sigma) * s.mu_eff) * z_mean
        # sum, not a BLAS dot: the bits must not depend on the number of threads
        length = math.sqrt(float(np.sum(np.square(self._path_sigma)))) / _expected_length(n)

        # The path of C stalls while the step size is far too small, or C would grow along with it.
        warm = math.sqrt(1 - (1 - s.c_sigma) ** (2 * self._generation))
        stalled = length / warm >= 1.4 + 2 / (n + 1)
        self._path_c *= 1 - s.c_c  # eq. 45
        if not stalled:
            self._path_c += math.sqrt(s.c_c * (2 - s.c_c) * s.mu_eff) * y_mean
        keep = 1 - s.c_1 - s.c_mu + (s.c_1 * s.c_c * (2 - s.c_c) if stalled else 0.0)
        z2_mean *= s.c_mu
        z2_mean += keep
        self._variances *= z2_mean  # eq. 47: y² = C z², so decay and rank-mu update are one factor
        self._variances += s.c_1 * np.square(self._path_c)
        self._sigma = min(SIGMA_MAX, self._sigma * math.exp(s.c_sigma / s.d_sigma * (length - 1)))  # eq. 44

    def state_dict(self) -> dict[str, Floats | int | float | str]:
        """All that a resume needs, fit for `np.savez(file, **state)` and `from_state(np.load(file))`: no pickle."""
        return {
            "schema": STATE_SCHEMA,
            "popsize": self.strategy.popsize,
            "generation": self._generation,
            "sigma": self._sigma,
            "mean": self._mean.copy(),
            "variances": self._variances.copy(),
            "path_sigma": self._path_sigma.copy(),
            "path_c": self._path_c.copy(),
            # the samples, not the generator before them: numpy may change how it draws between versions
            "asked": np.empty((0, self._mean.size)) if self._asked is None else self._asked.copy(),
            "rng": json.dumps(self._rng.bit_generator.state),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SepCMA:
        """The strategy that `state_dict` described.

        Raises:
            ModelError: a key is missing, or a value is not what `state_dict` writes.
        """
        try:
            if int(state["schema"]) != STATE_SCHEMA:
                raise ModelError(
                    f"sep-CMA-ES state of schema {int(state['schema'])}: this version reads {STATE_SCHEMA}"
                )
            es = cls(state["mean"], float(state["sigma"]), popsize=int(state["popsize"]), seed=0)
            es._generation = int(state["generation"])
            n = es._mean.size
            es._variances = _checked_array(state, "variances", (n,))
            es._path_sigma = _checked_array(state, "path_sigma", (n,))
            es._path_c = _checked_array(state, "path_c", (n,))
            if np.shape(state["asked"]) != (0, n):  # empty: saved between tell and ask
                es._asked = _checked_array(state, "asked", (es.strategy.popsize, n))
            es._rng.bit_generator.state = json.loads(str(state["rng"]))
        except KeyError as error:
            raise ModelError(f"sep-CMA-ES state: {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise ModelError(f"sep-CMA-ES state: {error}") from None
        if es._generation < 0 or not (es._variances > 0).all():
            raise ModelError("sep-CMA-ES state: expected a generation from 0 and variances above 0")
        return es


def _expected_length(n: int) -> float:
    """E||N(0, I)|| in n dimensions, by the tutorial's approximation."""
    return math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))


def _recombine(z: Floats, order: NDArray[np.intp], weights: tuple[float, ...]) -> tuple[Floats, Floats]:
    """Weighted means of z and of z² over the best candidates, row by row: no (popsize, N) temporary."""
    mean, mean_of_squares, row = np.zeros(z.shape[1]), np.zeros(z.shape[1]), np.empty(z.shape[1])
    for index, weight in zip(order, weights, strict=False):  # the weights end at mu
        np.multiply(z[index], weight, out=row)
        mean += row
        row *= z[index]
        mean_of_squares += row
    return mean, mean_of_squares


def _checked_fitness(fitness: ArrayLike, size: int) -> Floats:
    values = np.asarray(fitness)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"fitness of dtype {values.dtype}: expected real numbers, one for each candidate")
    if values.shape != (size,):
        raise ValueError(f"fitness of shape {values.shape}: expected ({size},), one number for each candidate")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        listed = ", ".join(f"[{i}] = {values[i]}" for i in bad[:8])
        raise ValueError(f"fitness of {bad.size} candidates is not finite: {listed}: evaluate them anew or stop")
    return values.astype(np.float64)


def _checked_array(state: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Floats:
    values = np.array(state[key], dtype=np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"{key} of shape {values.shape}: expected finite numbers of shape {shape}")
    return values
