"""Starts of a tri-role head: how each is judged, which are believed, and what is made of the best."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from outcomes import SUBJECTS, Quiet, Subjects
from torafugu.eval.matrix import build_matrix
from torafugu.eval.states import encode_questions
from torafugu.pool.recorded import read_recorded
from torafugu.train.rollout import play
from torafugu.train.starts import CANDIDATES, SINGLE, Candidate, Judged, Trials, choose_start
from trinity import write_pattern

PRICES = {"call_price": 0.001, "cost_price": 0.0}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Of two families, where agreement tells who is right."""
    data = write_pattern(tmp_path_factory.mktemp("trials"), {"train": 120}, subjects=SUBJECTS[:2])
    matrix = build_matrix(read_recorded(data))
    hidden = encode_questions(Subjects(), matrix.questions, cache=None, progress=lambda units: None)
    report = Quiet()
    made = Trials(matrix, hidden, **PRICES, seed=0, report=report)
    assert report.stages == [("judge candidates", report.advanced)]
    return made


@pytest.fixture(scope="module")
def judged(trials: Trials) -> list[Judged]:
    return sorted(map(trials.judge, CANDIDATES), key=lambda row: -row.gain)


def make_judged(
    *,
    seen: float = 0.0,
    unseen: float | None = 0.0,
    calls: tuple[float, float | None] = (1.0, 1.0),
    candidate: Candidate = CANDIDATES[-1],
) -> Judged:
    """Gains in standard errors."""
    return Judged(
        candidate=candidate,
        seen=seen / 100,
        seen_error=0.01,
        unseen=None if unseen is None else unseen / 50,
        unseen_error=None if unseen is None else 0.02,
        seen_accuracy_gain=0.0,
        unseen_accuracy_gain=None if unseen is None else 0.0,
        seen_calls=calls[0],
        unseen_calls=calls[1],
    )


def test_candidates_have_names_of_their_own() -> None:
    """Rows of metrics and cards name a candidate; no two share a name."""
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)


@pytest.mark.parametrize("calls", [(2.5, 3.5), (3.5, 2.5), (3.5, None)])
def test_known_and_unknown_families_are_held_to_the_limit(calls: tuple[float, float | None]) -> None:
    """What counts is whichever takes more calls; with one family there are no unknown ones."""
    assert make_judged(calls=calls).calls == 3.5


@pytest.mark.parametrize(
    ("seen", "unseen", "is_sure"),
    [(2.4, 9.0, False), (2.6, 0.6, True), (2.6, 0.4, False), (9.0, -0.1, False), (2.6, None, True), (2.4, None, False)],
)
def test_a_gain_is_believed_beyond_its_noise(seen: float, unseen: float | None, *, is_sure: bool) -> None:
    """Two and a half standard errors on known families, where there are many questions; half of one on unknown ones."""
    assert make_judged(seen=seen, unseen=unseen).is_sure is is_sure


@pytest.mark.parametrize(("unseen", "is_sure"), [(0.0, True), (-0.4, True), (-0.6, False)])
def test_one_call_must_lose_nothing_on_unknown_families(unseen: float, *, is_sure: bool) -> None:
    """It asks the best single worker where it recognises nothing, and can gain nothing there."""
    once = next(c for c in CANDIDATES if c.rules.max_calls == 1 and c != SINGLE)
    assert make_judged(seen=9.0, unseen=unseen, candidate=once).is_sure is is_sure
    assert not make_judged(seen=2.4, unseen=unseen, candidate=once).is_sure
    assert not make_judged(candidate=SINGLE).is_sure


def test_starts_are_judged_by_what_they_play(trials: Trials) -> None:
    """Judging from traces gives each start the reward and the calls of its runs, played one after the other."""
    for candidate in CANDIDATES[::37]:
        net = []
        for i, (fold, result) in enumerate(zip(trials.folds, trials.results(candidate), strict=True)):
            evidence = trials.fitted[i, candidate.question_map.name].evidence
            played = play(trials.world(i, candidate.question_map), evidence, candidate.start.to_head(), candidate.rules)
            assert (result.calls == played.calls).all(), candidate.name
            assert result.accuracy == pytest.approx(played.score - fold.base), candidate.name
            net.append(played.score - 0.001 * (played.calls - 1) - fold.base)
        row = trials.judge(candidate)
        seen = [part for part, fold in zip(net, trials.folds, strict=True) if fold.scheme == "seen"]
        assert row.seen == pytest.approx(np.concatenate(seen).mean())
        assert row.unseen is not None


def test_the_mean_of_the_best_starts_is_chosen(trials: Trials, judged: list[Judged]) -> None:
    """Of the seventy best, those that read as most of them do, in the mean of their numbers."""
    best = [row for row in judged if row.is_sure and row.calls <= 3.1 and row.candidate.rules.max_calls > 1]
    single = next(row for row in judged if row.candidate == SINGLE)
    by_reading = defaultdict(list)
    for row in best:
        by_reading[row.candidate.question_map].append(row)
    first, second, *_ = sorted(by_reading.values(), key=len, reverse=True)
    told = [*first[:20], *second[:25], *first[20:65], single]  # of the first 70: 45 and 25
    chosen, of = choose_start(trials, told, limit=3.1)
    alike = [row.candidate for row in first[:45]]
    assert of == len(alike) == 45
    assert chosen == trials.judge(Candidate.mean(alike))
    start = chosen.candidate.start
    assert start.threshold == pytest.approx(np.mean([c.start.threshold for c in alike]), abs=1e-3)
    assert start.per_asked == pytest.approx(np.mean([c.start.per_asked for c in alike]), abs=1e-3)
    assert chosen.candidate.rules.max_calls == round(np.mean([c.rules.max_calls for c in alike]))
    assert chosen.candidate.question_map == alike[0].question_map


def test_the_mean_keeps_to_the_limit(trials: Trials, judged: list[Judged]) -> None:
    """Where it takes more calls than those it is the mean of, its threshold is lowered until it does not; where it
    then gains nothing, the best of them is used.
    """
    reading = judged[0].candidate.question_map
    alike = [row for row in judged if row.candidate.question_map == reading and row.candidate.rules.max_calls > 1]
    told = [replace(row, seen=1.0, unseen=1.0, seen_calls=1.0, unseen_calls=1.0) for row in alike]
    told.append(next(row for row in judged if row.candidate == SINGLE))
    mean = trials.judge(Candidate.mean([row.candidate for row in told[:70]]))
    assert mean.calls > 2.5
    chosen, of = choose_start(trials, told, limit=2.45)
    assert of == 70
    start = chosen.candidate.start
    assert replace(start, threshold=0) == replace(mean.candidate.start, threshold=0)
    assert start.threshold < mean.candidate.start.threshold - 0.05
    assert 2.3 < chosen.calls <= 2.45
    once = choose_start(trials, told, limit=1.0)[0]
    assert once.calls == 1
    assert once.gain > 0
    unread = [replace(told[0], candidate=row.candidate) for row in judged if row.candidate.name.startswith("unread, ")]
    assert choose_start(trials, [*unread, told[-1]], limit=1.0) == (unread[0], 1)


def test_without_a_call_to_spare_one_is_made(trials: Trials, judged: list[Judged]) -> None:
    """At a limit of one call there is nobody to vote."""
    assert choose_start(trials, judged, limit=1.0)[0].candidate.rules.max_calls == 1


def test_nothing_is_chosen_that_is_doubted(trials: Trials, judged: list[Judged]) -> None:
    """Where no start gains beyond doubt, the best single worker is asked, once."""
    doubted = [row for row in judged if not row.is_sure]
    chosen, of = choose_start(trials, doubted, limit=3.1)
    assert (chosen.candidate, of, chosen.gain, chosen.calls) == (SINGLE, 1, 0.0, 1.0)


def test_a_start_of_one_call_stands_for_itself(trials: Trials, judged: list[Judged]) -> None:
    """One that gains more by one call than the mean of those with more is chosen as it is; else the mean is."""
    mean, _ = choose_start(trials, judged, limit=3.1)
    (once,) = (row for row in judged if row.candidate.name == "landmarks256@1 ridge 0.001, one call")
    others = [row for row in judged if row != once]
    for by, expected in ((0.01, once.candidate), (-0.01, mean.candidate)):
        gain = mean.gain + by
        sure = replace(once, seen=gain, unseen=gain, seen_error=1e-6, unseen_error=1e-6)
        assert choose_start(trials, [sure, *others], limit=3.1)[0].candidate == expected
