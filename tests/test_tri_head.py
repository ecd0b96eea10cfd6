"""The tri-role head: what is possible, what is free, and logits that are the same for one run as for many."""

from __future__ import annotations

import numpy as np
import pytest

from coordinators import make_evidence, make_tri_head
from test_situation import draw_situations, make_situation
from torafugu.orchestrate.situation import RUN_FEATURES, WORKER_FEATURES, Prospect, Situation, look
from torafugu.orchestrate.tri_head import (
    ROLES,
    THINKER,
    VERIFIER,
    WORKER,
    Rules,
    TriHead,
    callable_workers,
    choices,
    has_calls_left,
    is_free,
)

A, B, C, D = range(4)
PAPER = Rules(recall=False)


def possible(situation: Situation, rules: Rules, *, allowed: str = "abcd", calls: int = 1) -> dict[str, str]:
    """Role -> workers, of one run."""
    view = look(situation, Prospect(deviation=np.zeros((1, 4)), familiarity=np.zeros(1)), make_evidence(4))
    mask = np.array([[worker in allowed for worker in "abcd"]])
    found = choices(situation, view, rules, allowed=mask, calls=np.array([calls]))[0]
    return {
        role: "".join(w for w, may in zip("abcd", row, strict=True) if may)
        for role, row in zip(ROLES, found, strict=True)
    }


def test_before_an_answer() -> None:
    """At first anyone allowed may work or think, and nobody may verify."""
    for rules in (Rules(), PAPER):
        assert possible(make_situation(""), rules, calls=0) == {"worker": "abcd", "thinker": "abcd", "verifier": ""}
        assert possible(make_situation(""), rules, allowed="bd", calls=0)["worker"] == "bd"


def test_verifier_answers_before_any_worker() -> None:
    """Even when answers are known there is nothing to verify, or to recall, before a Worker has replied."""
    known = make_situation("xx..", worked="", current=None)
    assert possible(known, Rules()) == {"worker": "abcd", "thinker": "abcd", "verifier": ""}
    assert possible(known, PAPER)["verifier"] == ""


def test_what_may_be_recalled() -> None:
    """Who has worked and differs may be made current; who agrees may accept; who is known to differ is not asked."""
    rows = {
        # answers of a..d ("." unknown, "-" empty), who worked, current -> as Worker, as Verifier
        ("x...", "a", "a"): ("bcd", "abcd"),
        ("xy..", "ab", "b"): ("acd", "bcd"),
        ("xx..", "ab", "b"): ("cd", "abcd"),
        ("xy..", "a", "a"): ("bcd", "acd"),  # b has verified and differs: it may still work, by a call
        ("xx..", "a", "a"): ("cdb", "abcd"),
        ("-...", "a", "a"): ("bcd", "abcd"),  # an empty answer agrees with itself alone
        ("--..", "ab", "a"): ("bcd", "acd"),
    }
    for (answers, worked, current), (as_worker, as_verifier) in rows.items():
        found = possible(make_situation(answers, worked=worked, current=current), Rules(), calls=2)
        assert set(found["worker"]) == set(as_worker), (answers, worked, current)
        assert set(found["verifier"]) == set(as_verifier), (answers, worked, current)


def test_unreadable_answers_are_verified_by_calls() -> None:
    """Where answers cannot be compared, whoever has worked may be asked for a verdict all the same."""
    situation = make_situation("xyz.", worked="abc", current="a", unreadable=True)
    assert possible(situation, Rules()) == {"worker": "bcd", "thinker": "abcd", "verifier": "abcd"}


def test_calls_run_out() -> None:
    """When no calls are left, what needs none may still be done, and only that."""
    situation = make_situation("xyx.", worked="ab", current="a")
    assert possible(situation, Rules(max_calls=3), calls=3) == {"worker": "b", "thinker": "", "verifier": "ac"}
    assert possible(situation, Rules(recall=False, max_calls=3), calls=3) == dict.fromkeys(ROLES, "")


def test_workers_that_may_not_be_called() -> None:
    """Nobody is called who is not allowed; a reply that is here may be recalled all the same."""
    situation = make_situation("xy..", worked="ab", current="b")
    assert possible(situation, Rules(), allowed="c") == {"worker": "ac", "thinker": "c", "verifier": "bc"}


@pytest.mark.parametrize("roles", [("worker",), ("worker", "thinker"), ("worker", "verifier")])
def test_roles_that_do_not_exist(roles: tuple[str, ...]) -> None:
    """A role that the rules leave out is never possible; working always is."""
    for recall in (True, False):
        found = possible(make_situation("x...", worked="a", current="a"), Rules(roles=roles, recall=recall))
        assert {role for role, workers in found.items() if workers} == {"worker", *roles}


def test_the_papers_loop_allows_every_call() -> None:
    """Without recall whoever is allowed may do anything, as often as there are calls, once there is an answer."""
    situation = make_situation("xyx.", worked="abc", current="a")
    assert possible(situation, PAPER) == dict.fromkeys(ROLES, "abcd")


def test_what_is_free() -> None:
    """A turn is free when its worker has worked, or agrees; thinking never is, and nothing is without recall."""
    situation = make_situation("xxy.", worked="ac", current="a")
    view = look(situation, Prospect(deviation=np.zeros((1, 4)), familiarity=np.zeros(1)), make_evidence(4))
    free = {
        (role, worker)
        for role in range(3)
        for worker in range(4)
        if is_free(situation, view, Rules(), np.array([role]), np.array([worker]))[0]
    }
    assert free == {(WORKER, A), (WORKER, C), (VERIFIER, A), (VERIFIER, B)}
    for role in range(3):
        assert not is_free(situation, view, PAPER, np.array([role]), np.array([A]))[0]


def test_whom_one_could_still_call() -> None:
    """New workers are those allowed whose answer is not known, while calls are left."""
    known, allowed = np.array([[True, False, False]]), np.array([[True, True, False]])
    rules = Rules(max_calls=2)
    assert callable_workers(known, allowed, np.array([1]), rules).tolist() == [[False, True, False]]
    assert not callable_workers(known, allowed, np.array([2]), rules).any()
    assert has_calls_left(np.array([0, 1, 2, 3]), rules).tolist() == [True, True, False, False]


def test_vector_and_head() -> None:
    """A head is its vector, role rows first, and the vector is the head."""
    vector = np.arange(TriHead.size(), dtype=float)
    head = TriHead.from_vector(vector)
    assert head.role.shape == (3, len(RUN_FEATURES))
    assert head.worker.shape == (3, len(WORKER_FEATURES))
    assert (head.role.ravel() == vector[: head.role.size]).all()
    assert (head.to_vector() == vector).all()


def test_logits_by_hand() -> None:
    """A role's logit is its row times the features of the run; a worker's, the chosen role's row times the worker's."""
    head = make_tri_head(
        {"worker": {"constant": 2}, "verifier": {"has_answer": 3, "asked": 4}},
        {"worker": {"known": 1}, "verifier": {"ability": 2}},
    )
    situation = make_situation("x...", worked="a", current="a")
    view = look(situation, Prospect(deviation=np.zeros((1, 4)), familiarity=np.zeros(1)), make_evidence(4))
    assert head.role_logits(view).tolist() == [[2.0, 0.0, 4.0]]
    assert head.worker_logits(view, np.array([WORKER])).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert head.worker_logits(view, np.array([THINKER])).tolist() == [[0.0] * 4]
    ability = make_evidence(4).ability
    assert head.worker_logits(view, np.array([VERIFIER])).tolist() == [[0.0, *(2 * ability[1:])]]


@pytest.mark.parametrize("size", [1, 3, 9, 20])
def test_one_run_or_many(size: int) -> None:
    """Logits have the same bits for one run as for the same run among many."""
    situations, prospect, evidence = draw_situations(40, size, seed=size)
    head = TriHead.from_vector(np.random.default_rng(0).standard_normal(TriHead.size()))
    view = look(situations, prospect, evidence)
    role = np.arange(40) % 3
    roles, workers = head.role_logits(view), head.worker_logits(view, role)
    for i in range(40):
        one = look(
            draw_situations(40, size, seed=size, rows=slice(i, i + 1))[0], prospect.rows(np.array([i])), evidence
        )
        assert (head.role_logits(one) == roles[i : i + 1]).all()
        assert (head.worker_logits(one, role[i : i + 1]) == workers[i : i + 1]).all()
