"""Intervals, tests and votes: against closed forms, against scipy, and against the coverage that they promise."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from torafugu.eval.stats import (
    CELLS_PER_CHUNK,
    Interval,
    gap_closed,
    majority_vote,
    mcnemar,
    paired_bootstrap,
    routing_entropy_bits,
    wilson,
)

quick = settings(max_examples=60, deadline=None, database=None)
outcomes = st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 1])), min_size=1, max_size=40)


def paired_outcomes(rng: np.random.Generator, n: int, ours: float, theirs: float) -> tuple[NDArray, NDArray]:
    """Two workers that often solve the same tasks, as real ones do."""
    difficulty = rng.random(n)
    luck = rng.random((2, n)) * 0.4 - 0.2
    return (difficulty + luck[0] < ours).astype(float), (difficulty + luck[1] < theirs).astype(float)


# --- bootstrap ---


def test_bootstrap_covers_as_often_as_it_says() -> None:
    """In 300 simulated experiments the 95 % interval holds the true gain about 95 times in 100."""
    rng = np.random.default_rng(11)
    truth = 0.1  # both probabilities are linear in the threshold away from 0 and 1
    hits = 0
    for seed in range(300):
        ours, theirs = paired_outcomes(rng, 200, 0.6, 0.5)
        interval = paired_bootstrap(ours, theirs, samples=1_000, seed=seed)
        hits += interval.low <= truth <= interval.high
    assert 0.91 <= hits / 300 <= 0.98


def clustered(rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """(gains, groups): 40 families of 10 tasks; most of the variance lies between families. The true gain is 0."""
    groups = np.repeat(np.arange(40), 10)
    return rng.standard_normal(40)[groups] + 0.3 * rng.standard_normal(400), groups


def test_cluster_bootstrap_covers_where_the_plain_one_does_not() -> None:
    """When tasks of a family rise and fall together the interval over families covers; the plain one is too sure."""
    rng = np.random.default_rng(5)
    plain_hits = cluster_hits = 0
    for seed in range(150):
        gains, groups = clustered(rng)
        plain = paired_bootstrap(gains, np.zeros(400), samples=300, seed=seed)
        cluster = paired_bootstrap(gains, np.zeros(400), groups=groups, samples=300, seed=seed)
        plain_hits += plain.low <= 0 <= plain.high
        cluster_hits += cluster.low <= 0 <= cluster.high
    assert cluster_hits / 150 > 0.88
    assert plain_hits / 150 < 0.7


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_agrees_with_scipy(level: float) -> None:
    """On the same data the interval is scipy's percentile interval, up to the noise of resampling."""
    ours, theirs = paired_outcomes(np.random.default_rng(2), 150, 0.7, 0.55)
    interval = paired_bootstrap(ours, theirs, samples=20_000, level=level, seed=1)
    peer = scipy.stats.bootstrap(
        (ours - theirs,), np.mean, confidence_level=level, n_resamples=20_000, method="percentile", rng=1
    )
    assert interval.mean == pytest.approx(np.mean(ours - theirs), abs=1e-12)
    assert interval.low == pytest.approx(peer.confidence_interval.low, abs=0.005)
    assert interval.high == pytest.approx(peer.confidence_interval.high, abs=0.005)


def test_bootstrap_of_continuous_rewards() -> None:
    """Rewards that never repeat, so that every task is its own kind and chunks are needed, give the normal interval."""
    gains = 5 + np.random.default_rng(3).standard_normal(2_000)
    assert CELLS_PER_CHUNK < 2_000 * 1_500
    interval = paired_bootstrap(gains, np.zeros(2_000), samples=1_500, seed=1)
    half = 1.96 * gains.std() / math.sqrt(2_000)
    assert interval.low == pytest.approx(gains.mean() - half, abs=0.006)
    assert interval.high == pytest.approx(gains.mean() + half, abs=0.006)


def test_groups_of_one_task_are_no_groups() -> None:
    """A group for each task changes nothing, whatever the labels are."""
    ours, theirs = paired_outcomes(np.random.default_rng(2), 50, 0.7, 0.5)
    labels = [f"family {i}" for i in range(50)]
    assert paired_bootstrap(ours, theirs, seed=3) == paired_bootstrap(ours, theirs, groups=labels, seed=3)


def test_groups_weigh_by_their_tasks() -> None:
    """A resample of groups is the mean over its tasks: a large family counts for more than a small one."""
    gains, groups = np.array([1.0, *[0.0] * 9]), ["small"] + ["large"] * 9
    interval = paired_bootstrap(gains, np.zeros(10), groups=groups, level=0.4, samples=2_000, seed=0)
    assert (interval.mean, interval.low, interval.high) == (0.1, 0.1, 0.1)  # twice small: 1; one each: 1 / 10
    assert paired_bootstrap(gains, np.zeros(10), groups=groups, level=0.9, samples=2_000, seed=0).high == 1


@quick
@given(pairs=outcomes, seed=st.integers(0, 99))
def test_bootstrap_is_ordered_and_repeatable(pairs: list[tuple[float, int]], seed: int) -> None:
    """The ends are ordered, within the range of the gains, wider at a higher level, and decided by the seed."""
    ours, theirs = np.array(pairs, dtype=float).T
    interval = paired_bootstrap(ours, theirs, samples=400, level=0.9, seed=seed)
    gains = ours - theirs
    assert gains.min() - 1e-12 <= interval.low <= interval.high <= gains.max() + 1e-12
    assert interval.mean == pytest.approx(gains.mean(), abs=1e-12)
    assert interval == paired_bootstrap(ours, theirs, samples=400, level=0.9, seed=seed)
    wider = paired_bootstrap(ours, theirs, samples=400, level=0.99, seed=seed)
    assert wider.low <= interval.low <= interval.high <= wider.high
    swapped = paired_bootstrap(theirs, ours, samples=400, level=0.9, seed=seed)
    assert swapped.mean == pytest.approx(-interval.mean, abs=1e-12)


def test_bootstrap_pairs_tasks() -> None:
    """Against itself shifted by a constant the gain is certain, however much the tasks differ."""
    hard = np.random.default_rng(1).random(100)
    interval = paired_bootstrap(hard + 0.25, hard, seed=1)
    assert (interval.low, interval.high) == (pytest.approx(0.25), pytest.approx(0.25))


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "message"),
    [
        ([], [], {}, "at least one outcome"),
        ([1, 0], [1], {}, "same tasks"),
        ([[1, 0]], [[1, 0]], {}, "a vector"),
        ([1, np.nan], [1, 0], {}, "ours holds 1 unknown"),
        ([1, 0], [np.nan, np.inf], {}, "theirs holds 2 unknown"),
        ([1, 0], [1, 0], {"groups": [1]}, "one label for each task"),
        ([1, 0], [1, 0], {"level": 95}, "level 95"),
        ([1, 0], [1, 0], {"samples": 0}, "samples 0"),
    ],
)
def test_bootstrap_refuses_what_does_not_pair(ours: list, theirs: list, options: dict, message: str) -> None:
    """Unpaired, empty or unknown outcomes are errors that say what to do; nothing is dropped silently."""
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(ours, theirs, seed=0, **options)


def test_interval_is_recorded_as_json() -> None:
    """An interval goes into reports as plain numbers."""
    interval = paired_bootstrap([1, 0, 1], [0, 0, 1], samples=50, seed=0)
    stored = msgspec.json.encode(interval)
    assert msgspec.json.decode(stored, type=Interval) == interval
    counted = np.array([1, 0, 1])
    assert msgspec.json.decode(msgspec.json.encode(wilson(counted.sum(), np.int64(3))))["mean"] == pytest.approx(2 / 3)


# --- proportions ---


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (599, 1_000), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_agrees_with_scipy(successes: int, n: int, level: float) -> None:
    """The interval of a proportion is scipy's Wilson interval."""
    interval = wilson(successes, n, level=level)
    peer = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert interval.mean == successes / n
    assert (interval.low == 0, interval.high == 1) == (successes == 0, successes == n)
    assert interval.low == pytest.approx(peer.low, abs=1e-12)
    assert interval.high == pytest.approx(peer.high, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    """More successes than trials, or no trials, is an error, not a proportion of 0."""
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@quick
@given(pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(pairs: list[tuple[int, int]]) -> None:
    """The p-value is scipy's two-sided binomial test on the tasks that one of both solved alone."""
    ours, theirs = np.array(pairs).T
    wins, losses = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(ours, theirs) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(theirs, ours) == mcnemar(ours, theirs)


def test_mcnemar_of_many_tasks() -> None:
    """Ten thousand discordant tasks neither overflow nor lose the tail."""
    ours = np.repeat([1, 0], [5_200, 4_800])
    expected = scipy.stats.binomtest(5_200, 10_000).pvalue
    assert mcnemar(ours, 1 - ours) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(np.ones(10_000), np.zeros(10_000)) == 0.0


def test_mcnemar_refuses_partial_credit() -> None:
    """Outcomes other than 0 and 1 have no exact test and are an error."""
    with pytest.raises(ValueError, match=r"theirs holds .*0\.5"):
        mcnemar([0, 1], [0.5, 1])


# --- votes ---


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["a", "b", "b"], 1),
        (["a", "b", "c"], 0),
        (["a", "b", "b", "a", "c"], 0),
        (["", "b", "c"], 1),
        (["", "", "c"], 2),
        (["", "", ""], 0),
        (["", "", "", "b", "a"], 3),
        (["x", "", "", "b", "b"], 3),
        (["a"], 0),
        (["7", "7.0", "7.0 "], 0),
    ],
)
def test_majority_vote(answers: list[str], winner: int) -> None:
    """Most equal answers win; ties go to the most preferred voter's answer; empty answers do not vote."""
    assert majority_vote(answers) == winner


@quick
@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=7))
def test_majority_vote_elects_a_largest_group(answers: list[str]) -> None:
    """The winner is the first voter of a group that no other exceeds, and of such groups of the one voiced first."""
    sizes = [answers.count(answer) if answer else 0 for answer in answers]
    assert majority_vote(answers) == sizes.index(max(sizes))


def test_majority_vote_needs_voters() -> None:
    """A question without voters is an error, and so is a string, whose letters would vote."""
    for bad in ([], "abb"):
        with pytest.raises(ValueError, match="at least one voter"):
            majority_vote(bad)


# --- shares ---


def test_gap_closed() -> None:
    """The share of the gap is 0 at the best single worker, 1 at the oracle, negative below, None without a gap."""
    assert gap_closed(0.6, 0.6, 0.8) == 0
    assert gap_closed(0.7, 0.6, 0.8) == pytest.approx(0.5)
    assert gap_closed(0.5, 0.6, 0.8) == pytest.approx(-0.5)
    assert gap_closed(0.7, 0.7, 0.7) is None
    with pytest.raises(ValueError, match="below the best single"):
        gap_closed(0.5, 0.6, 0.59)


@quick
@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=12).filter(any))
def test_routing_entropy(counts: list[int]) -> None:
    """The entropy is scipy's in bits, and idle workers change nothing."""
    bits = routing_entropy_bits(counts)
    assert bits == pytest.approx(scipy.stats.entropy(counts, base=2), abs=1e-12)
    assert bits == pytest.approx(routing_entropy_bits([*counts, 0]), abs=1e-12)
    assert math.copysign(1, bits) == 1


def test_routing_entropy_of_collapse_and_of_chance() -> None:
    """Always the same worker is 0 bits, seven alike are log2 7, and no calls are an error."""
    assert routing_entropy_bits([0, 9, 0]) == 0
    assert routing_entropy_bits([3] * 7) == pytest.approx(math.log2(7))
    for bad in ([], [0, 0], [1, -1], [[1, 2]], [np.nan, 1]):
        with pytest.raises(ValueError, match="counts"):
            routing_entropy_bits(bad)
