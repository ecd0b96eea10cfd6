"""The command `fugu`, as a person or a script meets it: what it prints where, what it leaves, and its exit status."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from commands import Fugu, Said
from outcomes import SPECIALISTS, read_rows, write_world
from torafugu import __version__
from torafugu.cli import create_parser
from torafugu.local import MiniLM
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.pool.home import home_pool_path

ROOT = Path(__file__).parents[1]
SPLITS = {"train": 96, "validation": 24, "test": 72}
HOME = str(home_pool_path())
SUMS = "".join(json.dumps({"prompt": f"What is {i} + {i}?", "gold": str(2 * i)}) + "\n" for i in range(12))


@pytest.fixture
def fugu(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fugu:
    monkeypatch.chdir(tmp_path)
    return Fugu(capsys)


def start(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The real command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "torafugu.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out, err)


@dataclass(frozen=True)
class Trained:
    """A made-up world, a head that learnt it through the command line, and where hidden states are kept."""

    data: Path
    policy: Path
    cache: Path
    said: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data = write_world(folder / "data", seed=2, splits=SPLITS)
    command = ("train", "selector", "--data", data, "--out", folder / "policy", "--cache", folder / "states")
    said = finish(start(*command, "--no-evolution", cwd=folder))
    assert said.status == 0, said.err
    return Trained(data, folder / "policy", folder / "states", said.out)


def make_head(folder: Path, workers: Mapping[str, str], favourite: str) -> Path:
    """A head over the shipped encoder that always asks one worker."""
    encoder = MiniLM()
    features = FeatureMap(np.zeros(encoder.dim, np.float32), np.zeros((encoder.dim, 1), np.float32))
    weight = np.array([[0, float(worker == favourite)] for worker in workers], np.float32)
    card = Card(
        encoder=encoder.name,
        workers=tuple(WorkerIdentity(id, model) for id, model in workers.items()),
        training={},
        metrics={},
        baselines={"best_single": {"worker": favourite, "accuracy": 0.5}},
    )
    Head.create(features, weight, card).save(folder)
    encoder.close()
    return folder


def every_parser(parser: argparse.ArgumentParser, name: str = "fugu") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from every_parser(inner, f"{name} {word}")


# What stands in help and reference


def test_every_option_is_documented() -> None:
    """Every command and every option of every command stands in docs/reference.md."""
    reference = (ROOT / "docs" / "reference.md").read_text()
    for name, parser in every_parser(create_parser()):
        assert f"`{name}" in reference or f" {name}" in reference, name
        for action in parser._actions:
            for option in action.option_strings:
                assert option in reference, f"{name} {option}"


def test_every_command_says_what_its_options_mean() -> None:
    """No option and no argument is without help, but for --seed, whose name says it."""
    for name, parser in every_parser(create_parser()):
        for action in parser._actions:
            if action.option_strings != ["--seed"] and not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{name} {action.option_strings or action.dest}"


def test_version_and_help(fugu: Fugu) -> None:
    """`--version` and `--help` go to stdout and end with 0; no command at all is wrong use and ends with 2."""
    assert fugu("--version") == Said(0, f"fugu {__version__}\n", "")
    helped = fugu("--help")
    assert helped.status == 0
    for word in ("demo", "init", "serve", "ask", "route", "profile", "train", "eval", "runs", "doctor"):
        assert f"    {word} " in helped.out
    assert fugu("").status == 2
    assert "invalid choice: 'evaluate'" in fugu("evaluate").err


# Installations: init, doctor, ask, serve


def test_init_writes_an_installation_for_the_home_pool(fugu: Fugu, tmp_path: Path) -> None:
    """`init --home` writes two files, says what comes next, and `doctor` then finds nothing wrong."""
    said = fugu("init --home")
    assert said.status == 0
    assert "wrote pool.toml\nwrote fugu.toml\n" in said.out
    assert "fugu train selector" in said.out
    assert (tmp_path / "pool.toml").read_text().startswith(home_pool_path().read_text())
    checked = fugu("doctor")
    assert checked.status == 0
    assert "FAIL" not in checked.out
    assert "`fugu` is not offered" in checked.out


def test_init_overwrites_nothing(fugu: Fugu, tmp_path: Path) -> None:
    """With one of its files there, init refuses, names it and leaves both alone; --force overwrites."""
    (tmp_path / "fugu.toml").write_text("# mine\n")
    said = fugu("init --home")
    assert said == Said(2, "", "fugu: fugu.toml exists: --force overwrites it\n")
    assert (tmp_path / "fugu.toml").read_text() == "# mine\n"
    assert not (tmp_path / "pool.toml").exists()
    assert fugu("init --home --force").status == 0
    assert "record" in (tmp_path / "fugu.toml").read_text()


def test_init_finds_keys_and_never_writes_them(fugu: Fugu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider's key in the environment makes workers that name the variable only; doctor misses it later."""
    for name in list(os.environ):
        if name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    said = fugu("init --dir here")
    assert said.status == 0, said.err
    pool = (tmp_path / "here" / "pool.toml").read_text()
    assert 'key_env = "OPENAI_API_KEY"' in pool
    assert "sk-very-secret" not in pool + (tmp_path / "here" / "fugu.toml").read_text() + said.out + said.err
    assert "next, in here:" in said.out
    assert fugu("doctor --config here/fugu.toml").status == 0
    monkeypatch.delenv("OPENAI_API_KEY")
    checked = fugu("doctor --config here/fugu.toml")
    assert checked.status == 1
    assert "OPENAI_API_KEY is not set" in checked.out


def test_without_an_installation_the_way_to_one_is_named(fugu: Fugu) -> None:
    """`serve`, `ask` and `doctor` in an empty folder end with 2 and name `fugu init` and `fugu demo`."""
    for line in ("serve", "ask hello", "doctor"):
        said = fugu(line)
        assert said.status == 2
        assert "no fugu.toml here" in said.err
        assert "`fugu init`" in said.err
        assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('pol = "pool.toml"', "unknown key 'pol': expected one of"),
        ("[server]\nport = 99999", "port 99999: expected 0 to 65535"),
        ('[server]\nhost = "0.0.0.0"', "can be reached from other machines"),
        ("pool = 3", "3 is not a path"),
        ("= 3", "not TOML"),
        ('pool = "none.toml"', "none.toml: no such file"),
    ],
)
def test_a_wrong_installation_file_is_explained(content: str, message: str, fugu: Fugu, tmp_path: Path) -> None:
    """A mistake in fugu.toml is one line that names the file and what is wrong."""
    (tmp_path / "fugu.toml").write_text(content)
    said = fugu("ask --model x hello")
    assert said.status == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_an_empty_pool_is_refused(fugu: Fugu, tmp_path: Path) -> None:
    """A pool file without workers ends with 2 and says what to declare."""
    (tmp_path / "pool.toml").write_text("")
    for line in ("ask --model x --pool pool.toml hello", "profile --pool pool.toml --tasks x --out y"):
        said = fugu(line)
        assert said.status == 2
        assert "the pool is empty: declare at least one [[worker]]" in said.err


def test_a_missing_key_is_named_before_anything_is_served(
    fugu: Fugu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose key variable is not set keeps `serve` and `ask` from starting, by its name."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (tmp_path / "pool.toml").write_text(
        '[[worker]]\nid = "w"\ndialect = "openai"\nmodel = "gpt-4o"\nkey_env = "NO_SUCH_KEY"\n'
    )
    for line in ("serve --pool pool.toml --port 0", "ask --pool pool.toml --model w hello"):
        said = fugu(line)
        assert said.status == 2
        assert "NO_SUCH_KEY" in said.err
        assert "'w'" in said.err
    checked = fugu("doctor --pool pool.toml")
    assert checked.status == 1
    assert "FAIL  worker 'w': NO_SUCH_KEY is not set" in checked.out


def test_ask_calls_the_worker_that_was_named_and_records_it(fugu: Fugu) -> None:
    """The answer goes to stdout, who gave it and for how much to stderr, and `runs show` finds it by a prefix."""
    said = fugu("ask --model exact-math 'What is 17 + 25?'", "--pool", HOME)
    assert said.status == 0
    assert "42" in said.out
    assert "exact-math" in said.err
    assert "$" in said.err
    run_id = said.err.split(":")[0]
    shown = fugu(f"runs show {run_id[:20]}")
    assert shown.status == 0
    for text in (run_id, "What is 17 + 25?", "called    exact-math", "replied", "by answer: 1 calls"):
        assert text in shown.out
    listed = fugu("runs")
    assert run_id in listed.out
    assert "answered" in listed.out


def test_ask_without_a_policy_says_that_fugu_is_not_offered(fugu: Fugu) -> None:
    """Asking `fugu` of a pool without a head ends with 2 and names the models there are, and why it is not one."""
    said = fugu("ask hello", "--pool", HOME)
    assert said.status == 2
    assert "no model 'fugu': expected one of exact-math, facts, generalist" in said.err
    assert "`fugu` is not offered: no policy is configured" in said.err


def test_an_answer_without_tokens_cannot_be_asked_for(fugu: Fugu) -> None:
    """`ask --max-tokens 0` is wrong use: no worker is called to say nothing."""
    said = fugu("ask --model facts --max-tokens 0 hello", "--pool", HOME)
    assert said.status == 2
    assert "--max-tokens: 0: expected a whole number of at least 1" in said.err


def test_nothing_asked_is_wrong_use(fugu: Fugu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank question ends with 2, before a record is opened."""
    said = fugu("ask ' '", "--pool", HOME)
    assert said.status == 2
    assert "nothing was asked" in said.err
    assert not Path("runs.sqlite").exists()


def test_a_head_for_another_pool_is_refused(fugu: Fugu, tmp_path: Path) -> None:
    """A head trained for other workers ends `serve` and `ask` with 2, names both sides and what to do."""
    policy = make_head(tmp_path / "policy", {"this": "m", "that": "m"}, "this")
    for line in ("serve --port 0 --policy policy", "ask --policy policy hello"):
        said = fugu(line, "--pool", HOME)
        assert said.status == 2
        assert "was trained for that, this" in said.err
        assert "exact-math" in said.err
        assert "fugu train selector" in said.err
    checked = fugu("doctor --policy policy", "--pool", HOME)
    assert checked.status == 1
    assert policy.exists()


def test_a_missing_policy_is_refused(fugu: Fugu) -> None:
    """A configured policy loads or nothing starts: there is no fallback."""
    said = fugu("ask --policy nowhere hello", "--pool", HOME)
    assert said.status == 2
    assert "nowhere: no trained head here: card.json is missing" in said.err


def test_a_head_answers_as_fugu(fugu: Fugu, tmp_path: Path) -> None:
    """With a head that fits the pool, `fugu ask` goes through it, and the record says so with its scores."""
    models = {id: id for id in ("exact-math", "facts", "generalist", "hasty", "text-ops")}
    make_head(tmp_path / "policy", models, "text-ops")
    said = fugu("ask --policy policy 'Spell this word backward: tiger'", "--pool", HOME)
    assert said.status == 0, said.err
    assert "text-ops" in said.err
    shown = fugu(f"runs show {said.err.split(':')[0]}")
    assert "by fugu@" in shown.out
    assert "scores: text-ops 0.4" in shown.out


def test_a_port_in_use_is_named(fugu: Fugu) -> None:
    """`serve` on a port that another program has ends with 2 and the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = fugu(f"serve --port {port}", "--pool", HOME)
    assert said.status == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said.err
    assert "Traceback" not in said.err


# The record


def test_a_missing_record_is_named(fugu: Fugu) -> None:
    """`runs` without a record, or with one that is not there, ends with 2, and creates none."""
    for line in ("runs", "runs show run_01", "runs --record none.sqlite", "runs list --record none.sqlite"):
        said = fugu(line)
        assert said.status == 2
        assert ".sqlite: no record here" in said.err
    assert not list(Path().iterdir())


def test_the_record_can_be_named_before_and_after_the_action(fugu: Fugu) -> None:
    """`runs --record R show ID` and `runs show ID --record R` are the same; JSON is one object."""
    asked = fugu("ask --model hasty --record r.sqlite 'What is 1 + 1?'", "--pool", HOME)
    run_id = asked.err.split(":")[0]
    before, after = fugu(f"runs --record r.sqlite show {run_id}"), fugu(f"runs show {run_id} --record r.sqlite")
    assert before.status == 0
    assert before == after
    stored = json.loads(fugu(f"runs show {run_id} --json --record r.sqlite").out)
    assert stored["run"]["id"] == run_id
    rows = fugu("runs list --json --record r.sqlite").out.splitlines()
    assert [json.loads(row)["id"] for row in rows] == [run_id]
    assert fugu("runs list --status failed --json --record r.sqlite").out == ""


def test_an_unknown_run_is_named(fugu: Fugu) -> None:
    """`runs show` of an id that is not there ends with 2 and names id and record; an ambiguous one lists the ids."""
    for _ in range(2):
        fugu("ask --model hasty 'What is 1 + 1?'", "--pool", HOME)
    assert "no run 'nothing' in runs.sqlite" in fugu("runs show nothing").err
    said = fugu("runs show run_")
    assert said.status == 2
    assert "ambiguous" in said.err


def test_words_of_a_worker_neither_style_nor_steer_the_terminal(fugu: Fugu, tmp_path: Path) -> None:
    """Brackets and colons of an answer are shown as they are; control characters are not passed on."""
    (tmp_path / "pool.toml").write_text('[[worker]]\nid = "echo"\ndialect = "scripted"\nmodel = "echo"\n')
    asked = fugu("ask --pool pool.toml --model echo", "[bold]x[/bold] :smile: \x1b[31mred\x1b[0m [/end]")
    shown = fugu(f"runs show {asked.err.split(':')[0]}")
    assert "[bold]x[/bold] :smile: [31mred [0m [/end]" in shown.out
    assert "\x1b" not in shown.out


# Profile


def test_profile_answers_own_tasks_and_says_how_it_went(fugu: Fugu, tmp_path: Path) -> None:
    """Own tasks over the home pool: a table to stdout, costs to stderr, no question asked as nobody is paid."""
    (tmp_path / "sums.jsonl").write_text(SUMS)
    said = fugu("profile --tasks sums.jsonl --out p")
    assert said.status == 0
    assert "60 calls, estimated cost $" in said.err
    assert "at invented prices: nobody is paid" in said.err
    assert "exact-math" in said.out
    assert len(read_rows(tmp_path / "p" / "outcomes.jsonl")) == 60
    again = fugu("profile --tasks sums.jsonl --out p")
    assert again.status == 0
    assert "60 answers are there already" in again.err
    assert "nothing left to ask" in again.err
    other = fugu("profile --tasks sums.jsonl --out p --repeats 2 --max-usd 1000")
    assert other.status == 0
    assert len(read_rows(tmp_path / "p" / "outcomes.jsonl")) == 120


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--max-usd cheap", "'cheap' is not a number"),
        ("--max-usd nan", "expected more than 0"),
        ("--max-usd 0", "expected more than 0"),
        ("--repeats 0", "0: expected a whole number of at least 1"),
        ("--n -3", "-3: expected a whole number of at least 1"),
        ("--n many", "many: expected a whole number of at least 1"),
        ("--seed -1", "-1: expected a whole number of at least 0"),
        ("--tasks none.jsonl", "none.jsonl: cannot be read: No such file"),
        ("--pool none.toml", "none.toml: no such file"),
    ],
)
def test_profile_refuses_what_makes_no_sense(line: str, message: str, fugu: Fugu) -> None:
    """Wrong numbers and missing files end with 2, a word on what was expected, and no folder."""
    said = fugu(f"profile --out p {line}")
    assert said.status == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert not Path("p").exists()


PAID = '[[worker]]\nid = "w"\ndialect = "openai"\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"\n'


def test_workers_that_may_cost_money_are_not_called_unasked(fugu: Fugu, tmp_path: Path) -> None:
    """Where nobody can be asked, a pool behind endpoints needs --yes; the refusal comes before any call."""
    (tmp_path / "sums.jsonl").write_text(SUMS)
    (tmp_path / "pool.toml").write_text(PAID)
    said = fugu("profile --pool pool.toml --tasks sums.jsonl --out p")
    assert said.status == 2
    assert "--yes goes on without asking" in said.err
    assert "12 calls, estimated cost unknown" in said.err
    assert read_rows(tmp_path / "p" / "outcomes.jsonl") == []


def test_a_limit_that_cannot_be_kept_is_refused(fugu: Fugu, tmp_path: Path) -> None:
    """--max-usd with a worker of unknown price would never stop: it ends with 2 and names the worker."""
    (tmp_path / "sums.jsonl").write_text(SUMS)
    (tmp_path / "pool.toml").write_text(PAID)
    said = fugu("profile --pool pool.toml --tasks sums.jsonl --out p --yes --max-usd 1")
    assert said.status == 2
    assert "--max-usd 1 cannot be kept: the price of w is unknown" in said.err
    assert not (tmp_path / "p").exists()


def test_failed_calls_end_with_1_and_are_counted(fugu: Fugu, tmp_path: Path) -> None:
    """Workers that cannot be reached leave no rows; the count, the reason and what to do are printed."""
    (tmp_path / "sums.jsonl").write_text(SUMS.splitlines(keepends=True)[0])
    (tmp_path / "pool.toml").write_text("max_attempts = 1\n" + PAID)
    said = fugu("profile --pool pool.toml --tasks sums.jsonl --out p --yes")
    assert said.status == 1
    assert "not scored: w connect_failed (1 times); run the same command again" in said.err
    assert read_rows(tmp_path / "p" / "outcomes.jsonl") == []


def test_an_interrupted_profile_can_be_taken_up_again(tmp_path: Path) -> None:
    """Ctrl-C ends with 130 and one line; the same command then asks only for what is missing."""
    (tmp_path / "sums.jsonl").write_text(SUMS)
    pool = (
        '[[worker]]\nid = "{0}"\ndialect = "scripted"\nmodel = "{0}"\nextra_body = {{ text = "4", latency_s = {1} }}\n'
    )
    (tmp_path / "pool.toml").write_text(pool.format("quick", "0.0") + pool.format("slow", "60.0"))
    outcomes = tmp_path / "p" / "outcomes.jsonl"
    command = ("profile", "--pool", "pool.toml", "--tasks", "sums.jsonl", "--out", "p")
    process = start(*command, cwd=tmp_path)
    deadline = time.monotonic() + 20
    while not outcomes.exists() or outcomes.read_bytes().count(b"\n") < 12:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert said.status == 130
    assert said.err.endswith("fugu: interrupted\n")
    assert "Traceback" not in said.err
    (tmp_path / "pool.toml").write_text(pool.format("quick", "0.0") + pool.format("slow", "0.0"))
    again = finish(start(*command, cwd=tmp_path))
    assert again.status == 0, again.err
    assert "12 answers are there already" in again.err
    rows = read_rows(outcomes)
    assert len(rows) == len({(row["qid"], row["model"]) for row in rows}) == 24


# Train and eval


def test_train_says_what_it_made(trained: Trained) -> None:
    """The last line names folder, head and candidate; the folder holds head, card, metrics and the run."""
    head = Head.load(trained.policy)
    assert f"{trained.policy}: head fugu@{head.id}, {head.card.training['candidate']}" in trained.said
    assert {path.name for path in trained.policy.iterdir()} == {
        "head.safetensors",
        "card.json",
        "metrics.jsonl",
        "run.json",
    }


@pytest.mark.parametrize("command", ["train selector --out o", "eval --policy p"])
def test_a_missing_data_folder_is_named(command: str, fugu: Fugu) -> None:
    """A folder that is not there, or holds no recorded set, ends with 2 and says what was expected."""
    Path("empty").mkdir()
    for folder, message in (("none", "none: not a folder"), ("empty", "empty: no questions.jsonl")):
        said = fugu(f"{command} --data {folder}")
        assert said.status == 2
        assert message in said.err
    assert not Path("o").exists()


def test_an_unknown_dataset_is_named_with_those_there_are(fugu: Fugu, trained: Trained) -> None:
    """--dataset that the folder lacks ends with 2 and lists what it has."""
    said = fugu("train selector --out o --dataset maths --data", trained.data)
    assert said.status == 2
    assert "no dataset 'maths': the folder has made-up" in said.err


def test_an_output_that_cannot_be_written_is_one_line(fugu: Fugu, trained: Trained, tmp_path: Path) -> None:
    """An --out below a file ends with 1 and the path, at once and without a traceback."""
    (tmp_path / "taken").write_text("")
    for line in ("train selector --out taken/o --data", "eval --json taken/o.json --data"):
        said = fugu(line, trained.data, *(("--policy", trained.policy) if line.startswith("eval") else ()))
        assert said.status == 1
        assert said.err.splitlines()[-1].startswith("fugu: taken")
        assert "Traceback" not in said.err
        assert "encode questions" not in said.err


def test_eval_writes_what_scripts_read(fugu: Fugu, trained: Trained) -> None:
    """`eval --json` holds the promised keys, is JSON without NaN, and agrees with the table."""
    command = f"eval --policy {trained.policy} --data {trained.data} --cache {trained.cache} --json out/report.json"
    said = fugu(command)
    assert said.status == 0, said.err

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    report = json.loads(Path("out/report.json").read_text(), parse_constant=refuse)
    assert report["n"] == SPLITS["test"]
    assert set(report["best_single"]) >= {"worker", "accuracy"}
    assert set(report["gain"]) >= {"mean", "low", "high"}
    for key in ("accuracy", "calls_mean", "cost_usd", "baselines", "oracle", "split", "seed", "commit", "data"):
        assert key in report
    assert report["gain"]["mean"] == pytest.approx(report["accuracy"] - report["best_single"]["accuracy"])
    assert report["split"] == "test"
    assert {"random", "best_per_category", "vote_3", "knn", "svm_linear"} <= set(report["baselines"])
    assert f"{report['accuracy'] * 100:.1f} %" in said.out
    assert f"best single worker: {report['best_single']['worker']}" in said.out
    assert "ceiling" in said.out


def test_eval_takes_any_split_and_names_those_there_are(fugu: Fugu, trained: Trained) -> None:
    """--split is any value of the field; one that nobody has ends with 2 and lists them all."""
    said = fugu(f"eval --policy {trained.policy} --data {trained.data} --cache {trained.cache} --split tset")
    assert said.status == 2
    assert "no questions of split 'tset': the folder has test, train, validation" in said.err
    other = fugu(
        f"eval --policy {trained.policy} --data {trained.data} --cache {trained.cache} --split validation --json v.json"
    )
    assert other.status == 0
    assert json.loads(Path("v.json").read_text())["n"] == SPLITS["validation"]


def gate_of(policy: Path) -> Mapping[str, object]:
    return Head.load(policy).card.gate


def test_a_head_that_clears_the_gate_is_promoted(fugu: Fugu, trained: Trained) -> None:
    """A head whose interval clears the best single worker is promoted, its card says on what, its weights stay."""
    weights = (trained.policy / "head.safetensors").read_bytes()
    said = fugu(f"eval --policy {trained.policy} --data {trained.data} --cache {trained.cache} --promote")
    assert said.status == 0, said.err
    assert "promoted fugu@" in said.out
    assert "by force" not in said.out
    gate = gate_of(trained.policy)
    assert (gate["promoted"], gate["forced"], gate["split"]) == (True, False, "test")
    assert (trained.policy / "head.safetensors").read_bytes() == weights


def test_a_head_that_does_not_clear_the_gate_is_refused_unless_forced(
    fugu: Fugu, trained: Trained, tmp_path: Path
) -> None:
    """Asking one worker only gains nothing: exit 3 and the card as it was; with --force the card says so."""
    policy = make_head(tmp_path / "policy", {w: f"maker/{w}" for w in SPECIALISTS}, "handyman")
    command = f"eval --policy {policy} --data {trained.data} --cache {trained.cache} --promote"
    refused = fugu(command)
    assert refused.status == 3
    assert "not promoted: the interval's lower end, +0.0 %, does not clear" in refused.err
    assert gate_of(policy) == {}
    forced = fugu(f"{command} --force")
    assert forced.status == 0
    assert "by force: the interval's lower end" in forced.out
    assert gate_of(policy)["forced"] is True
    assert "does not clear the best single worker 'handyman'" in str(gate_of(policy)["objection"])


def test_a_head_is_not_promoted_on_what_it_was_trained_on(fugu: Fugu, trained: Trained) -> None:
    """The splits that a head has learnt from prove nothing about it: exit 3, however high its gain there."""
    for split in ("train", "validation"):
        said = fugu(
            f"eval --policy {trained.policy} --data {trained.data} --cache {trained.cache} --promote --split {split}"
        )
        assert said.status == 3
        assert f"heads are trained on splits named '{split}'" in said.err


def test_force_alone_is_wrong_use(fugu: Fugu) -> None:
    """--force without --promote forces nothing: it ends with 2."""
    said = fugu("eval --policy p --data d --force")
    assert said == Said(2, "", "fugu: --force goes with --promote\n")


def test_another_format_of_picture_is_refused_by_name(fugu: Fugu, trained: Trained) -> None:
    """--plot draws .svg; a format that nobody can draw ends with 2 and lists those there are."""
    command = f"eval --policy {trained.policy} --data {trained.data} --cache {trained.cache} --plot"
    assert fugu(f"{command} picture.svg").status == 0
    assert Path("picture.svg").read_text().startswith("<?xml")
    said = fugu(f"{command} picture.txt")
    assert said.status == 2
    assert "picture.txt" in said.err


# The process as a whole


def test_a_reader_that_goes_away_ends_the_command_quietly(fugu: Fugu, tmp_path: Path) -> None:
    """`fugu runs list --json | head -1` neither complains nor leaves a traceback."""
    for _ in range(2):
        fugu("ask --model hasty 'What is 1 + 1?'", "--pool", HOME)
    process = start("runs", "list", "--json", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 141
    assert error == ""


def test_a_fault_of_ours_leaves_a_trace(fugu: Fugu, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no `FuguError` is a bug: it is not dressed up, its traceback reaches whoever can mend it."""
    monkeypatch.setattr("torafugu.cli.train.load_tasks", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fugu("profile --out p")


def test_linear_algebra_runs_on_one_thread(tmp_path: Path) -> None:
    """The command keeps numpy to one thread, unless told otherwise: else weights would hang on the number of cores."""
    code = (
        "import sys; from torafugu.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "import numpy; from threadpoolctl import threadpool_info\n"
        "print({pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'blas'})"
    )
    clean = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    ran = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "{1}"
