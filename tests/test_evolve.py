"""The paper's training: its numbers, that it learns, that it goes on bit for bit, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outcomes import Quiet, Subjects, forget, read_rows, write_recorded, write_world
from torafugu.cluster.fleet import Fleet, Host, in_process
from torafugu.config import read_table, read_toml
from torafugu.envs.recorded import recorded_tasks
from torafugu.episode import run_episode
from torafugu.errors import ConfigError, ModelError
from torafugu.grade.recorded import RecordedGrader
from torafugu.local.open import EncoderConfig, open_encoder
from torafugu.local.svf import SvfLayout, SvfMatrix, count_parameters, hash_offsets
from torafugu.orchestrate import Encoding
from torafugu.orchestrate.transcript import TranscriptConfig, TranscriptCoordinator, TranscriptHead
from torafugu.pool.recorded import RecordedSet, create_recorded_pool, read_recorded
from torafugu.train.candidate import Job, Player, Tally
from torafugu.train.evolve import (
    EvolveConfig,
    RandomSearch,
    TrainedTranscript,
    shape_reward,
    train_paper,
)
from torafugu.types import Message

CONFIGS = files("torafugu.train") / "configs"
OPPOSITE = {"north": {"rivers": 1.0, "chess": 0.0}, "south": {"rivers": 0.0, "chess": 1.0}}
LAYOUT = SvfLayout((SvfMatrix(name="one", rows=4, columns=3), SvfMatrix(name="two", rows=2, columns=2)))
ONE_CALL = TranscriptConfig(state="parts", state_norm=30.0, max_turns=1, roles=("worker",))
SHORT = EvolveConfig(
    iterations=3, repeats=6, popsize=6, svf=False, test_interval=2, tests=12, encoder=EncoderConfig(kind="minilm")
)


class Topics(Subjects):
    """An encoder of the subject that a text names, with singular values that turn the state a little."""

    def __init__(self, offsets: NDArray[np.floating] | None = None) -> None:
        super().__init__(noise=0.3)
        self.layout = LAYOUT
        self._offsets = np.zeros(LAYOUT.size) if offsets is None else offsets
        self.name = f"topics/{hash_offsets(LAYOUT, self._offsets)}"

    def with_offsets(self, offsets: NDArray[np.floating]) -> Topics:
        return Topics(offsets)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        states = super().encode_texts(texts)
        states[:, : LAYOUT.size] *= 1 + self._offsets
        return (states / np.linalg.norm(states, axis=1, keepdims=True)).astype(np.float32)

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        return Encoding(hidden=self.encode_texts([messages[-1].text])[0], tokens_read=1, tokens_total=1)


class Interrupted(BaseException):
    pass


class Ending(Quiet):
    """A reporter that ends the program after so many generations, checkpoint included."""

    def __init__(self, generations: int) -> None:
        super().__init__()
        self._left = generations

    def advance(self, units: int) -> None:
        if self.stages[-1][0] == "evolve" and units:
            self._left -= units
            if self._left < 0:
                raise Interrupted


def make_world(folder: Path, **fields: Any) -> RecordedSet:
    splits = {"train": 30, "validation": 20, "test": 0}
    return read_recorded(write_world(folder / "data", OPPOSITE, subjects=("rivers", "chess"), splits=splits, **fields))


def train(recorded: RecordedSet, out: Path, config: EvolveConfig, **fields: Any) -> TrainedTranscript:
    fields = {"report": Quiet(), "make_encoder": Topics} | fields
    return train_paper(recorded, out=out, config=config, cache=None, **fields)


def tally(scores: Sequence[float], workers: Sequence[int], **fields: Any) -> Tally:
    base = {"roles": (sum(workers), 0, 0), "calls": sum(workers), "cost": None, "excluded": 0}
    return Tally(scores=tuple(scores), workers=tuple(workers), **(base | fields))


def content(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for times and commands."""
    card = json.loads((folder / "card.json").read_text())
    del card["training"]["seconds"]
    return {
        "weights": (folder / "head.safetensors").read_bytes(),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "card": json.dumps(card).encode(),
    }


def test_the_turn_term_is_the_authors() -> None:
    """16 episodes of 3 turns cost 0.235 at weight 0.1, for the turns of all count; by the episode they cost 0.01."""
    config = EvolveConfig(diversity_bonus=0.0)
    sixteen = tally([1.0] * 16, [48, 0])
    assert shape_reward(sixteen, config) == pytest.approx(1 - 0.235)
    assert shape_reward(sixteen, replace(config, turns_per_episode=True)) == pytest.approx(1 - (2 / 5) / 4 * 0.1)
    assert shape_reward(tally([0.5], [1, 0]), config) == 0.5


def test_diversity_is_entropy_in_nats() -> None:
    """Seven workers called alike add 0.15 ln 7 = 0.292; one worker alone adds nothing."""
    config = EvolveConfig(turn_bonus=0.0)
    assert shape_reward(tally([0.0] * 7, [1] * 7), config) == pytest.approx(0.15 * math.log(7))
    assert shape_reward(tally([0.0] * 7, [1] * 7), config) == pytest.approx(0.292, abs=5e-4)
    assert shape_reward(tally([0.5] * 7, [7, 0, 0]), config) == 0.5


def test_episodes_that_failed_are_left_out_and_all_failed_is_minus_one() -> None:
    """The mean is that of the scored episodes; of none it is -1, whatever the bonuses."""
    config = EvolveConfig(turn_bonus=0.0, diversity_bonus=0.0)
    assert shape_reward(tally([1.0, 0.0], [2, 2], excluded=2), config) == 0.5
    assert shape_reward(tally([], [3, 3], excluded=4), EvolveConfig()) == -1


def test_calls_and_costs_have_a_price() -> None:
    """call_price is per call of an episode; cost_bonus is per episode as dear as the dearest worker's mean call."""
    config = EvolveConfig(turn_bonus=0.0, diversity_bonus=0.0, call_price=0.01, cost_bonus=0.1)
    played = tally([1.0, 1.0], [4, 0], cost=0.006)
    assert shape_reward(played, config, 0.002) == pytest.approx(1 - 0.01 * 2 - 0.1 * 1.5)
    with pytest.raises(ConfigError, match="no known cost"):
        shape_reward(replace(played, cost=None), config, 0.002)


def test_population_sizes_are_the_papers() -> None:
    """32, 33, 34 candidates for 10240, 13312, 19456 numbers by the paper's rule, one less by the usual one."""
    sizes = (10_240, 13_312, 19_456)
    assert [EvolveConfig().count_candidates(size) for size in sizes] == [32, 33, 34]
    floor = EvolveConfig(popsize_rule="floor")
    assert [floor.count_candidates(size) for size in sizes] == [31, 32, 33]
    assert EvolveConfig(popsize=7).count_candidates(10_240) == 7
    random = EvolveConfig(optimiser="random-search")
    assert (random.count_candidates(10_240), random.episodes) == (16, 32)  # as many episodes as 32 of 16
    gradient = EvolveConfig(optimiser="reinforce", svf=False)
    assert (gradient.count_candidates(10_240), gradient.episodes) == (32, 16)


@pytest.mark.parametrize("name", ["trinity-paper", "trinity-paper-minilm"])
def test_the_configs_that_ship_are_the_papers(name: str) -> None:
    """Both configs load, and ask for the budget and the shaping of the authors' log."""
    path = Path(str(CONFIGS / f"{name}.toml"))
    config = read_table(EvolveConfig, read_toml(path), where=path.name)
    assert (config.iterations, config.repeats, config.sigma0, config.popsize) == (60, 16, 0.03, None)
    assert (config.diversity_bonus, config.turn_bonus, config.cost_bonus) == (0.15, 0.1, 0.0)
    assert (config.test_interval, config.tests, config.policy.max_turns) == (5, 300, 5)
    assert (config.svf, config.common_questions, config.turns_per_episode) == (True, False, False)
    assert config.policy.dead_ends == ("ends" if name == "trinity-paper" else "masked")


@pytest.mark.parametrize("optimiser", ["sepcma", "random-search", "reinforce"])
def test_opposite_workers_are_told_apart(optimiser: str, tmp_path: Path) -> None:
    """Where the subject says who knows, training goes from half right to nearly all, past the best worker."""
    config = replace(SHORT, iterations=10, repeats=16, popsize=None, tests=20, policy=ONE_CALL, turn_bonus=0.0)
    config = replace(config, optimiser=optimiser, diversity_bonus=0.0, learning_rate=0.01)
    trained = train(make_world(tmp_path), tmp_path / "out", config)
    assert trained.best_single_score == 0.5
    assert trained.validation_score > 0.9
    means = [row["reward/mean"] for row in read_rows(tmp_path / "out" / "metrics.jsonl") if row["stage"] == "evolution"]
    if optimiser != "random-search":  # random search does not learn: it remembers
        assert means[-1] > means[0] + 0.2


@pytest.mark.parametrize("optimiser", ["sepcma", "random-search", "reinforce"])
def test_going_on_is_bit_for_bit(optimiser: str, tmp_path: Path) -> None:
    """Six generations in one go, and three, a sudden end and three more, leave the same files."""
    recorded = make_world(tmp_path)
    config = replace(SHORT, iterations=6, svf=optimiser != "reinforce", optimiser=optimiser)
    train(recorded, tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(recorded, tmp_path / "halves", config, report=Ending(2))
    with (tmp_path / "halves" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "evolution", "generation": 4, "of": "a generation that was not finished"}\n')
    assert not (tmp_path / "halves" / "card.json").exists()
    report = Quiet()
    train(recorded, tmp_path / "halves", config, report=report)
    assert "going on after generation 3" in report.lines
    assert content(tmp_path / "halves") == content(tmp_path / "whole")
    assert report.advanced == 6


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """A folder that holds a run of other settings is not gone on from; more iterations are the one thing to add."""
    recorded = make_world(tmp_path)
    train(recorded, tmp_path / "out", SHORT)
    with pytest.raises(ConfigError, match="sigma0"):
        train(recorded, tmp_path / "out", replace(SHORT, sigma0=0.5))
    train(recorded, tmp_path / "out", replace(SHORT, iterations=4))
    rows = read_rows(tmp_path / "out" / "metrics.jsonl")
    assert [row["generation"] for row in rows if row["stage"] == "evolution"] == [1, 2, 3, 4]


@pytest.mark.parametrize("optimiser", ["sepcma", "reinforce"])
def test_a_fleet_of_two_trains_what_one_trains(optimiser: str, tmp_path: Path) -> None:
    """With two members, each with an encoder of its own, weights, metrics and card are the same."""
    recorded = make_world(tmp_path)

    def make_two(make_worker: Callable[[], Callable[[Job], Tally]]) -> Fleet[Job, Tally]:
        host: Host[Job, Tally] = in_process(make_worker)._host
        return Fleet(host, 2)

    config = replace(SHORT, optimiser=optimiser, svf=optimiser != "reinforce")
    train(recorded, tmp_path / "one", config)
    train(recorded, tmp_path / "two", config, make_fleet=make_two)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("svf", [True, False])
def test_the_vector_is_offsets_then_head(svf: bool, tmp_path: Path) -> None:
    """With SVF there are as many offsets as singular values; the head is (workers + 3) x dim; the artefact has both."""
    train(make_world(tmp_path), tmp_path / "out", replace(SHORT, svf=svf))
    head = TranscriptHead.load(tmp_path / "out")
    offsets = 0 if head.offsets is None else len(head.offsets)
    assert offsets == (5 if svf else 0)
    assert len(head.vector) == Subjects.dim * (2 + 3)
    if svf:
        assert offsets + len(head.vector) == count_parameters(LAYOUT, dim=Subjects.dim, workers=2)
        assert head.card.rules["svf"] == [["one", 4, 3], ["two", 2, 2]]
        assert np.any(head.offsets)
    assert head.card.training["parameters"] == {"svf": offsets, "head": len(head.vector)}


@pytest.mark.parametrize("svf", [True, False])
def test_what_is_served_scores_what_was_validated(svf: bool, tmp_path: Path) -> None:
    """The artefact, loaded and run through the loop on the validation questions, has the score on its card."""
    recorded = make_world(tmp_path)
    trained = train(recorded, tmp_path / "out", replace(SHORT, svf=svf, tests=300))
    policy = TranscriptCoordinator(TranscriptHead.load(tmp_path / "out"), Topics(), recorded.models)
    pool, grader = create_recorded_pool(recorded), RecordedGrader(recorded)

    async def score() -> float:
        tasks = recorded_tasks(recorded, "validation")
        return float(np.mean([(await run_episode(task, policy, pool, grader)).score for task in tasks]))

    assert asyncio.run(score()) == trained.validation_score == policy.head.card.metrics["validation_score"]


def make_player(recorded: RecordedSet, out: Path) -> Player:
    """The member that a run's fleet made."""
    made: list[Player] = []

    def spy(make_worker: Callable[[], Any]) -> Fleet[Job, Tally]:
        def make() -> Any:
            made.append(make_worker())
            return made[-1]

        return in_process(make)

    train(recorded, out, SHORT, make_fleet=spy)
    return made[0]


def test_a_workers_fault_is_excluded_and_counted(tmp_path: Path) -> None:
    """A turn that falls to a worker whose answer is missing makes its episode unscored, not wrong."""
    recorded = make_world(tmp_path)
    of_south = {key: rows for key, rows in recorded.samples.items() if key[1] == "south"}
    setup = make_player(recorded, tmp_path / "out").setup
    player = Player(replace(setup, recorded=replace(recorded, samples=of_south)))
    vector = np.zeros(Subjects.dim * 5, np.float32)
    played = player(Job(vector=vector, questions=np.arange(30), seed=(1,)))
    assert 0 < played.excluded < 30
    assert len(played.scores) == 30 - played.excluded
    assert set(played.scores) == {0.0, 1.0}


def test_members_and_jobs_cross_processes(tmp_path: Path) -> None:
    """A member that is made from a pickle plays a pickled job as the one here does."""
    player = make_player(make_world(tmp_path), tmp_path / "out")
    vector = np.random.default_rng(0).standard_normal(Subjects.dim * 5).astype(np.float32)
    job = Job(vector=vector, questions=np.arange(10), seed=(3,))
    there: Player = pickle.loads(pickle.dumps(partial(Player, player.setup)))()
    played = pickle.loads(pickle.dumps(there(pickle.loads(pickle.dumps(job)))))
    assert played == player(job)
    assert played.turns > 10


def test_questions_are_own_or_common(tmp_path: Path) -> None:
    """Each candidate of a generation plays questions of its own, or all play the same ones with the same draws."""
    recorded = make_world(tmp_path)
    jobs: list[Job] = []

    def spy(make_worker: Callable[[], Callable[[Job], Tally]]) -> Fleet[Job, Tally]:
        def make() -> Callable[[Job], Tally]:
            play = make_worker()

            def keep(job: Job) -> Tally:
                jobs.append(job)
                return play(job)

            return keep

        return in_process(make)

    train(recorded, tmp_path / "own", replace(SHORT, iterations=1), make_fleet=spy)
    own, jobs = [job for job in jobs if job.seed], []
    assert len({tuple(job.questions) for job in own}) == len({job.seed for job in own}) == 6
    train(recorded, tmp_path / "common", replace(SHORT, iterations=1, common_questions=True), make_fleet=spy)
    common, tests = [job for job in jobs if job.seed], [job for job in jobs if not job.seed]
    assert len({tuple(job.questions) for job in common}) == len({job.seed for job in common}) == 1
    assert max(common[0].questions) < 30 <= min(tests[0].questions)


def test_metrics_and_run_are_described(tmp_path: Path) -> None:
    """A row per generation with rewards, sigma, calls, turns, entropies, exclusions; one per validation; run.json."""
    train(make_world(tmp_path), tmp_path / "out", SHORT)
    rows = read_rows(tmp_path / "out" / "metrics.jsonl")
    assert [(row["stage"], row["generation"]) for row in rows] == [
        ("evolution", 1),
        ("evolution", 2),
        ("validation", 2),
        ("evolution", 3),
        ("validation", 3),
    ]
    wanted = {"reward/mean", "reward/max", "reward/std", "sigma", "calls", "turns", "entropy/calls_bits", "excluded"}
    assert wanted | {"entropy/roles_bits"} <= rows[0].keys()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["config"]["policy"]["max_turns"] == 5
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["kind"] == "transcript"
    assert card["baselines"]["best_single"]["worker"] in OPPOSITE


def test_who_answered_nothing_to_learn_from_is_left_out(tmp_path: Path) -> None:
    """Such a worker is neither in the head nor in the pool that episodes are played on."""
    skills, splits = {**OPPOSITE, "stranger": OPPOSITE["north"]}, {"train": 30, "validation": 20, "test": 2}
    data = write_world(tmp_path / "data", skills, subjects=("rivers", "chess"), splits=splits)
    forget(data, "stranger")
    trained = train(read_recorded(data), tmp_path / "out", replace(SHORT, iterations=1))
    assert {worker.id for worker in trained.head.card.workers} == set(OPPOSITE)


def test_random_search_keeps_the_best_of_all() -> None:
    """What it returns is the candidate with the highest reward of all generations, within the cube."""
    search = RandomSearch(4, 0.5, count=3, seed=0)
    first = search.ask()
    search.tell([0.1, 0.9, 0.2])
    assert not np.array_equal(search.ask(), first)
    search.tell([0.3, 0.4, 0.5])
    np.testing.assert_array_equal(search.mean, first[1])
    assert np.abs(first).max() <= 0.5


def test_a_warm_start_is_where_it_begins(tmp_path: Path) -> None:
    """With a tiny step the trained vector is the one that was given; one of another length is refused."""
    recorded = make_world(tmp_path)
    start = np.random.default_rng(0).standard_normal(Subjects.dim * 5).astype(np.float32)
    trained = train(recorded, tmp_path / "out", replace(SHORT, sigma0=1e-9), start=start)
    np.testing.assert_allclose(trained.head.vector, start, atol=1e-6)
    with pytest.raises(ModelError, match="expected"):
        train(recorded, tmp_path / "other", SHORT, start=start[1:])


def test_an_encoder_without_singular_values_cannot_train_them(tmp_path: Path) -> None:
    """svf with an encoder that has nothing to scale is an error that says what to set, before anything is written."""
    with pytest.raises(ConfigError, match="svf = false"):
        train(make_world(tmp_path), tmp_path / "out", replace(SHORT, svf=True), make_encoder=lambda: Subjects())
    assert not (tmp_path / "out").exists()


def test_minilm_is_trained_with_its_singular_values(tmp_path: Path) -> None:
    """The shipped encoder's 2,304 offsets are evolved, from kept prefixes, and served by `with_offsets` alike."""
    recorded = read_recorded(
        write_recorded(
            tmp_path / "data",
            *(read_rows(make_world(tmp_path).path / f"{name}.jsonl")[:8] for name in ("questions", "outcomes")),
        )
    )
    policy = TranscriptConfig(state="parts", max_turns=2)
    config = EvolveConfig(iterations=1, repeats=2, popsize=2, tests=4, policy=policy, test_interval=1)
    encoder = open_encoder(config.encoder)
    trained = train(recorded, tmp_path / "out", config, make_encoder=lambda: encoder)
    assert trained.head.offsets is not None
    assert (len(trained.head.offsets), len(trained.head.vector)) == (2304, 384 * 5)
    TranscriptCoordinator(TranscriptHead.load(tmp_path / "out"), encoder, recorded.models)
    encoder.close()  # type: ignore[attr-defined]
