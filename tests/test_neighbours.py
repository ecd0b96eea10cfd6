"""Baselines on hidden states: on made-up pools where the right choice is known, with holes, ties and bad rows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from torafugu.errors import ConfigError
from torafugu.eval.neighbours import KNearest, SupportVectors

WIDTH = 24
CHOOSERS = [KNearest, lambda: SupportVectors("rbf"), lambda: SupportVectors("linear")]
every_chooser = pytest.mark.parametrize("new", CHOOSERS, ids=["knn", "rbf", "linear"])


def made_up_pool(n: int, seed: int, share: float = 0.4) -> tuple[NDArray, NDArray, NDArray]:
    """(hidden, outcomes, topic): three topics and for each a worker that solves it; worker 3 solves `share` of all."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 3, n)
    centres = np.random.default_rng(0).standard_normal((3, WIDTH))
    hidden = centres[topic] + 0.5 * rng.standard_normal((n, WIDTH))
    outcomes = np.zeros((n, 4))
    outcomes[np.arange(n), topic] = rng.random(n) < 0.9
    outcomes[:, 3] = rng.random(n) < share
    return hidden, outcomes, topic


def fitted(new, seed: int = 1, holes: float = 0.0, n: int = 300):
    """A chooser fitted to the made-up pool, a share of whose outcomes is unknown."""
    chooser = new()
    hidden, outcomes, _ = made_up_pool(n, seed)
    validation, earned, _ = made_up_pool(150, seed + 1)
    rng = np.random.default_rng(seed + 2)
    outcomes[rng.random(outcomes.shape) < holes] = np.nan
    earned[rng.random(earned.shape) < holes] = np.nan
    chooser.fit(hidden, outcomes, validation, earned)
    return chooser


@every_chooser
def test_finds_the_specialist_of_each_topic(new) -> None:
    """Where each topic has its worker, unseen questions go to it, which earns far more than the best single worker."""
    hidden, outcomes, topic = made_up_pool(400, 9)
    choice = fitted(new).choose(hidden)
    assert choice.shape == (400,)
    assert choice.dtype == np.int64
    assert np.mean(choice == topic) > 0.95
    assert outcomes[np.arange(400), choice].mean() > outcomes.mean(axis=0).max() + 0.3


@every_chooser
def test_works_with_holes(new) -> None:
    """With four outcomes in ten unknown the specialists are found all the same."""
    hidden, _, topic = made_up_pool(400, 9)
    assert np.mean(fitted(new, holes=0.4).choose(hidden) == topic) > 0.9


@every_chooser
def test_does_not_touch_what_it_is_given_and_repeats_itself(new) -> None:
    """Fitting changes no array, and the same rows give the same choices, of any float type and of none."""
    hidden, outcomes, _ = made_up_pool(120, 1)
    before = hidden.copy(), outcomes.copy()
    a, b = new(), new()
    a.fit(hidden, outcomes, hidden, outcomes)
    b.fit(hidden.tolist(), outcomes, hidden, outcomes)
    np.testing.assert_array_equal(hidden, before[0])
    np.testing.assert_array_equal(outcomes, before[1])
    np.testing.assert_array_equal(a.choose(hidden), b.choose(hidden.tolist()))
    assert a.choose(hidden.astype(np.float32)).shape == (120,)
    assert a.choose(np.empty((0, WIDTH))).shape == (0,)


@every_chooser
def test_order_of_workers_does_not_matter(new) -> None:
    """Swapping the columns of the pool swaps the choices with them."""
    hidden, outcomes, _ = made_up_pool(200, 1)
    order = np.array([2, 0, 3, 1])
    plain, swapped = new(), new()
    plain.fit(hidden, outcomes, hidden, outcomes)
    swapped.fit(hidden, outcomes[:, order], hidden, outcomes[:, order])
    np.testing.assert_array_equal(order[swapped.choose(hidden)], plain.choose(hidden))


@every_chooser
def test_many_questions_are_chosen_as_one_by_one(new) -> None:
    """Questions are judged alone: however many are asked at once, the choices are the same."""
    chooser = fitted(new)
    hidden, _, _ = made_up_pool(1_100, 9)  # more than two chunks
    together = chooser.choose(hidden)
    alone = np.concatenate([chooser.choose(hidden[i : i + 1]) for i in range(0, 1_100, 50)])
    np.testing.assert_array_equal(together[::50], alone)


@every_chooser
def test_never_chooses_a_worker_without_evidence(new) -> None:
    """A worker that was never asked, and one that never solved anything, gets no question."""
    unknown, useless = np.full((300, 1), np.nan), np.zeros((300, 1))
    hidden, outcomes, _ = made_up_pool(300, 4)
    validation, earned, _ = made_up_pool(300, 5)
    unseen, _, topic = made_up_pool(300, 6)
    chooser = new()
    chooser.fit(hidden, np.hstack([unknown, outcomes, useless]), validation, np.hstack([unknown, earned, useless]))
    choice = chooser.choose(unseen)
    assert np.mean(choice == topic + 1) > 0.9
    assert not np.isin(choice, [0, 5]).any()


# --- nearest neighbours ---


def test_ties_go_to_the_best_worker_overall() -> None:
    """Workers with equal means among the neighbours are told apart by all training questions, not by position."""
    hidden = np.vstack([np.tile([1.0, 0.0], (6, 1)), np.tile([0.0, 1.0], (4, 1))])
    outcomes = np.zeros((10, 3))
    outcomes[:6, 1:] = 1  # workers 1 and 2 are equal on the first topic
    outcomes[6:, 2] = 1  # and worker 2 is the better one overall
    chooser = KNearest([5])
    chooser.fit(hidden, outcomes, hidden, outcomes)
    assert chooser.choose([[2.0, 0.0]]).tolist() == [2]
    assert chooser.choose([[0.0, 0.0]]).tolist() == [2]


def test_means_that_differ_only_by_rounding_are_ties() -> None:
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 are the same mean, so the better worker overall is taken."""
    hidden = np.array([[1, 0.02], [1, 0.01], [1, 0.0], [0, 1], [0, 1], [0, 1.0]])
    outcomes = np.array([[0.3, 0.1], [0.2, 0.2], [0.1, 0.3], [0, 1], [0, 1], [0, 1]])
    assert (0.1 + 0.2) + 0.3 > (0.3 + 0.2) + 0.1
    for columns in ([0, 1], [1, 0]):
        chooser = KNearest([3])
        chooser.fit(hidden, outcomes[:, columns], hidden, outcomes[:, columns])
        assert columns[chooser.choose([[1.0, 0.0]])[0]] == 1


def test_k_is_chosen_on_the_validation_part() -> None:
    """Single lucky neighbours mislead: with noisy outcomes a large k earns more, with tiny topics a small one."""
    rng = np.random.default_rng(3)
    hidden = rng.standard_normal((400, 4))
    outcomes = (rng.random((400, 3)) < [0.5, 0.6, 0.5]).astype(float)
    smooth = KNearest([1, 80])
    smooth.fit(hidden[:200], outcomes[:200], hidden[200:], outcomes[200:])
    assert smooth.k == 80

    topics = np.repeat(np.eye(40), 5, axis=0) + 0.01 * rng.standard_normal((200, 40))
    specialists = np.repeat(np.eye(40), 5, axis=0)
    sharp = KNearest([5, 80])
    sharp.fit(topics, specialists, topics[::5], specialists[::5])
    assert sharp.k == 5


def test_largest_of_equally_good_k_and_never_more_than_rows() -> None:
    """Of equally good k the smoothest is taken; candidates above the number of questions do not exist."""
    hidden, outcomes = np.eye(12), np.tile([0.0, 1.0], (12, 1))
    chooser = KNearest()
    chooser.fit(hidden, outcomes, hidden, outcomes)
    assert chooser.k == 10
    chooser.fit(hidden[:3], outcomes[:3], hidden, outcomes)
    assert chooser.k == 3
    assert chooser.choose(hidden).tolist() == [1] * 12


def test_neighbours_are_found_by_angle() -> None:
    """Length says nothing: a short vector's neighbours are those in its direction, not those near it."""
    hidden = np.array([[10.0, 0.0], [12.0, 0.0], [0.1, 0.1], [0.0, 10.0]])
    outcomes = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    chooser = KNearest([2])
    chooser.fit(hidden, outcomes, hidden, outcomes)
    assert chooser.choose([[0.1, 0.001]]).tolist() == [0]


def test_of_equally_near_questions_the_first_count() -> None:
    """Of many copies of one question the first k are the neighbours, however many there are."""
    copies = np.tile(np.random.default_rng(1).standard_normal(WIDTH), (101, 1))
    for first in (7, 40, 80):
        outcomes = np.column_stack([np.arange(101) < first, np.full(101, 0.9)]).astype(float)
        chooser = KNearest([first])
        chooser.fit(copies, outcomes, copies, outcomes)
        assert chooser.choose(copies[:3]).tolist() == [0, 0, 0]
        chooser = KNearest([first, 101])  # over all 101 the other worker is better, which is wrong in validation
        chooser.fit(copies, outcomes, copies, np.tile([1.0, 0.0], (101, 1)))
        assert chooser.k == first


def test_holes_reach_for_the_next_neighbour_that_was_asked() -> None:
    """The mean of a worker is over the k nearest questions that it was asked, not over fewer."""
    hidden = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    outcomes = np.array([[np.nan, 0.6], [1.0, 0.6], [0.0, 0.6], [0.0, 0.6]])
    chooser = KNearest([2])
    chooser.fit(hidden, outcomes, hidden, outcomes)
    assert chooser.choose([[1.0, 0.0]]).tolist() == [1]  # worker 0: (1 + 0) / 2, not 1


def test_a_rarely_asked_worker_is_not_the_best_overall() -> None:
    """A worker that solved the only question it was asked does not win ties against one that was asked everything."""
    hidden = np.tile([1.0, 0.0], (30, 1))
    outcomes = np.column_stack([np.full(30, np.nan), np.ones(30), np.zeros(30)])
    outcomes[0, 0] = 1
    chooser = KNearest([5])
    chooser.fit(hidden, outcomes, hidden, outcomes)
    assert chooser.choose(hidden[:1]).tolist() == [1]


# --- support vectors ---


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_always_the_same_best_worker_needs_no_machine(kernel: str) -> None:
    """When the best worker solves all that anybody solves, every question goes to it."""
    hidden, _, _ = made_up_pool(50, 1)
    outcomes = np.tile([0.0, 1.0, 1.0], (50, 1))
    outcomes[:10] = 0
    chooser = SupportVectors(kernel)
    chooser.fit(hidden, outcomes, hidden, outcomes)
    assert chooser.choose(hidden).tolist() == [1] * 50
    assert chooser.cost is None


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_rare_topics_are_found(kernel: str) -> None:
    """A specialist of one question in twenty is found though nearly all labels name another worker."""
    rng = np.random.default_rng(6)
    is_rare = rng.random(800) < 0.05
    hidden = rng.standard_normal((800, WIDTH)) + 2.0 * is_rare[:, None]
    outcomes = np.column_stack([~is_rare, is_rare]).astype(float)
    chooser = SupportVectors(kernel)
    chooser.fit(hidden[:400], outcomes[:400], hidden[400:600], outcomes[400:600])
    choice = chooser.choose(hidden[600:])
    assert np.mean(choice[is_rare[600:]] == 1) > 0.7
    assert np.mean(choice[~is_rare[600:]] == 0) > 0.95


def test_rbf_sees_what_no_line_can_part() -> None:
    """A topic that surrounds another is told apart by the rbf kernel and not by the linear one."""
    rng = np.random.default_rng(2)
    hidden = rng.standard_normal((600, 2))
    is_inside = np.linalg.norm(hidden, axis=1) < 1.1
    outcomes = np.column_stack([is_inside, ~is_inside]).astype(float)
    earned = {}
    for kernel in ("linear", "rbf"):
        chooser = SupportVectors(kernel)
        chooser.fit(hidden[:300], outcomes[:300], hidden[300:450], outcomes[300:450])
        earned[kernel] = outcomes[np.arange(450, 600), chooser.choose(hidden[450:])].mean()
    assert earned["rbf"] > 0.9
    assert earned["linear"] < 0.75


def test_constant_columns_do_no_harm() -> None:
    """A hidden unit that never changes is ignored, as it would otherwise divide by zero."""
    hidden, outcomes, topic = made_up_pool(200, 1)
    hidden[:, 3] = 7.0
    chooser = SupportVectors("linear")
    chooser.fit(hidden, outcomes, hidden, outcomes)
    assert np.mean(chooser.choose(hidden) == topic) > 0.9


def test_nobody_solved_anything() -> None:
    """Without one solved question there is no label, which is an error that says so."""
    hidden, outcomes, _ = made_up_pool(20, 1)
    with pytest.raises(ConfigError, match="there is nothing to learn from"):
        SupportVectors("rbf").fit(hidden, np.zeros_like(outcomes), hidden, outcomes)


def test_without_scikit_learn() -> None:
    """Nothing heavy is imported before the fit, and a missing scikit-learn names the extra that brings it."""
    program = (
        "import sys, numpy as np\n"
        "from torafugu.errors import ConfigError\n"
        "from torafugu.eval.neighbours import SupportVectors\n"
        "assert not any(name.split('.')[0] in ('sklearn', 'scipy') for name in sys.modules)\n"
        "sys.modules['sklearn'] = None\n"
        "try:\n"
        "    SupportVectors().fit(np.eye(2), np.eye(2), np.eye(2), np.eye(2))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "pip install 'torafugu[eval]'" in done.stdout


# --- bad rows ---


@every_chooser
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda h, o: (h[:-1], o, h, o), "training outcomes of shape"),
        (lambda h, o: (h, o, h, o[:, :2]), "validation outcomes of shape"),
        (lambda h, o: (h, o, h[:, :5], o), r"expected \(n, 24\)"),
        (lambda h, o: (h[0], o, h, o), r"expected \(n, d\)"),
        (lambda h, o: (h * np.nan, o, h, o), "not finite"),
        (lambda h, o: (h, o * np.nan, h, o), "training part of 20 questions holds no outcome"),
        (lambda h, o: (h, o, h[:0], o[:0]), "validation part of 0 questions holds no outcome"),
        (lambda h, o: (h[:0], o[:0], h, o), "training part of 0 questions"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(new, damage, message: str) -> None:
    """Mismatched, missing or broken rows are configuration errors that name the part and the shape."""
    hidden, outcomes, _ = made_up_pool(20, 1)
    with pytest.raises(ConfigError, match=message):
        new().fit(*damage(hidden, outcomes))


@every_chooser
def test_choosing_needs_a_fit_and_the_same_width(new) -> None:
    """An unfitted chooser refuses, and a fitted one refuses hidden states of another encoder."""
    with pytest.raises(RuntimeError, match="fit"):
        new().choose(np.zeros((1, WIDTH)))
    with pytest.raises(ConfigError, match=r"expected \(n, 24\)"):
        fitted(new, n=60).choose(np.zeros((1, WIDTH + 1)))
