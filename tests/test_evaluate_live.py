"""`fugu eval --tasks`, as a person or a script meets it: what is run, printed, written, kept, asked and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import Fugu
from torafugu.envs.composed import composed_tasks
from torafugu.local import MiniLM
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.pool.home import home_pool_path

PLAN = """subtasks: ["Solve the task.", "Check the result of step 0 and answer the task."]
model_id: [3, 4]
access_list: [[], [0]]"""
CONDUCTORS = f"""
[[worker]]
id = "planner"
dialect = "scripted"
model = "planner"
prices = {{ input = 0, output = 0 }}
extra_body = {{ text = '''{PLAN}''' }}

[[worker]]
id = "old"
dialect = "scripted"
model = "old"
prices = {{ input = 0, output = 0 }}
extra_body = {{ text = "I do not know." }}
"""
PAID = """
[[worker]]
id = "paid"
dialect = "openai"
model = "dear"
base_url = "http://127.0.0.1:9/v1"
"""
ULTRA = "eval --policy fugu-ultra --conductor planner --pool pool.toml --tasks home-multi --n 20 --choose-n 20"


@pytest.fixture
def fugu(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fugu:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("pool.toml").write_text(home_pool_path().read_text() + CONDUCTORS)
    return Fugu(capsys)


def read(path: str) -> dict[str, Any]:
    """JSON without NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return dict(json.loads(Path(path).read_text(), parse_constant=refuse))


def own_tasks(count: int, split: str, first: int = 0) -> str:
    return "".join(
        json.dumps({"prompt": f"What is {i} + {i}?", "gold": str(2 * i), "split": split, "id": f"{split}{i}"}) + "\n"
        for i in range(first, first + count)
    )


def test_a_conductor_is_measured_from_end_to_end(fugu: Fugu) -> None:
    """Twenty tasks: every worker, another conductor and random workers beside it; table, alarms and JSON."""
    said = fugu(f"{ULTRA} --start old --random-workers --json out/r.json")
    assert said.status == 0, said.err
    found = read("out/r.json")
    names = ["fugu-ultra", "exact-math", "text-ops", "facts", "generalist", "hasty", "start: old", "random workers"]
    assert list(found["policies"]) == list(found["tasks"][0]["scores"]) == names
    assert (found["n"], len(found["tasks"]), found["is_complete"]) == (20, 20, True)
    assert found["best_single"]["worker"] == "generalist"
    assert found["best_single"]["chosen_on"] == "20 tasks of train and validation, none of them measured"
    assert found["workflows"]["fugu-ultra"]["steps_histogram"] == {"2": 20}
    assert found["workflows"]["start: old"]["valid_rate"] == 0
    assert found["policies"]["start: old"]["faults"] == [
        {"owner": "policy", "code": "plan_unparseable", "scored": True, "count": 20}
    ]
    assert set(found["policies"]["fugu-ultra"]["shares"]) == {"generalist", "hasty"}
    split = found["format_and_orchestration"]
    assert split["format"]["mean"] + split["orchestration"]["mean"] == pytest.approx(split["total"]["mean"])
    assert found["not_run_alone"] == ["planner", "old"]
    for name in names:
        assert f"│ {name} " in said.out
    assert "best single worker: generalist (chosen on 20 tasks of train and validation" in said.out
    assert "20 tasks were scored, which is too few to tell" in said.err
    assert "260 episodes, estimated cost $" in said.err
    assert "nobody is paid" in said.err
    assert "start: old: scored 0: policy:plan_unparseable (20 times)" in said.err
    assert not Path("runs.sqlite").exists()


def test_what_is_measured_is_what_is_served(fugu: Fugu) -> None:
    """The policy's id is that under which the same installation would serve it."""
    fugu(f"{ULTRA} --against hasty --random-workers --json r.json --record kept.sqlite")
    found = read("r.json")
    fugu("ask --model fugu-ultra --conductor planner --pool pool.toml --record served.sqlite hello")
    listed = fugu("runs list --json --record served.sqlite")
    assert f'"{found["policy"]["id"]}"' in listed.out
    assert "planner" not in found["policies"]["random workers"]["shares"]


def test_run_again_it_only_reads(fugu: Fugu) -> None:
    """The same command again runs nothing and comes to the same numbers; with other tasks it is refused."""
    fugu(f"{ULTRA} --json r.json")
    first = read("r.json")
    said = fugu(f"{ULTRA} --json r.json")
    assert said.status == 0
    assert "every episode is there already" in said.err
    apart = {"seconds", "spent", "command"}
    assert {k: v for k, v in read("r.json").items() if k not in apart} == {
        k: v for k, v in first.items() if k not in apart
    }
    said = fugu(f"{ULTRA} --json r.json --seed 4")
    assert said.status == 2
    assert "r.episodes.jsonl: these episodes are of another evaluation (choice, tasks: not as then)" in said.err


def test_a_conductor_with_other_settings_is_another_one(fugu: Fugu) -> None:
    """When the pool's conductor writes something else, its old episodes are not mixed with the new."""
    fugu(f"{ULTRA} --json r.json")
    Path("pool.toml").write_text(Path("pool.toml").read_text().replace("Solve the task.", "Solve it."))
    said = fugu(f"{ULTRA} --json r.json")
    assert (said.status, "another evaluation (workers: not as then)" in said.err) == (2, True)


def test_money_ends_it_and_it_goes_on(fugu: Fugu) -> None:
    """--max-usd leaves what was done, status 1 and no half-finished choice; without it, the same command goes on."""
    said = fugu(f"{ULTRA} --json r.json --max-usd 0.0001 --concurrency 1")
    assert said.status == 1
    assert "stopped by --max-usd before the best single worker was chosen" in said.err
    assert not Path("r.json").exists()
    kept = len(Path("r.episodes.jsonl").read_text().splitlines()) - 1
    assert 0 < kept < 100
    said = fugu(f"{ULTRA} --json r.json --max-usd 0.02 --concurrency 1")
    assert said.status == 1
    assert "stopped by --max-usd: run the same command again" in said.err
    part = read("r.json")
    assert (part["is_complete"], part["stopped_by"]) == (False, "max_usd")
    assert 0 < part["n"] < 20
    assert part["unscored"] == 20 - part["n"]
    said = fugu(f"{ULTRA} --json r.json")
    assert (said.status, read("r.json")["n"]) == (0, 20)


def test_without_json_the_episodes_are_kept_until_all_is_done(fugu: Fugu) -> None:
    """An evaluation that was stopped leaves its episodes in the cache, a finished one nothing."""
    cache = Path("cache/torafugu/evals")
    fugu(f"{ULTRA} --max-usd 0.001")
    assert len(list(cache.iterdir())) == 1
    said = fugu(ULTRA)
    assert said.status == 0
    assert int(said.err.split(" episodes, estimated")[0].splitlines()[-1]) < 260
    assert list(cache.iterdir()) == []


def test_only_those_named_are_compared(fugu: Fugu) -> None:
    """--against leaves the others out; of a single worker nothing has to be chosen, so no other task is run."""
    said = fugu(f"{ULTRA} --against hasty --json r.json")
    assert said.status == 0, said.err
    found = read("r.json")
    assert list(found["policies"]) == ["fugu-ultra", "hasty"]
    assert found["best_single"]["chosen_on"] == "nothing: no other worker is compared"
    assert found["spent"]["episodes"] == 40


def test_a_worker_is_measured_beside_the_others(fugu: Fugu) -> None:
    """--policy WORKER: it is not its own rival, and says nothing of workflows."""
    said = fugu("eval --policy generalist --tasks home-multi --n 5 --json r.json --pool", home_pool_path())
    assert said.status == 0, said.err
    found = read("r.json")
    assert list(found["policies"]) == ["generalist", "exact-math", "text-ops", "facts", "hasty"]
    assert found["best_single"]["worker"] != "generalist"
    assert found["workflows"] == {}
    assert found["format_and_orchestration"] is None


def test_a_head_is_measured_live(fugu: Fugu) -> None:
    """--policy DIR with --tasks: the head is run under the name that its card gives it."""
    encoder, ids = MiniLM(), ["exact-math", "text-ops", "facts", "generalist", "hasty"]
    features = FeatureMap(np.zeros(encoder.dim, np.float32), np.zeros((encoder.dim, 1), np.float32))
    weight = np.array([[0, float(worker == "generalist")] for worker in ids], np.float32)
    card = Card(
        encoder=encoder.name,
        workers=tuple(WorkerIdentity(id, id) for id in ids),
        training={},
        metrics={},
        baselines={"best_single": {"worker": "generalist", "accuracy": 0.5}},
    )
    Head.create(features, weight, card).save(Path("head"))
    encoder.close()
    said = fugu(
        "eval --policy head --tasks home-multi --n 30 --against generalist --json r.json --pool", home_pool_path()
    )
    assert said.status == 0, said.err
    found = read("r.json")
    assert found["policy"]["name"] == "fugu"
    assert found["policies"]["fugu"]["shares"] == {"generalist": 1.0}
    assert {alarm["code"] for alarm in found["alarms"]} >= {"worker_collapse", "no_gain"}


def test_runs_are_recorded_when_asked(fugu: Fugu) -> None:
    """--record keeps each run, under the id that its episode names."""
    said = fugu(f"{ULTRA} --against hasty --record kept.sqlite --json r.json")
    assert said.status == 0, said.err
    rows = [json.loads(line) for line in Path("r.episodes.jsonl").read_text().splitlines()[1:]]
    run_id = next(row["run_id"] for row in rows if row["name"] == "fugu-ultra")
    shown = fugu(f"runs show {run_id} --record kept.sqlite")
    assert shown.status == 0, shown.err
    assert "planner (conductor)" in shown.out


def test_own_tasks_and_recorded_outcomes(fugu: Fugu) -> None:
    """A file without train and validation needs --data, a folder of outcomes, to choose the best single worker on."""
    Path("mine.jsonl").write_text(own_tasks(6, "test"))
    Path("known.jsonl").write_text(own_tasks(8, "train", first=50))
    line = f"eval --policy generalist --pool {home_pool_path()} --tasks mine.jsonl"
    said = fugu(line)
    assert said.status == 2
    assert "mine.jsonl: no tasks of train and validation to choose the best single worker on: give --data" in said.err
    assert fugu(f"profile --pool {home_pool_path()} --tasks known.jsonl --out profile").status == 0
    said = fugu(f"{line} --data profile --json r.json")
    assert said.status == 0, said.err
    found = read("r.json")
    assert found["best_single"]["worker"] == "exact-math"
    assert found["best_single"]["chosen_on"].endswith("profile, train and validation: 8 questions")
    assert found["spent"]["episodes"] == 30
    assert found["by_steps"] == {}


def test_what_could_not_be_scored_is_named(fugu: Fugu) -> None:
    """Replies that never came are counted with their owner, not as wrong, and the status is 1."""
    Path("pool.toml").write_text(Path("pool.toml").read_text().replace("I do not know.", ""))
    said = fugu("eval --policy generalist --tasks home-multi --n 2 --against old --json r.json --pool pool.toml")
    assert said.status == 1, said.err
    found = read("r.json")
    assert found["policies"]["old"]["n"] == 0
    assert found["gain"] is None
    assert found["is_complete"] is False
    assert found["policies"]["old"]["faults"] == [{"owner": "worker", "code": "empty", "scored": False, "count": 2}]
    assert "old: not scored: worker:empty (2 times)" in said.err
    assert "run the same command again to ask again" in said.err


def test_nobody_is_paid_unasked(fugu: Fugu) -> None:
    """With workers behind endpoints it asks, or wants --yes; a limit that cannot be kept is refused."""
    Path("paid.toml").write_text(home_pool_path().read_text() + PAID)
    line = "eval --policy generalist --tasks home-multi --n 3 --pool paid.toml"
    said = fugu(line)
    assert said.status == 2
    assert "estimated cost unknown (nothing bounds it; 600 tokens per reply)" in said.err
    assert "--yes goes on without asking" in said.err
    said = fugu(f"{line} --yes --max-usd 1")
    assert said.status == 2
    assert "--max-usd 1 cannot be kept: the price of paid is unknown" in said.err
    assert fugu(f"{line} --against hasty").status == 0  # it is not called, so nobody has to be asked


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("eval --policy fugu-ultra", "--data DIR says on which recorded outcomes"),
        ("eval --policy p --data d --n 3 --yes", "--n, --yes: only with --tasks"),
        ("eval --policy p --data d --against fugu", "--against: only with --tasks"),
        (f"{ULTRA} --promote --plot a.png", "--plot, --promote: only without --tasks"),
        (f"{ULTRA} --dataset x", "--dataset goes with --data"),
        (f"{ULTRA} --split tset", "--split tset: generated tasks have train, validation and test"),
        (f"{ULTRA} --start nobody", "--start 'nobody': expected one of exact-math"),
        (f"{ULTRA} --start planner", "that is the conductor that is measured"),
        (f"{ULTRA} --against nobody", "no model 'nobody'"),
        (
            "eval --policy hasty --pool pool.toml --tasks home-multi --n 3 --start old",
            "go with --policy fugu-ultra, not with 'hasty'",
        ),
        (f"{ULTRA} --effort huge", "invalid choice: 'huge'"),
        ("eval --policy hasty --pool pool.toml --tasks home-multi --n 3 --effort max", "go with --policy fugu-ultra"),
        ("eval --policy p --data d --effort max", "--effort: only with --tasks"),
        ("eval --policy fugu-ultra --pool pool.toml --tasks home-multi --n 3", "`fugu-ultra` is not offered"),
        ("eval --policy hasty --pool pool.toml --tasks none.jsonl", "none.jsonl: cannot be read"),
    ],
)
def test_wrong_use_is_one_line(fugu: Fugu, line: str, told: str) -> None:
    """Options that do not go together, and names that do not exist, end with 2 and say what was expected."""
    said = fugu(line)
    assert said.status == 2
    assert told in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


def test_effort_is_the_conductors(fugu: Fugu) -> None:
    """--effort goes with the conductor's requests, not with those of single workers; episodes of another effort are not
    taken for its own."""
    said = fugu(f"{ULTRA} --against hasty --effort none --json r.json --record kept.sqlite")
    assert said.status == 0, said.err
    assert read("r.json")["policy"]["effort"] == "none"
    rows = [json.loads(line) for line in Path("r.episodes.jsonl").read_text().splitlines()[1:]]
    efforts: dict[str, set[str | None]] = {"fugu-ultra": set(), "hasty": set()}
    for row in rows:
        shown = json.loads(fugu(f"runs show {row['run_id']} --json --record kept.sqlite").out)
        accepted = next(event for _, event in shown["events"] if "request" in event)
        efforts[row["name"]].add(accepted["request"].get("sampling", {}).get("reasoning_effort"))
    assert efforts == {"fugu-ultra": {"none"}, "hasty": {None}}
    assert "effort: not as then" in fugu(f"{ULTRA} --against hasty --effort low --json r.json").err


def test_a_start_may_have_settings_of_its_own(fugu: Fugu) -> None:
    """--start FILE takes the [conductor] of that file, over the same workers."""
    Path("start.toml").write_text('pool = "pool.toml"\n[conductor]\nworker = "old"\nattempts = 1\n')
    said = fugu(f"{ULTRA} --against hasty --start start.toml --json r.json")
    assert said.status == 0, said.err
    assert read("r.json")["workflows"]["start: old"]["texts_mean"] == 1
    Path("start.toml").write_text('pool = "pool.toml"\n')
    assert "start.toml: the file has no [conductor]" in fugu(f"{ULTRA} --start start.toml").err


def test_a_split_that_is_trained_on_is_not_chosen_on(fugu: Fugu) -> None:
    """With --split train the best single worker is chosen on validation alone."""
    said = fugu(f"{ULTRA} --split train --json r.json")
    assert said.status == 0, said.err
    found = read("r.json")
    ids = {task["id"] for task in found["tasks"]}
    rows = [json.loads(line) for line in Path("r.episodes.jsonl").read_text().splitlines()[1:]]
    chosen_on = {row["episode"]["task"] for row in rows} - ids
    assert len(chosen_on) == found["settings"]["choice"]["n"] > 0
    splits = {task.id: task.split for task in composed_tasks(n=100, seed=0)}
    assert {splits[task] for task in chosen_on} == {"validation"}
