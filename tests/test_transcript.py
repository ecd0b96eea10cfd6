"""The paper's loop: whom it asks, in which role, what it shows them, when it ends; and that its head is kept whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from runs import make_pool
from torafugu.errors import ConfigError, ModelError, PlanError, WorkerError
from torafugu.orchestrate import Encoding, Run, orchestrate
from torafugu.orchestrate.artefact import Card, WorkerIdentity
from torafugu.orchestrate.head_variants import HEAD_VARIANTS
from torafugu.orchestrate.transcript import TranscriptConfig, TranscriptCoordinator, TranscriptHead, count_head
from torafugu.orchestrate.tri_head import ROLES
from torafugu.pool import Failing, Scripted
from torafugu.types import Message, Request

IDS = ("a", "b")
SIZE = len(IDS) + len(ROLES)
REQUEST = Request(model="m", messages=(Message(role="user", content="How many?"),))
ADVICE = "<suggestion>count twice</suggestion><suggested_role>{role}</suggested_role>"


class Wishes:
    """An encoder that makes an identity head choose these (worker, role), turn by turn; it keeps what it has read."""

    dim = SIZE

    def __init__(self, *wishes: tuple[str, str], name: str = "wishes") -> None:
        self.name = name
        self.read: list[tuple[Message, ...]] = []
        self._wishes = wishes

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        worker, role = self._wishes[min(len(self.read), len(self._wishes) - 1)]
        self.read.append(tuple(messages))
        hidden = np.zeros(SIZE, np.float32)
        hidden[IDS.index(worker)] = hidden[len(IDS) + ROLES.index(role)] = 1
        return Encoding(hidden=hidden, tokens_read=1, tokens_total=1)


class Scaled(Wishes):
    """Its name tells its offsets."""

    def with_offsets(self, offsets: NDArray[np.floating]) -> Scaled:
        return Scaled(*self._wishes, name=f"wishes/{offsets.tolist()}")


def make_head(*, encoder: str = "wishes", offsets: NDArray[np.float32] | None = None, **fields: Any) -> TranscriptHead:
    config = TranscriptConfig(**fields)
    rng = np.random.default_rng(0)
    is_linear = config.head == "linear"
    size = count_head(config, dim=SIZE, workers=len(IDS))
    vector = np.eye(SIZE).ravel() if is_linear else rng.standard_normal(size)
    card = Card(
        encoder=encoder,
        workers=tuple(WorkerIdentity(id, f"{id}-1") for id in IDS),
        training={},
        metrics={},
        baselines={},
    )
    return TranscriptHead.create(vector.astype(np.float32), offsets, config, dim=SIZE, card=card)


def make_policy(encoder: Wishes, *, draw: int | None = None, **fields: Any) -> TranscriptCoordinator:
    rng = None if draw is None else np.random.default_rng(draw)
    return TranscriptCoordinator(make_head(**fields), encoder, {id: f"{id}-1" for id in IDS}, draw=rng)


def play(
    encoder: Wishes, answers: Mapping[str, Sequence[str]], *, request: Request = REQUEST, **fields: Any
) -> tuple[Run, dict[str, Scripted]]:
    """A run, and the workers with what they were asked."""
    backends = {id: Scripted(list(answers.get(id, ()))) for id in IDS}
    return asyncio.run(orchestrate(request, make_policy(encoder, **fields), make_pool(backends))), backends


def turns(run: Run) -> list[tuple[str, str]]:
    return [(step.worker, step.role) for planned in run.plans for step in planned.plan.steps]


def test_a_verifier_before_any_answer_ends_the_run_as_in_the_paper() -> None:
    """With dead_ends "ends", a Verifier that comes first is the policy's fault, before anybody is called."""
    encoder = Wishes(("a", "verifier"))
    with pytest.raises(PlanError, match="before any Worker"):
        play(encoder, {"a": ["5"]}, dead_ends="ends")


def test_dead_ends_are_masked_by_default() -> None:
    """A Verifier cannot be chosen before an answer, nor a Thinker on the last turn without one: there is an answer."""
    run, _ = play(Wishes(("a", "verifier")), {"a": ["5", "REJECT", "REJECT", "REJECT", "ACCEPT"]})
    assert turns(run)[:2] == [("a", "worker"), ("a", "verifier")]
    run, _ = play(Wishes(("b", "thinker")), {"b": ["hm", "hm", "7"]}, max_turns=3)
    assert turns(run) == [("b", "thinker"), ("b", "thinker"), ("b", "worker")]
    assert run.answer is not None
    assert run.answer.text == "7"


def test_thinkers_alone_give_no_answer_in_the_paper() -> None:
    """With dead_ends "ends", turns spent on Thinkers alone end without an answer."""
    with pytest.raises(PlanError, match="no Worker has answered"):
        play(Wishes(("a", "thinker")), {"a": ["hm"] * 5}, dead_ends="ends")


def test_accept_returns_the_last_workers_reply() -> None:
    """A Verifier that accepts ends the run; the answer is the reply of the last Worker, not the Verifier's."""
    wishes = Wishes(("a", "worker"), ("b", "worker"), ("a", "verifier"))
    run, _ = play(wishes, {"a": ["4", "ACCEPT, it is 5"], "b": ["5"]})
    assert run.answer is not None
    assert (run.answer.text, run.answer.worker) == ("5", "b")
    assert turns(run) == [("a", "worker"), ("b", "worker"), ("a", "verifier")]


@pytest.mark.parametrize(
    ("verdict", "ends"), [("I would accept it, no: reject", False), ("", False), ("Accepted.", True)]
)
def test_verdicts(verdict: str, ends: bool) -> None:
    """Mixed and empty verdicts reject, "Accepted." accepts; a rejection goes on, to the turns' end."""
    wishes = Wishes(("a", "worker"), ("b", "verifier"), ("a", "worker"))
    run, _ = play(wishes, {"a": ["4", "5", "5", "6"], "b": [verdict or " "]})
    assert len(turns(run)) == (2 if ends else 5)
    assert run.answer is not None
    assert run.answer.text == ("4" if ends else "6")


def test_no_more_than_five_turns() -> None:
    """The run ends after five calls, with the last Worker's reply, however often it is rejected."""
    wishes = Wishes(("a", "worker"), ("b", "verifier"))
    run, _ = play(wishes, {"a": ["4"], "b": ["REJECT"] * 9})
    assert turns(run) == [("a", "worker")] + [("b", "verifier")] * 4
    assert run.answer is not None
    assert run.answer.text == "4"


def test_a_suggested_role_holds_for_the_next_turn_only() -> None:
    """What a Thinker suggests overrides the role of exactly the next turn; the worker is still the head's choice."""
    wishes = Wishes(("a", "worker"), ("a", "thinker"), ("b", "worker"), ("b", "worker"), ("a", "worker"))
    run, _ = play(wishes, {"a": ["4", ADVICE.format(role="verifier"), "6"], "b": ["REJECT", "5"]})
    assert turns(run) == [("a", "worker"), ("a", "thinker"), ("b", "verifier"), ("b", "worker"), ("a", "worker")]


@pytest.mark.parametrize("advice", ["<suggestion>x</suggestion>", ADVICE.format(role="Worker"), "verifier, please"])
def test_advice_without_both_tags_suggests_nothing(advice: str) -> None:
    """Without both tags and exactly a role in the second, the next role is the head's choice."""
    wishes = Wishes(("a", "worker"), ("a", "thinker"), ("b", "worker"))
    run, _ = play(wishes, {"a": ["4", advice], "b": ["5"]}, max_turns=3)
    assert turns(run)[2] == ("b", "worker")


def test_a_verifier_is_not_suggested_into_a_dead_end() -> None:
    """Where dead ends are masked, a Thinker that asks for a Verifier before any answer is not obeyed."""
    wishes = Wishes(("a", "thinker"), ("b", "worker"))
    run, _ = play(wishes, {"a": [ADVICE.format(role="verifier")], "b": ["5"]}, max_turns=2)
    assert turns(run) == [("a", "thinker"), ("b", "worker")]


def test_the_transcript_holds_the_workers_thoughts_alone() -> None:
    """Each turn the encoder reads the request and every Worker's thought so far, from 0, `<idea>` taken out of it."""
    wishes = Wishes(("a", "worker"), ("b", "thinker"), ("a", "worker"), ("b", "verifier"))
    answers = {"a": ["<idea>four</idea> so 4", "<b>5"], "b": ["my plan", "ACCEPT"]}
    _, backends = play(wishes, answers)
    first, second, third, fourth = wishes.read
    assert [message.role for message in first] == ["system", "user"]
    assert first[1:] == REQUEST.messages
    assert "2 assistants" in first[0].text
    assert second == third  # a Thinker leaves nothing
    assert "<reference_thought_0>four</reference_thought_0>" in third[1].text
    assert "<reference_thought_1><b>5</reference_thought_1>" in fourth[1].text
    assert "plan" not in fourth[1].text
    shown = backends["a"].queries[1].messages[-1].text
    assert "<reference_thought_0>four</reference_thought_0>" in shown


def test_an_independent_worker_sees_no_thoughts() -> None:
    """With transcript "independent" a second Worker is sent the request and a Thinker's advice, nothing else."""
    wishes = Wishes(("a", "worker"), ("b", "thinker"), ("a", "worker"))
    answers = {"a": ["4", "5"], "b": [ADVICE.format(role="worker")]}
    _, backends = play(wishes, answers, transcript="independent", max_turns=3)
    shown = backends["a"].queries[1].messages[-1].text
    assert "reference_thought" not in shown
    assert "count twice" in shown


def test_parts_are_read_one_by_one() -> None:
    """With state "parts", the request and each thought are messages of their own to the encoder."""
    wishes = Wishes(("a", "worker"))
    play(wishes, {"a": ["4", "5"]}, state="parts", max_turns=2)
    thought = (Message(role="user", content="4"),)
    assert wishes.read == [REQUEST.messages, REQUEST.messages, thought]


def test_a_clients_system_prompt_joins_the_dispatchers() -> None:
    """There is one system message, for templates that take no second one."""
    wishes = Wishes(("a", "worker"))
    request = msgspec.structs.replace(
        REQUEST, messages=(Message(role="system", content="Be brief."), *REQUEST.messages)
    )
    play(wishes, {"a": ["4"]}, request=request, max_turns=1)
    assert [message.role for message in wishes.read[0]] == ["system", "user"]
    assert wishes.read[0][0].text.endswith("Be brief.")


def test_serving_is_deterministic_and_draws_differ() -> None:
    """Without a generator the same run is made again and again; with one, by its seed alone."""

    def choose(draw: int | None) -> list[tuple[str, str]]:
        run, _ = play(Wishes(("a", "worker")), dict.fromkeys(IDS, ["4"] * 5), draw=draw, state_norm=0.1)
        return turns(run)

    assert choose(None) == choose(None) == [("a", "worker")] * 5
    assert choose(3) == choose(3)
    assert len({tuple(choose(seed)) for seed in range(8)}) > 4


def test_draws_follow_the_softmax() -> None:
    """Of the first turns, workers are drawn as often as their softmax says, within four standard errors."""
    policy = make_policy(Wishes(("a", "worker")), draw=0, state_norm=1.0, roles=("worker",))

    async def first() -> str:
        plan = await policy.decide(Run(REQUEST, run_id="run_0"))
        return plan.steps[0].worker  # type: ignore[union-attr]

    async def many() -> list[str]:
        return [await first() for _ in range(400)]

    share = np.mean([worker == "a" for worker in asyncio.run(many())])
    expected = np.e / (1 + np.e)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)


def test_a_worker_that_fails_is_replaced_when_served() -> None:
    """A failed call falls to the next worker by logit; once drawn, in training, it is the run's end instead."""
    backends = {"a": Failing("auth"), "b": Scripted(["5"])}
    wishes = Wishes(("a", "worker"))
    run = asyncio.run(orchestrate(REQUEST, make_policy(wishes, max_turns=1), make_pool(backends)))
    assert run.answer is not None
    assert run.answer.worker == "b"
    drawing = make_policy(Wishes(("a", "worker")), draw=0, max_turns=1)
    with pytest.raises(WorkerError):
        asyncio.run(orchestrate(REQUEST, drawing, make_pool({"a": Failing("auth"), "b": Scripted(["5"])})))


def test_when_nobody_replies_the_answer_so_far_stands() -> None:
    """Workers that do not reply are not asked again, and the run ends with what there is."""
    wishes = Wishes(("a", "worker"))
    run, _ = play(wishes, {"a": ["4"]})
    assert run.answer is not None
    assert run.answer.text == "4"
    assert len(turns(run)) == 2


def test_only_allowed_workers_are_chosen() -> None:
    """A request that allows one worker gets that one, whatever the head says; one that allows none is refused."""
    request = msgspec.structs.replace(REQUEST, allowed=frozenset({"b"}))
    run, _ = play(Wishes(("a", "worker")), {"b": ["5"] * 5}, request=request)
    assert {worker for worker, _ in turns(run)} == {"b"}
    with pytest.raises(PlanError, match="no worker"):
        play(Wishes(("a", "worker")), {}, request=msgspec.structs.replace(REQUEST, allowed=frozenset()))


@pytest.mark.parametrize("name", HEAD_VARIANTS)
def test_a_head_is_saved_and_loaded_as_it_is(name: str, tmp_path: Path) -> None:
    """Every form of head loads by itself, with the config it was trained with, and gives the same logits."""
    head = make_head(head=name, state="parts", roles=("worker", "verifier"), max_turns=3, state_norm=7.0)
    head.save(tmp_path / "head")
    loaded = TranscriptHead.load(tmp_path / "head")
    hidden = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    assert loaded.config == head.config
    assert loaded.card == head.card
    assert loaded.card.kind == "transcript"
    for one, other in zip(head.logits(hidden), loaded.logits(hidden), strict=True):
        np.testing.assert_array_equal(one, other)


def test_offsets_scale_the_encoder_that_is_given() -> None:
    """A head with offsets applies them to its encoder, and refuses one that cannot be scaled, or scales to another."""
    offsets = np.array([0.5, -0.25], np.float32)
    models = {id: f"{id}-1" for id in IDS}
    head = make_head(encoder="wishes/[0.5, -0.25]", offsets=offsets)
    assert TranscriptCoordinator(head, Scaled(("a", "worker")), models).id.startswith("fugu-trinity@")
    with pytest.raises(ModelError, match="none to scale"):
        TranscriptCoordinator(head, Wishes(("a", "worker")), models)
    with pytest.raises(ModelError, match=r"this is .wishes/\[0.5, -?0.0\]'"):
        TranscriptCoordinator(
            make_head(encoder="wishes/[0.5, -0.25]", offsets=offsets * np.array([1, 0], np.float32)),
            Scaled(("a", "worker")),
            models,
        )


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Another encoder, another worker, another length of vector and another kind of artefact are named."""
    with pytest.raises(ModelError, match="'other'"):
        TranscriptCoordinator(make_head(), Wishes(("a", "worker"), name="other"), {"a": "a-1"})
    with pytest.raises(ModelError, match="also has c"):
        TranscriptCoordinator(make_head(), Wishes(("a", "worker")), {"c": "c-1"})
    with pytest.raises(ModelError, match="shape"):
        TranscriptHead.create(np.zeros(7, np.float32), None, TranscriptConfig(), dim=SIZE, card=make_head().card)
    head = make_head()
    head.save(tmp_path)
    text = (tmp_path / "card.json").read_text().replace('"transcript"', '"selector"', 1)
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ModelError, match="'selector'"):
        TranscriptHead.load(tmp_path)


@pytest.mark.parametrize(
    "fields", [{"head": "wide"}, {"roles": ("solver",)}, {"max_turns": 0}, {"state_norm": float("nan")}]
)
def test_a_config_that_means_nothing_is_refused(fields: dict[str, Any]) -> None:
    """Unknown heads and roles, no turns and a length that is no length are errors, with what was expected."""
    with pytest.raises(ConfigError, match="expected"):
        TranscriptConfig(**fields)
