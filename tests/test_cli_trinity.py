"""The command `fugu` and the tri-role coordinator: training, measuring, promoting, configuring and asking it."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from outcomes import ALIKE, SUBJECTS, write_world
from torafugu.cli import main
from torafugu.local import MiniLM
from torafugu.orchestrate.coordinator import CoordinatorHead
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.orchestrate.tri_head import Rules
from torafugu.pool.home import home_pool_path
from trinity import VOICES, save_trinity, write_pattern

HOME = ("exact-math", "facts", "generalist", "hasty", "text-ops")
ENCODER = MiniLM()
NAME, DIM = ENCODER.name, ENCODER.dim
ENCODER.close()
SPLITS = {"train": 60, "validation": 20, "test": 200}


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


def fugu(line: str, *more: str | Path) -> Said:
    """The command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([*shlex.split(line), *map(str, more)])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
    return Said(status, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Trained:
    data: Path
    policy: Path
    cache: Path
    said: Said

    def eval(self, more: str = "") -> Said:
        return fugu(f"eval --policy {self.policy} --data {self.data} --cache {self.cache} {more}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data = write_pattern(folder / "data", SPLITS)
    said = fugu(
        f"train trinity --data {data} --out {folder / 'trinity'} --cache {folder / 'states'} --no-evolution --seed 3"
    )
    assert said.status == 0, said.err
    return Trained(data, folder / "trinity", folder / "states", said)


def save_home(folder: Path, favourite: str = "exact-math") -> Path:
    """A coordinator over the home pool that asks one worker and believes it."""
    ability = {worker: float(worker == favourite) for worker in HOME}
    rules = Rules(roles=("worker", "verifier"), max_calls=1)
    return save_trinity(folder, ability, encoder=NAME, dim=DIM, rules=rules)


def save_selector(folder: Path, workers: Mapping[str, str]) -> Path:
    import numpy as np

    features = FeatureMap(np.zeros(DIM, np.float32), np.zeros((DIM, 1), np.float32))
    identities = tuple(WorkerIdentity(id, model) for id, model in workers.items())
    card = Card(encoder=NAME, workers=identities, training={}, metrics={}, baselines={})
    Head.create(features, np.zeros((len(workers), 2), np.float32), card).save(folder)
    return folder


# Training


def test_train_says_what_it_made(trained: Trained) -> None:
    """Folder, head, candidate and the report are named; the card holds what the command line said."""
    head = CoordinatorHead.load(trained.policy)
    assert f"{trained.policy}: head fugu-trinity@{head.id}, {head.card.training['candidate']}" in trained.said.out
    assert f"{trained.policy / 'report.html'}: " in trained.said.out
    assert "No candidate beat" not in trained.said.out
    assert head.card.encoder == NAME
    assert (head.card.training["seed"], head.card.training["trainer"]) == (3, None)
    assert json.loads((trained.policy / "run.json").read_text())["config"]["trainers"] == []


def test_options_reach_the_training_and_nothing_gained_is_said(trained: Trained) -> None:
    """Prices and limits stand on the card; where no call pays, the best single worker is named as the one asked."""
    data = write_world(
        Path("data"), ALIKE, seed=1, subjects=SUBJECTS[:1], splits={"train": 32, "validation": 8, "test": 8}
    )
    said = fugu(
        "train trinity --out o --no-evolution --call-price 0.5 --mean-calls 1.5 --cost-price 0",
        *("--data", data, "--cache", trained.cache),
    )
    assert said.status == 0, said.err
    assert "No candidate beat the best single worker" in said.out
    assert "always asks 'best'" in said.out
    training = CoordinatorHead.load(Path("o")).card.training
    assert (training["call_price"], training["mean_calls"], training["cost_price"]) == (0.5, 1.5, 0.0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--call-price 2", "2: expected 0 to 1, a share of a right answer"),
        ("--call-price=-0.1", "-0.1: expected 0 to 1"),
        ("--call-price nan", "nan: expected 0 to 1"),
        ("--call-price cheap", "cheap: expected 0 to 1"),
        ("--cost-price 1.5", "1.5: expected 0 to 1"),
        ("--mean-calls 0.5", "0.5: expected a number of at least 1"),
        ("--mean-calls nan", "nan: expected a number of at least 1"),
        ("--mean-calls few", "few: expected a number of at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(option: str, message: str, trained: Trained) -> None:
    """A price beyond a right answer and less than one call end with 2, naming option and value; nothing is written."""
    said = fugu(f"train trinity --out o {option} --data", trained.data)
    assert said.status == 2
    assert message in said.err
    assert option.replace("=", " ").split()[0] in said.err
    assert not Path("o").exists()


def test_a_missing_data_folder_is_named() -> None:
    """A folder that is not there ends with 2, before anything is written."""
    said = fugu("train trinity --data none --out o")
    assert (said.status, said.out) == (2, "")
    assert "none: not a folder" in said.err
    assert not Path("o").exists()


# Measuring and promoting


def test_eval_measures_a_coordinator(trained: Trained) -> None:
    """The table and the JSON artefact are those of any policy, with diagnostics, alarms and every question."""
    said = trained.eval("--json report.json")
    assert said.status == 0, said.err
    report = json.loads(Path("report.json").read_text())
    assert report["policy"]["id"] == f"fugu-trinity@{CoordinatorHead.load(trained.policy).id}"
    assert report["policy"]["id"] in said.out
    assert report["n"] == len(report["questions"]) == SPLITS["test"]
    assert report["diagnostics"]["n"] == SPLITS["test"]
    assert {"vote_3", "random"} <= set(report["gain_over"])
    assert report["calls_mean"] > 1
    assert f"{report['calls_mean']:.1f}" in said.out
    for alarm in report["alarms"]:
        assert f"alarm: {alarm['message']}" in said.err


def test_a_coordinator_is_promoted_or_refused_as_any_head(trained: Trained) -> None:
    """Not on what it was trained on, and else by its interval; the card then says so, and the weights stay."""
    weights = (trained.policy / "head.safetensors").read_bytes()
    refused = trained.eval("--split validation --promote")
    assert refused.status == 3
    assert CoordinatorHead.load(trained.policy).card.gate == {}
    said = trained.eval("--promote --json report.json")
    low = json.loads(Path("report.json").read_text())["gain"]["low"]
    assert low > 0
    assert said.status == 0, said.err
    card = CoordinatorHead.load(trained.policy).card
    assert (card.kind, card.gate["promoted"], card.gate["forced"]) == ("coordinator", True, False)
    assert card.gate["gain"]["low"] == low
    assert (trained.policy / "head.safetensors").read_bytes() == weights
    assert trained.eval("--promote --report").status == 0
    page = (trained.policy / "report.html").read_text()
    assert "Beats the best single worker" in page
    assert "Not promoted" not in page


def test_a_grown_head_has_a_folder_of_its_own(trained: Trained) -> None:
    """The head that is added to stays as it is: its own folder is refused, whatever the way to it."""
    before = (trained.policy / "card.json").read_bytes()
    Path("link").symlink_to(trained.policy)
    said = fugu(f"train add --policy {trained.policy} --data {trained.data} --out link")
    assert (said.status, "give the grown head a folder of its own" in said.err) == (2, True)
    assert (trained.policy / "card.json").read_bytes() == before


def test_a_coordinator_that_gains_nothing_is_refused_unless_forced(trained: Trained) -> None:
    """Asking the best single worker only does not clear it: exit 3; with --force the card says so."""
    models = {worker: f"maker/{worker}" for worker in VOICES}
    ability = {"left": 1.0, "right": 0.5, "third": 0.0}
    rules = Rules(roles=("worker", "verifier"), max_calls=1)
    save_trinity(Path("flat"), ability, encoder=NAME, dim=DIM, rules=rules, models=models)
    command = f"eval --policy flat --data {trained.data} --cache {trained.cache} --promote"
    refused = fugu(command)
    assert refused.status == 3
    assert "does not clear the best single worker 'left'" in refused.err
    forced = fugu(f"{command} --force")
    assert forced.status == 0
    assert CoordinatorHead.load(Path("flat")).card.gate["forced"] is True


# Installations


def test_ask_goes_through_the_coordinator() -> None:
    """`--trinity` offers `fugu-trinity`: the worker's answer is printed, and the record shows its role."""
    save_home(Path("trinity"), "text-ops")
    said = fugu("ask --model fugu-trinity --trinity trinity 'Spell this word backward: tiger'", "--pool", home_pool())
    assert said.status == 0, said.err
    assert said.out.count("regit") == 1
    assert "text-ops" in said.err
    shown = fugu(f"runs show {said.err.splitlines()[-1].split(':')[0]}")
    assert "by fugu-trinity@" in shown.out
    assert "step 0: text-ops as worker" in shown.out
    assert "answered  with step 0 by text-ops" in shown.out


def test_the_key_trinity_is_relative_to_its_file() -> None:
    """`trinity` in fugu.toml names a folder beside it; the command line goes before it."""
    Path("here").mkdir()
    save_home(Path("here/trinity"), "hasty")
    save_home(Path("other"), "exact-math")
    Path("here/fugu.toml").write_text('trinity = "trinity"\n')
    line = "ask --config here/fugu.toml --model fugu-trinity 'What is 17 + 25?'"
    said = fugu(line)
    assert said.status == 0, said.err
    assert "hasty" in said.err
    assert "exact-math" in fugu(f"{line} --trinity other").err


def test_with_a_coordinator_alone_fugu_is_not_offered() -> None:
    """Asking `fugu` then ends with 2 and names `fugu-trinity` among those there are."""
    save_home(Path("trinity"))
    said = fugu("ask hello --trinity trinity", "--pool", home_pool())
    assert said.status == 2
    assert "no model 'fugu': expected one of fugu-trinity, exact-math" in said.err
    assert "`fugu`" in said.err.partition("(")[2]
    assert "fugu-trinity" not in said.err.partition("(")[2]


@pytest.mark.parametrize("command", ["ask --model hasty hello", "serve --port 0", "doctor"])
@pytest.mark.parametrize("key", ["policy", "trinity"])
def test_a_folder_of_the_wrong_kind_is_refused(key: str, command: str) -> None:
    """A coordinator at --policy, or a selector at --trinity, is an error that names the right key: nothing starts."""
    if key == "policy":
        save_home(Path("folder"))
        message = "folder: a coordinator is behind `fugu-trinity`, not `fugu`: name it as `trinity`"
    else:
        save_selector(Path("folder"), {worker: worker for worker in HOME})
        message = "folder: a selector is behind `fugu`, not `fugu-trinity`: name it as `policy`"
    said = fugu(f"{command} --{key} folder", "--pool", home_pool())
    if command == "doctor":
        assert said.status == 1
        assert f"FAIL  {message}" in said.out
        assert "everything opens" not in said.out
    else:
        assert said.status == 2
        assert said.err == f"fugu: {message}\n"
    assert not Path("runs.sqlite").exists()


def test_a_missing_coordinator_is_refused() -> None:
    """A configured coordinator loads or nothing starts."""
    said = fugu("ask --model hasty --trinity nowhere hello", "--pool", home_pool())
    assert said.status == 2
    assert "nowhere: no trained head here: card.json is missing" in said.err


def test_doctor_looks_at_both_policies() -> None:
    """Each model name has a line: not configured, not promoted, or promoted with its lower bound."""
    save_home(Path("trinity"))
    said = fugu("doctor --trinity trinity", "--pool", home_pool())
    assert said.status == 0, said.out
    assert "ok    `fugu` is not offered: no policy is configured" in said.out
    id = CoordinatorHead.load(Path("trinity")).id
    assert f"ok    policy fugu-trinity@{id}: not promoted; measure it: fugu eval --policy trinity" in said.out
    card = json.loads(Path("trinity/card.json").read_text())
    card["gate"] = {"promoted": True, "forced": False, "gain": {"low": 0.0123}}
    Path("trinity/card.json").write_text(json.dumps(card))
    promoted = fugu("doctor --trinity trinity", "--pool", home_pool())
    assert f"policy fugu-trinity@{id}: promoted, lower bound +1.2 %" in promoted.out
    none = fugu("doctor", "--pool", home_pool())
    assert "ok    `fugu-trinity` is not offered: no policy is configured" in none.out
    assert "ok    `fugu-ultra` is not offered: no conductor is configured" in none.out


def home_pool() -> str:
    return str(home_pool_path())
