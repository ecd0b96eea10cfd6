"""What the coordinator sees: features by hand, trust as probabilities, the same bits for one run as for many."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from coordinators import draw_evidence, make_evidence
from torafugu.orchestrate.situation import (
    RUN_FEATURES,
    WORKER_FEATURES,
    Evidence,
    Lengths,
    Prospect,
    Situation,
    View,
    choose_wording,
    look,
)

E1, E2 = float(np.exp(1)), float(np.exp(2))


def make_situation(
    answers: str,
    *,
    worked: str = "",
    current: str | None = None,
    unreadable: bool = False,
    thought: bool = False,
    length: list[float] | None = None,
) -> Situation:
    """One run of the workers a, b, c, d: a letter per answer, "." unknown, "-" empty."""
    answers = answers.ljust(4, ".")
    same = np.array([[a == b and a not in ".-" for b in answers] for a in answers])
    known = np.array([answer != "." for answer in answers])
    return Situation(
        known=known[None],
        worked=np.array([[worker in worked for worker in "abcd"]]),
        current=np.array([-1 if current is None else "abcd".index(current)]),
        same=(np.eye(4, dtype=bool) if unreadable else same)[None],
        alike=(np.eye(4, dtype=bool) if unreadable else same)[None],
        empty=np.array([[not unreadable and answer in ".-" for answer in answers]]),
        length=np.array([[np.nan] * 4 if length is None else length]),
        unreadable=np.array([unreadable]),
        thought=np.array([thought]),
        exhausted=np.array([bool(known.all())]),
    )


def draw_situations(
    count: int, size: int, *, seed: int, rows: slice = slice(None)
) -> tuple[Situation, Prospect, Evidence]:
    """Any situations that can be; `rows` of them."""
    draw = np.random.default_rng([seed, size])
    answers = draw.integers(0, 4, (count, size))  # 0: empty
    known = draw.random((count, size)) < 0.6
    worked = known & (draw.random((count, size)) < 0.7)
    current = np.where(worked.any(1), worked.argmax(1), -1)
    unreadable = draw.random(count) < 0.2
    same = (answers[:, :, None] == answers[:, None, :]) & (answers != 0)[:, :, None]
    same[unreadable] = np.eye(size, dtype=bool)
    situation = Situation(
        known=known,
        worked=worked,
        current=current,
        same=same,
        alike=same,
        empty=(answers == 0) & ~unreadable[:, None],
        length=np.where(draw.random((count, size)) < 0.2, np.nan, draw.normal(4, 2, (count, size))),
        unreadable=unreadable,
        thought=draw.random(count) < 0.3,
        exhausted=known.all(1),
    )
    prospect = Prospect(deviation=draw.normal(0, 0.2, (count, size)), familiarity=draw.random(count))
    taken = Situation(**{field.name: getattr(situation, field.name)[rows] for field in fields(Situation)})
    return taken, prospect, draw_evidence(size, seed)


def see(situation: Situation, deviation: object = 0.0, familiarity: float = 0.5, **evidence: object) -> View:
    prospect = Prospect(deviation=np.zeros((1, 4)) + np.asarray(deviation), familiarity=np.array([familiarity]))
    return look(situation, prospect, make_evidence(4, **evidence))


def of_run(view: View) -> dict[str, float]:
    return dict(zip(RUN_FEATURES, view.run[0].tolist(), strict=True))


def of_worker(view: View, worker: str) -> dict[str, float]:
    return dict(zip(WORKER_FEATURES, view.workers[0, "abcd".index(worker)].tolist(), strict=True))


# --- trust ---


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_trust_is_a_distribution(size: int) -> None:
    """The different answers on the table and "none of them" share a probability of one, whatever the numbers."""
    situation, prospect, evidence = draw_situations(200, size, seed=1)
    view = look(situation, prospect, evidence)
    assert ((view.trust >= 0) & (view.trust <= 1)).all()
    voting = situation.known & ~situation.empty
    assert (view.trust[~voting] == 0).all()
    doubt = view.run[:, RUN_FEATURES.index("doubt")]
    for i in np.flatnonzero(situation.current >= 0):
        distinct: dict[int, float] = {}
        for j in np.flatnonzero(voting[i]):
            first = int(np.flatnonzero(situation.same[i, j] & voting[i])[0])
            assert view.trust[i, j] == pytest.approx(distinct.setdefault(first, view.trust[i, j]))
        assert sum(distinct.values()) + doubt[i] == pytest.approx(1)


def test_trust_by_hand() -> None:
    """Voices for the same answer add up; each answer's odds are e to the power of its voices, against "none"."""
    view = see(make_situation("xxy.", worked="abc", current="a"))
    total = E2 + E1 + 1
    assert view.trust[0].tolist() == pytest.approx([E2 / total, E2 / total, E1 / total, 0])
    run = of_run(view)
    assert run["trust"] == pytest.approx(E2 / total)
    assert run["rival"] == pytest.approx(E1 / total)
    assert run["doubt"] == pytest.approx(1 / total)
    assert (run["trust_gap"], run["supported"]) == (0, 1)


def test_length_by_hand() -> None:
    """A reply counts by its distance from its usual length, at most three deviations; one of unknown length by none."""
    lengths = Lengths(mean=np.array([4.0, 5, 0, 0]), scale=np.array([0.5, 2, 1, 1]), of_voice=-0.5, of_none=0.2)
    for length, (a, b) in (([5.0, 3.0], (2, -1)), ([9.0, np.nan], (3, 0))):
        situation = make_situation("xy..", worked="ab", current="a", length=[*length, np.nan, np.nan])
        odds = np.exp([1 - 0.5 * a, 1 - 0.5 * b, 0.2 * (a + b) / 2])
        assert see(situation, lengths=lengths).trust[0, :2] == pytest.approx(odds[:2] / odds.sum())


def test_of_easiness_by_hand() -> None:
    """What all workers are above their usual is one thing, what one is above the others another."""
    situation = make_situation("xy..", worked="ab", current="a")
    view = see(situation, [0.5, 0.1, 0.1, 0.1], of_deviation=2.0, of_easiness=5.0)
    first, second = np.exp(1 + 2 * 0.3 + 5 * 0.2), np.exp(1 - 2 * 0.1 + 5 * 0.2)
    assert view.trust[0] == pytest.approx([first / (first + second + 1), second / (first + second + 1), 0, 0])


def test_log_odds_by_hand() -> None:
    """What a voice gains is by the odds of the expected score, which is never taken for surer than 0.03 or 0.97."""
    situation, ability = make_situation("xy..", worked="ab", current="a"), np.array([0.8, 0.5, 0.5, 0.5])
    for deviation, (a, b) in (([0.1, 0.1, 0, 0], (9 / 4, 1.5)), ([0.5, -0.5, 0, 0], (97 / 3 / 4, 3 / 97))):
        own = np.log([a, b, 1, 1])
        ease = own.mean()
        odds = np.exp(1 + 2 * (own[:2] - ease) + 5 * ease)
        view = see(situation, deviation, ability=ability, in_log_odds=True, of_deviation=2.0, of_easiness=5.0)
        assert view.trust[0, :2] == pytest.approx(odds / (odds.sum() + 1))
        none = np.array([0, 0, 0, 0, 0.7])
        view = see(situation, deviation, ability=ability, in_log_odds=True, none=none)
        doubt = np.exp(0.7 * (own[0] + own[1]) / 2)
        assert of_run(view)["doubt"] == pytest.approx(doubt / (doubt + 2 * E1))


def test_of_deviation_by_hand() -> None:
    """A worker that is expected to do better than usual on this question counts for more."""
    view = see(make_situation("xy..", worked="ab", current="a"), [0.5, 0, 0, 0], of_deviation=2.0)
    assert view.trust[0, :2].tolist() == pytest.approx([E2 / (E2 + E1 + 1), E1 / (E2 + E1 + 1)])


def test_none_by_hand() -> None:
    """The odds of "none" follow from different answers, empty replies, workers asked and the mean deviation."""
    none = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    view = see(make_situation("xxy-", worked="abcd", current="a"), [0.1, 0.1, 0.1, 0.3], none=none)
    odds = float(np.exp(0.1 + 0.2 * 2 + 0.3 * 1 + 0.4 * 4 + 0.5 * 0.15))
    assert of_run(view)["doubt"] == pytest.approx(odds / (odds + E2 + E1))


def test_certainty_stays_finite() -> None:
    """Weights of any size give probabilities, not overflow."""
    for weight in (1e6, -1e6):
        view = see(make_situation("xxxy", worked="abcd", current="a"), weight=np.full(4, weight))
        assert np.isfinite(view.run).all()
        assert np.isfinite(view.workers).all()
        assert of_run(view)["trust"] == pytest.approx(0.5 if weight > 0 else 0, abs=1e-9)  # cut off alike


# --- features ---


def test_before_anything() -> None:
    """At first only the prospects are known: the constant, how familiar the question is, and who promises most."""
    run = of_run(see(make_situation(""), [0, 0.3, 0, 0], of_deviation=1.0))
    assert {name: value for name, value in run.items() if value} == {"constant": 1, "familiarity": 0.5, "prospect": 1.3}


def test_features_of_the_run() -> None:
    """A run's features say what its current answer is worth, who was asked, and what is left."""
    run = of_run(see(make_situation("xyy-", worked="ab", current="a", thought=True), familiarity=0.25))
    total = E1 + E2 + 1
    expected = dict.fromkeys(RUN_FEATURES, 0.0) | {
        "constant": 1,
        "has_answer": 1,
        "trust": E1 / total,
        "trust_gap": (E2 - E1) / total,
        "rival": E2 / total,
        "doubt": 1 / total,
        "asked": 1,
        "familiarity": 0.25,
        "familiar_trust": 0.25 * E1 / total,
        "asked_trust": E1 / total,
        "thought": 1,
        "exhausted": 1,
    }
    assert run == pytest.approx(expected)


def test_empty_current_answer() -> None:
    """A reply without an answer has no trust and no support, but does agree with itself."""
    view = see(make_situation("--..", worked="ab", current="a"))
    run = of_run(view)
    assert (run["empty"], run["trust"], run["supported"], run["doubt"]) == (1, 0, 0, 1)
    assert view.agrees.tolist() == [[True, False, False, False]]
    assert of_worker(view, "b")["known_best"] == 0


def test_unreadable_answers() -> None:
    """Answers that cannot be compared are neither empty nor the same, and each voice stands alone."""
    view = see(make_situation("xx..", worked="ab", current="a", unreadable=True))
    run = of_run(view)
    assert (run["unreadable"], run["empty"], run["supported"]) == (1, 0, 0)
    assert run["trust"] == run["rival"] == pytest.approx(E1 / (2 * E1 + 1))


def test_features_of_workers() -> None:
    """Known workers are described by their answer, others by what they promise and cost; neither by the other's."""
    overlap = np.zeros((4, 4))
    overlap[2] = [0.2, 0.4, 0, 0.9]
    cost, ability = np.array([0.1, 0.2, 0.3, 1.0]), np.array([0.9, 0.8, 0.7, 0.6])
    view = see(
        make_situation("xy..", worked="ab", current="a"),
        [0, 0, 0.1, 0],
        of_deviation=2.0,
        weight=np.array([1.0, 2, 3, 4]),
        overlap=overlap,
        cost=cost,
        ability=ability,
    )
    total = E1 + E2 + 1
    nothing = dict.fromkeys(WORKER_FEATURES, 0.0)
    assert of_worker(view, "a") == pytest.approx(
        nothing | {"known": 1, "known_trust": E1 / total, "agrees": 1, "agrees_trust": E1 / total}
    )
    assert of_worker(view, "b") == pytest.approx(
        nothing | {"known": 1, "known_trust": E2 / total, "known_best": 1, "best_gap": (E2 - E1) / total}
    )
    assert of_worker(view, "c") == pytest.approx(
        nothing
        | {"deviation": 0.1, "weight": 3.2, "familiar_deviation": 0.05, "ability": 0.7, "doubtful_weight": 3.2 / total}
        | {"overlap": 0.3, "cost": 0.3}
    )


def test_what_is_not_on_the_table_is_not_seen() -> None:
    """Answers of workers that nobody asked, and their emptiness, change nothing that is seen."""
    situation, prospect, evidence = draw_situations(100, 5, seed=2)
    view = look(situation, prospect, evidence)
    hidden = ~situation.known
    same = situation.same | hidden[:, :, None] | hidden[:, None, :]
    changes = {"same": same, "empty": situation.empty ^ hidden, "length": np.where(hidden, 99.0, situation.length)}
    names = [field.name for field in fields(Situation)]
    other = look(Situation(**{name: changes.get(name, getattr(situation, name)) for name in names}), prospect, evidence)
    assert (view.run == other.run).all()
    assert (view.workers == other.workers).all()


def test_order_of_workers_does_not_matter() -> None:
    """Features belong to workers, not to columns: other columns, other order, the same numbers."""
    situation, prospect, evidence = draw_situations(100, 5, seed=3)
    view = look(situation, prospect, evidence)
    order = np.array([3, 1, 4, 0, 2])
    back = order.argsort()
    moved = Situation(
        known=situation.known[:, order],
        worked=situation.worked[:, order],
        current=np.where(situation.current >= 0, back[situation.current], -1),
        same=situation.same[:, order][:, :, order],
        alike=situation.alike[:, order][:, :, order],
        empty=situation.empty[:, order],
        length=situation.length[:, order],
        unreadable=situation.unreadable,
        thought=situation.thought,
        exhausted=situation.exhausted,
    )
    shuffled = Evidence(
        weight=evidence.weight[order],
        of_deviation=evidence.of_deviation,
        of_easiness=evidence.of_easiness,
        none=evidence.none,
        ability=evidence.ability[order],
        in_log_odds=evidence.in_log_odds,
        overlap=evidence.overlap[order][:, order],
        cost=evidence.cost[order],
        lengths=replace(evidence.lengths, mean=evidence.lengths.mean[order], scale=evidence.lengths.scale[order]),
    )
    other = look(moved, Prospect(deviation=prospect.deviation[:, order], familiarity=prospect.familiarity), shuffled)
    assert other.run == pytest.approx(view.run)
    assert other.workers == pytest.approx(view.workers[:, order])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 17, 40])
def test_one_run_or_many(size: int) -> None:
    """A run's features have the same bits alone as among many: training and serving decide alike."""
    situation, prospect, evidence = draw_situations(50, size, seed=4)
    view = look(situation, prospect, evidence)
    for i in range(50):
        one, _, _ = draw_situations(50, size, seed=4, rows=slice(i, i + 1))
        seen = look(one, prospect.rows(np.array([i])), evidence)
        assert (seen.run == view.run[i]).all()
        assert (seen.workers == view.workers[i]).all()
        assert (seen.trust == view.trust[i]).all()


def test_no_runs() -> None:
    """No runs have no features, of the right shape."""
    situation, prospect, evidence = draw_situations(5, 3, seed=5, rows=slice(0))
    view = look(situation, prospect.rows(np.zeros(0, np.int64)), evidence)
    assert (view.run.shape, view.workers.shape) == ((0, len(RUN_FEATURES)), (0, 3, len(WORKER_FEATURES)))


# --- which wording is returned ---


def word(wordings: str, *, worked: str, current: str | None) -> int:
    """Workers a, b, c, d; the same letter says the same, and a capital writes it differently."""
    situation = make_situation(wordings.lower(), worked=worked, current=current)
    texts = wordings.ljust(4, ".")
    alike = np.array([[a == b and a not in ".-" for b in texts] for a in texts])
    return int(choose_wording(replace(situation, alike=alike[None]))[0])


@pytest.mark.parametrize(
    ("wordings", "worked", "current", "returned"),
    [
        ("xXX", "abc", "a", 1),  # two write it otherwise
        ("xX", "ab", "a", 0),  # one against one: the current reply stays
        ("Xxx", "ab", "a", 1),  # c was heard as a Verifier only, and counts
        ("xXX", "a", "a", 0),  # the others are Verifiers: there is no reply of theirs to return
        ("xyyy", "abcd", "a", 0),  # who says something else does not count
        ("-", "a", "a", 0),
        ("", "", None, -1),
    ],
)
def test_the_wording_of_most_is_returned(wordings: str, worked: str, current: str | None, returned: int) -> None:
    """Of the Workers' replies that say the same as the current one, written as most of all that say it write it."""
    assert word(wordings, worked=worked, current=current) == returned
