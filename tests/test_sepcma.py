"""Separable CMA-ES against its oracles: `cmaes` (same update, number by number) and `cma` (same power of search)."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cmaes
import numpy as np
import pytest
from cma import CMAEvolutionStrategy
from cma.recombination_weights import RecombinationWeights
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from torafugu.errors import ModelError
from torafugu.train.sepcma import SIGMA_MAX, SepCMA, Strategy, popsize

Floats = NDArray[np.float64]
quick = settings(max_examples=40, deadline=None, database=None)


def sphere(x: Floats) -> float:
    return float(np.sum(x**2))


def ellipsoid(x: Floats) -> float:
    return float(np.sum(1e4 ** np.linspace(0, 1, x.size) * x**2))


def rosenbrock(x: Floats) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def negated(cost: Callable[[Floats], float], candidates: Floats) -> Floats:
    return np.array([-cost(x) for x in candidates])


def train(es: SepCMA, generations: int, cost: Callable[[Floats], float] = ellipsoid) -> SepCMA:
    for _ in range(generations):
        es.tell(negated(cost, es.ask()))
    return es


def is_same(a: SepCMA, b: SepCMA) -> bool:
    """Bit for bit the same state."""
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x)


# --- the constants ---


@pytest.mark.parametrize(
    ("n", "ceil", "floor"), [(10_240, 32, 31), (13_312, 33, 32), (19_456, 34, 33), (1, 4, 4), (20, 13, 12)]
)
def test_popsize_rules(n: int, ceil: int, floor: int) -> None:
    """The population is 4 + 3 ln N rounded up, as TRINITY does, or down, as CMA-ES libraries do."""
    assert (popsize(n), popsize(n, "ceil"), popsize(n, "floor")) == (ceil, ceil, floor)
    assert SepCMA(np.zeros(n), 1.0, seed=0).ask().shape == (ceil, n)


@pytest.mark.parametrize(("size", "mu", "mu_eff"), [(32, 16, 9.18), (33, 16, 9.44), (34, 17, 9.71)])
def test_parents_at_trinity_size(size: int, mu: int, mu_eff: float) -> None:
    """The number of parents and their variance-effective number are TRINITY's."""
    strategy = Strategy.of(19_456, size)
    assert (strategy.mu, round(strategy.mu_eff, 2)) == (mu, mu_eff)


@pytest.mark.parametrize("size", [2, 3, 6, 13, 32, 33, 34, 101])
def test_weights_are_those_of_cma(size: int) -> None:
    """The recombination weights and mu_eff equal the positive ones of `cma` for every population size."""
    theirs = RecombinationWeights(size)
    strategy = Strategy.of(50, size)
    np.testing.assert_allclose(strategy.weights, theirs.positive_weights, rtol=1e-13)
    assert strategy.mu_eff == pytest.approx(theirs.mueff, rel=1e-13)


@pytest.mark.parametrize(("n", "size"), [(10, 11), (40, 15), (300, 21), (19_456, 33)])
def test_constants_against_cmaes(n: int, size: int) -> None:
    """With an odd population all constants equal those of `cmaes`, whose c_mu is the paper's undivided c_cov."""
    ours, theirs = Strategy.of(n, size), cmaes.SepCMA(mean=np.zeros(n), sigma=1.0, population_size=size)
    np.testing.assert_allclose(ours.weights, theirs._weights, rtol=1e-13)
    assert ours.mu_eff == pytest.approx(theirs._mu_eff, rel=1e-13)
    assert ours.c_sigma == pytest.approx(theirs._c_sigma, rel=1e-13)
    assert ours.d_sigma == pytest.approx(theirs._d_sigma, rel=1e-13)
    assert ours.c_c == pytest.approx(theirs._cc, rel=1e-13)
    assert ours.c_1 + ours.c_mu == pytest.approx(theirs._cmu, rel=1e-13)
    assert ours.c_1 * ours.mu_eff == pytest.approx(theirs._cmu, rel=1e-13)


@quick
@given(n=st.integers(1, 60), size=st.integers(2, 2_000))
def test_constants_are_usable_everywhere(n: int, size: int) -> None:
    """For any size the weights fall, sum to 1, and the update of C never subtracts: variances stay above 0."""
    s = Strategy.of(n, size)
    assert sum(s.weights) == pytest.approx(1)
    assert all(a > b > 0 for a, b in zip(s.weights, (*s.weights[1:], 1e-300), strict=True))
    assert s.c_1 > 0
    assert s.c_mu >= 0
    assert s.c_1 + s.c_mu <= 1 + 1e-12
    assert 0 < s.c_sigma < 1
    assert 0 < s.c_c < 1
    assert s.d_sigma >= 1


def test_large_population_in_few_dimensions_keeps_variances_positive() -> None:
    """A population far above the default, where the paper's learning rate would exceed 1, still adapts."""
    es = train(SepCMA(np.ones(10), 1.0, popsize=2_000, seed=3), 30, sphere)
    assert (es.variances > 0).all()
    assert sphere(es.mean) < 1e-6


# --- the update, against cmaes ---


def paired_with_cmaes(x0: Floats, sigma0: float, size: int, seed: int) -> tuple[SepCMA, cmaes.SepCMA]:
    """Ours, and `cmaes` with the constants in which it departs from the paper set to ours."""
    ours = SepCMA(x0, sigma0, popsize=size, seed=seed)
    theirs = cmaes.SepCMA(mean=x0.copy(), sigma=sigma0, population_size=size, seed=0)
    s = ours.strategy
    theirs._c1, theirs._cmu = s.c_1, s.c_mu
    if size % 2 == 0:  # its weights are those of the paper, ours those of `cma`; all else follows from them
        theirs._weights, theirs._mu_eff = np.array(s.weights), s.mu_eff
        theirs._c_sigma, theirs._d_sigma = s.c_sigma, s.d_sigma
    theirs._g = -1  # it raises the generation before it corrects the path length for it, so runs one ahead
    return ours, theirs


@pytest.mark.parametrize(
    ("n", "size", "sigma0", "start"), [(30, 15, 2.0, 3.0), (200, 21, 0.3, 1.0), (8, 41, 1.0, -2.0), (20, 12, 1e-3, 5.0)]
)
def test_trajectory_equals_cmaes(n: int, size: int, sigma0: float, start: float) -> None:
    """On the same candidates, mean, sigma and C follow those of `cmaes` for 30 generations of an ellipsoid."""
    ours, theirs = paired_with_cmaes(np.full(n, start), sigma0, size, seed=n)
    for _ in range(30):
        candidates = ours.ask()
        cost = -negated(ellipsoid, candidates)
        ours.tell(-cost)
        theirs.tell(list(zip(candidates, cost.tolist(), strict=True)))
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(ours.sigma, theirs._sigma, rtol=1e-10)
        np.testing.assert_allclose(ours.variances, theirs._C, rtol=1e-10)


def test_trajectory_equals_cmaes_while_the_step_size_is_far_too_small() -> None:
    """The path of C stalls in the same generations as in `cmaes`, and resumes with it."""
    ours, theirs = paired_with_cmaes(np.full(10, 1e3), 1e-3, 11, seed=5)
    stalled = 0
    for _ in range(30):
        before = ours.state_dict()["path_c"]
        candidates = ours.ask()
        cost = -negated(sphere, candidates)
        ours.tell(-cost)
        theirs.tell(list(zip(candidates, cost.tolist(), strict=True)))
        stalled += np.allclose(ours.state_dict()["path_c"], np.multiply(before, 1 - ours.strategy.c_c), rtol=1e-12)
        np.testing.assert_allclose(ours.variances, theirs._C, rtol=1e-10)
        np.testing.assert_allclose(ours.sigma, theirs._sigma, rtol=1e-10)
    assert 3 < stalled < 27


# --- the search, against cma ---


def evaluations_to(target: float, es: SepCMA, cost: Callable[[Floats], float], limit: int) -> int:
    for used in range(es.strategy.popsize, limit, es.strategy.popsize):
        fitness = negated(cost, es.ask())
        if -fitness.max() < target:
            return used
        es.tell(fitness)
    return limit


def evaluations_of_cma(target: float, x0: Floats, sigma0: float, cost: Callable[[Floats], float], limit: int) -> int:
    options = {"CMA_diagonal": True, "seed": 7, "verbose": -9, "ftarget": target, "maxfevals": limit}
    return int(CMAEvolutionStrategy(x0, sigma0, options).optimize(cost).result.evaluations)


@pytest.mark.parametrize(
    ("cost", "n", "target", "limit"),
    [(sphere, 50, 1e-8, 40_000), (ellipsoid, 30, 1e-8, 60_000), (rosenbrock, 20, 10.0, 60_000)],
)
def test_searches_as_well_as_cma(cost: Callable[[Floats], float], n: int, target: float, limit: int) -> None:
    """The same target is reached with at most one and a half times the evaluations of `cma` in diagonal mode."""
    x0 = np.full(n, 0.5)
    ours = sorted(evaluations_to(target, SepCMA(x0, 0.3, seed=seed), cost, limit) for seed in range(3))[1]
    assert ours < min(limit, 1.5 * evaluations_of_cma(target, x0, 0.3, cost, limit))


def test_adapts_the_variance_of_each_coordinate() -> None:
    """On an ellipsoid the variances come to mirror the curvatures, which a single step size could not."""
    es = train(SepCMA(np.ones(10), 1.0, seed=2), 300)
    curvature = 1e4 ** np.linspace(0, 1, 10)
    ratio = es.variances * curvature
    assert ratio.max() / ratio.min() < 30 < 1e4


def test_maximises() -> None:
    """Fitness that is higher is better: the mean climbs, it does not descend."""
    es = SepCMA(np.zeros(5), 0.1, seed=1)
    for _ in range(30):
        es.tell(es.ask().sum(axis=1))
    assert (es.mean > 1).all()


def test_runaway_step_size_stays_finite() -> None:
    """On a function without an optimum sigma ends at its cap and candidates stay finite."""
    es = SepCMA(np.zeros(4), SIGMA_MAX, seed=1)
    for _ in range(50):
        es.tell(es.ask()[:, 0])
    assert es.sigma == SIGMA_MAX
    assert np.isfinite(es.ask()).all()


# --- invariances ---


@quick
@given(ranks=st.permutations(range(8)), seed=st.integers(0, 2**32 - 1))
def test_only_the_order_of_fitness_counts(ranks: list[int], seed: int) -> None:
    """Any transformation that keeps the order of the fitness leaves the strategy bit for bit the same."""
    plain, curved = SepCMA(np.zeros(5), 1.0, popsize=8, seed=seed), SepCMA(np.zeros(5), 1.0, popsize=8, seed=seed)
    for _ in range(3):
        plain.ask(), curved.ask()
        plain.tell(ranks)
        curved.tell(np.exp(np.array(ranks, dtype=np.float32)) * 1e-3 - 7)
    assert is_same(plain, curved)


def test_equal_fitness_is_ranked_by_position() -> None:
    """Ties, as with 0/1 rewards, are broken by position and so are the same in every run."""
    tied, ranked = SepCMA(np.zeros(5), 1.0, popsize=60, seed=1), SepCMA(np.zeros(5), 1.0, popsize=60, seed=1)
    rewards = np.random.default_rng(2).integers(0, 2, 60)
    tied.ask(), ranked.ask()
    tied.tell(rewards)
    ranked.tell(rewards - np.arange(60) / 100)
    assert is_same(tied, ranked)


def test_shifting_and_scaling_the_problem_changes_nothing() -> None:
    """Moving x0 with the optimum, and scaling x and sigma by a power of two, moves and scales the run exactly."""
    base = train(SepCMA(np.full(6, 4.0), 0.5, seed=9), 20, lambda x: sphere(x - 1))
    scaled = train(SepCMA(np.full(6, 8.0), 1.0, seed=9), 20, lambda x: sphere(x / 2 - 1))
    np.testing.assert_array_equal(scaled.mean, 2 * base.mean)
    np.testing.assert_array_equal(scaled.variances, base.variances)


# --- what is handed in and out ---


def test_inputs_and_outputs_are_copies() -> None:
    """The caller's x0 is never modified, and nothing that is handed out reaches the state."""
    x0 = np.ones(4)
    es, twin = SepCMA(x0, 1.0, seed=1), SepCMA(np.ones(4), 1.0, seed=1)
    for _ in range(3):
        candidates = es.ask()
        fitness = negated(sphere, candidates)
        candidates[:] = 99
        es.mean[:] = 99
        es.variances[:] = 99
        for value in es.state_dict().values():
            if isinstance(value, np.ndarray):
                value[:] = 99
        es.tell(fitness)
        fitness[:] = 99
        twin.tell(negated(sphere, twin.ask()))
    assert is_same(es, twin)
    np.testing.assert_array_equal(x0, 1)


def test_cmaes_updates_the_mean_of_its_caller() -> None:
    """The trap that `test_inputs_and_outputs_are_copies` guards against is real in the library."""
    x0 = np.ones(4)
    peer = cmaes.SepCMA(mean=x0, sigma=1.0, seed=1)
    peer.tell([(x, sphere(x)) for x in (peer.ask() for _ in range(peer.population_size))])
    assert not np.array_equal(x0, np.ones(4))


def test_asking_again_gives_the_same_candidates() -> None:
    """Until it is told, a generation stays the same: an interrupted evaluation can simply start again."""
    es = SepCMA(np.zeros(4), 1.0, seed=1)
    first = es.ask()
    np.testing.assert_array_equal(es.ask(), first)
    assert es.generation == 0
    es.tell(np.arange(len(first)))
    assert es.generation == 1
    assert not np.array_equal(es.ask(), first)


def test_tell_needs_an_ask() -> None:
    """Telling before asking, or twice, is refused and leaves the state as it was."""
    es = SepCMA(np.zeros(4), 1.0, popsize=6, seed=1)
    with pytest.raises(RuntimeError, match="ask"):
        es.tell(np.zeros(6))
    es.ask()
    es.tell(np.arange(6))
    before = es.state_dict()
    with pytest.raises(RuntimeError, match="generation 1"):
        es.tell(np.arange(6))
    assert all(np.array_equal(before[key], value) for key, value in es.state_dict().items())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fitness_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    """NaN or infinite fitness is an error that names the candidate, and the same generation can be told again."""
    es, twin = SepCMA(np.zeros(4), 1.0, popsize=6, seed=1), SepCMA(np.zeros(4), 1.0, popsize=6, seed=1)
    es.ask(), twin.ask()
    with pytest.raises(ValueError, match=rf"1 candidates is not finite: \[3\] = {bad}"):
        es.tell([0, 1, 2, bad, 4, 5])
    assert is_same(es, twin)
    es.tell(np.arange(6)), twin.tell(np.arange(6))
    assert is_same(es, twin)


def test_cmaes_accepts_nan() -> None:
    """The trap that `test_fitness_that_is_not_finite_is_refused_by_name` guards against is real in the library."""
    peer = cmaes.SepCMA(mean=np.zeros(4), sigma=1.0, seed=1)
    peer.tell([(peer.ask(), float("nan")) for _ in range(peer.population_size)])
    assert peer.generation == 1


@quick
@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=8).filter(lambda shape: shape != (6,)))
def test_fitness_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Only one number for each candidate is taken; nothing is broadcast, flattened or cut."""
    es = SepCMA(np.zeros(4), 1.0, popsize=6, seed=1)
    es.ask()
    with pytest.raises(ValueError, match=r"expected \(6,\)"):
        es.tell(np.zeros(shape))
    assert es.generation == 0


@pytest.mark.parametrize(
    "fitness",
    [[None] * 6, [0.5, None, 0, 0, 0, 0], ["1"] * 6, [True] * 6, [1j] * 6, np.zeros(6, dtype="datetime64[s]")],
)
def test_fitness_that_is_not_real_numbers_is_refused(fitness: list[object]) -> None:
    """Unscored candidates (None), strings, flags and complex numbers are errors, not conversions."""
    es = SepCMA(np.zeros(4), 1.0, popsize=6, seed=1)
    es.ask()
    with pytest.raises(ValueError, match="expected real numbers"):
        es.tell(fitness)  # type: ignore[arg-type]  # what a caller without a type checker may do


@quick
@given(fitness=hnp.arrays(st.sampled_from([np.float16, np.float32, np.int8, np.uint8, np.int64]), 6, elements=None))
def test_any_real_dtype_is_ranked_as_it_reads(fitness: NDArray[np.generic]) -> None:
    """Half floats, bytes and unsigned integers rank as the same values in float64 do."""
    as_float = fitness.astype(np.float64)
    if not np.isfinite(as_float).all():
        return
    a, b = SepCMA(np.zeros(4), 1.0, popsize=6, seed=1), SepCMA(np.zeros(4), 1.0, popsize=6, seed=1)
    a.ask(), b.ask()
    a.tell(fitness), b.tell(as_float)
    assert is_same(a, b)


@pytest.mark.parametrize("x0", [np.zeros((2, 2)), np.zeros(0), [0.0, np.nan], [np.inf], 1.0, ["a"]])
def test_bad_start_is_refused(x0: object) -> None:
    """A start that is not a vector of finite numbers is an error."""
    with pytest.raises(ValueError, match=r"x0|could not convert"):
        SepCMA(x0, 1.0, seed=0)  # type: ignore[arg-type]  # what a caller without a type checker may do


@pytest.mark.parametrize("sigma0", [0.0, -1.0, np.nan, np.inf])
def test_bad_step_size_is_refused(sigma0: float) -> None:
    """A step size that is not a positive number is an error."""
    with pytest.raises(ValueError, match="sigma0"):
        SepCMA([0.0, 0.0], sigma0, seed=0)


@pytest.mark.parametrize("size", [1, 0, -3])
def test_population_of_one_is_refused(size: int) -> None:
    """A population without selection is an error."""
    with pytest.raises(ValueError, match="popsize"):
        SepCMA([0.0, 0.0], 1.0, popsize=size, seed=0)


# --- resume ---


@pytest.mark.parametrize("is_pending", [False, True])
def test_train_10_equals_train_5_save_load_train_5(tmp_path: Path, is_pending: bool) -> None:
    """A run that is saved to .npz without pickle and loaded goes on bit for bit, also between ask and tell."""
    whole, half = train(SepCMA(np.ones(12), 0.7, seed=4), 10), train(SepCMA(np.ones(12), 0.7, seed=4), 5)
    asked = half.ask() if is_pending else None
    np.savez(tmp_path / "es.npz", **half.state_dict())
    with np.load(tmp_path / "es.npz", allow_pickle=False) as state:
        resumed = SepCMA.from_state(state)
    assert is_same(half, resumed)
    if asked is not None:
        np.testing.assert_array_equal(resumed.ask(), asked)
    assert is_same(train(resumed, 5), whole)
    assert whole.generation == 10


def test_resume_in_another_process(tmp_path: Path) -> None:
    """A run that another process takes over ends bit for bit where one process would have ended."""
    whole, half = (
        train(SepCMA(np.ones(40), 0.7, seed=4), 10, sphere),
        train(SepCMA(np.ones(40), 0.7, seed=4), 5, sphere),
    )
    np.savez(tmp_path / "half.npz", **half.state_dict())
    program = (
        "import sys, numpy as np\n"
        "from torafugu.train.sepcma import SepCMA\n"
        "es = SepCMA.from_state(np.load(sys.argv[1], allow_pickle=False))\n"
        "for _ in range(5):\n"
        "    es.tell([-float(np.sum(x**2)) for x in es.ask()])\n"
        "np.savez(sys.argv[2], **es.state_dict())\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "half.npz", tmp_path / "whole.npz"], check=True)
    with np.load(tmp_path / "whole.npz", allow_pickle=False) as state:
        assert is_same(SepCMA.from_state(state), whole)


def test_pickles_and_copies_keep_the_random_stream() -> None:
    """Unlike `cmaes`, which drops its generator, a pickled or copied strategy asks what the original would have."""
    es = train(SepCMA(np.ones(5), 1.0, seed=4), 3)
    for twin in (pickle.loads(pickle.dumps(es)), copy.deepcopy(es)):
        np.testing.assert_array_equal(twin.ask(), copy.deepcopy(es).ask())
    peer = cmaes.SepCMA(mean=np.ones(5), sigma=1.0, seed=4)
    assert not np.array_equal(pickle.loads(pickle.dumps(peer)).ask(), peer.ask())


def test_seeds_decide() -> None:
    """The same seed gives the same run, another seed another one."""
    a, b, c = (train(SepCMA(np.ones(5), 1.0, seed=seed), 3) for seed in (1, 1, 2))
    assert is_same(a, b)
    assert not np.array_equal(a.mean, c.mean)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "schema 2"),
        ("mean", [np.nan] * 4, "x0"),
        ("sigma", -1.0, "sigma0"),
        ("popsize", 1, "popsize"),
        ("variances", np.ones(3), "variances of shape"),
        ("variances", -np.ones(4), "variances above 0"),
        ("path_c", np.full(4, np.inf), "path_c"),
        ("asked", np.zeros((5, 4)), "asked of shape"),
        ("generation", -1, "generation"),
        ("rng", "{", "sep-CMA-ES state"),
        ("rng", '{"bit_generator": "MT19937"}', "sep-CMA-ES state"),
        ("path_sigma", None, "'path_sigma' is missing"),
    ],
)
def test_damaged_state_is_refused(key: str, value: object, message: str) -> None:
    """A state with a missing key or a value that cannot be is a ModelError that says which."""
    state: dict[str, object] = dict(SepCMA(np.zeros(4), 1.0, popsize=6, seed=1).state_dict())
    state[key] = value
    if value is None:
        del state[key]
    with pytest.raises(ModelError, match=message):
        SepCMA.from_state(state)
