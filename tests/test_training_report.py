"""The page about a training run: what it says is what the files say, whatever is in them; and its charts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from outcomes import Quiet, Subjects, read_rows, write_recorded, write_world
from torafugu.errors import ConfigError
from torafugu.eval.diagnostics import Turns, alarms, diagnose
from torafugu.eval.matrix import build_matrix
from torafugu.eval.report import evaluate
from torafugu.eval.svg import STYLE, Bar, Series, bar_chart, escape_text, histogram, line_chart, share_bar
from torafugu.eval.training_report import write_training_report
from torafugu.pool.recorded import create_recorded_pool, read_recorded
from torafugu.train.selector import SelectorConfig, train_selector
from torafugu.train.trainers import SepCMATrainer

HOSTILE = "\"><script>alert('1')</script>&amp;\x00\ud800 ]]>"
VOID = {"meta", "br", "hr", "img", "link", "input"}
DRAWN = {"svg", "text", "title", "line", "rect", "polyline", "circle"}


@dataclass
class Page(HTMLParser):
    """What a reader of the page sees, and whether its elements are closed in order."""

    tags: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str | None]] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    open: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            kind = dict(attrs).get("class") or ""
            self.open.append((tag, kind))
            self.classes.setdefault(kind, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        names = [name for name, _ in self.open]
        if "style" in names:
            return
        self.words.append(data)
        if "td" in names or "th" in names:
            self.rows[-1][-1] += data
        for kind in {kind for _, kind in self.open if kind}:
            self.classes[kind][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, name: str) -> list[str]:
        """The cells after the first of the first row that begins with `name`."""
        return next(row[1:] for row in self.rows if row and row[0] == name)


def read_page(folder: Path) -> Page:
    """Written, read, parsed to the end; its pictures are well-formed and it loads nothing."""
    path = write_training_report(folder)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(page.tags)
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "href", "onload", "onclick", "onerror"})
    assert "url(" not in html
    assert "@import" not in html
    assert set(re.findall(r"https?://[^\"'\s<]*", html)) <= {"http://www.w3.org/2000/svg"}
    for chart in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(chart)
    return page


def write_folder(folder: Path, rows: Iterable[Mapping[str, Any]] | None = None, **files: Any) -> Path:
    """`run.json` and the files named."""
    folder.mkdir(parents=True)
    for name, value in {"run": {"command": ["fugu", "train"], "config": {"seed": 5}}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@dataclass(frozen=True)
class Trained:
    policy: Path
    page: Page
    measured: dict[str, Any]
    card: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A real training run and evaluation of a selector, and its page."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_world(folder / "data", splits={"train": 48, "validation": 24, "test": 48})
    recorded, config = read_recorded(data), SelectorConfig(seed=3, evolution=SepCMATrainer(generations=3, popsize=4))
    policy, encoder = folder / "policy", Subjects()
    with threadpool_limits(1):
        train_selector(
            recorded, encoder, create_recorded_pool(recorded), policy, config=config, cache=None, report=Quiet()
        )
        measured = evaluate(policy, recorded, split="test", encoder=encoder, seed=0, cache=None, report=Quiet())
    (policy / "eval.json").write_text(json.dumps(measured))
    return Trained(policy, read_page(policy), measured, json.loads((policy / "card.json").read_text()))


def points(number: float) -> str:
    return f"{number * 100:+.1f}"


def test_the_verdict_is_the_evaluations(trained: Trained) -> None:
    """The gain over the best single worker with its interval stands before everything else, as `eval.json` has it."""
    gain = trained.measured["gain"]
    assert gain["low"] > 0
    (verdict,) = trained.page.classes["verdict good"]
    said = (
        f"{points(gain['mean'])} points, [{points(gain['low'])}, {points(gain['high'])}], on 48 questions of split test"
    )
    assert verdict == f"Beats the best single worker, handyman: {said}."
    first = trained.page.text.index("What was trained on what")
    assert trained.page.text.index("Beats the best") < first


@pytest.mark.parametrize(
    ("interval", "kind", "claim"),
    [
        (
            (0.02, 0.0, 0.04),
            "verdict ",
            "Does not beat the best single worker, ant: the interval of its gain holds zero",
        ),
        ((-0.02, -0.04, 0.0), "verdict ", "Does not beat the best single worker"),
        ((-0.02, -0.04, -0.01), "verdict bad", "Does worse than the best single worker, ant"),
        ((0.02, 0.01, 0.04), "verdict good", "Beats the best single worker, ant: +2.0 points, [+1.0, +4.0]"),
        ((0.02, None, None), "verdict", "No verdict: eval.json gives no gain with an interval."),
    ],
)
def test_verdicts(interval: tuple[float | None, ...], kind: str, claim: str, tmp_path: Path) -> None:
    """Only an interval clear of zero says that a policy beats the best single worker, or that it does worse."""
    measured = {
        "gain": dict(zip(("mean", "low", "high"), interval, strict=True)),
        "best_single": {"worker": "ant"},
        "policy": {"id": "fugu@0123456789ab"},
        "split": "test",
        "n": 50,
    }
    folder = write_folder(tmp_path / "run", card={"weights_sha256": "0123456789abcdef"}, eval=measured)
    assert claim in read_page(folder).classes[kind][0]


def test_an_evaluation_of_other_weights_is_no_verdict(trained: Trained, tmp_path: Path) -> None:
    """After another training, the old `eval.json` says nothing of the head in the folder; nor do training splits."""
    card = {**trained.card, "weights_sha256": "f" * 64}
    page = read_page(write_folder(tmp_path / "other", card=card, eval=trained.measured))
    old = trained.measured["policy"]["id"]
    assert page.classes["verdict bad"] == [
        f"Not measured: eval.json is of {old}, and the weights in this folder are {'f' * 12}."
    ]
    assert "Diagnostics of the evaluation" not in page.text
    accuracy = f"{100 * trained.measured['accuracy']:.1f} %"
    own = read_page(write_folder(tmp_path / "own", card=trained.card, eval=trained.measured))
    assert (accuracy in own.text, accuracy in page.text) == (True, False)
    seen = {**trained.measured, "split": "validation"}
    page = read_page(write_folder(tmp_path / "seen", card=trained.card, eval=seen))
    assert "Split validation is what heads are trained on" in page.text


def test_without_an_evaluation_the_trainings_own_estimate_stands(trained: Trained, tmp_path: Path) -> None:
    """No `eval.json`: it says so, and how to get one; the cross-fitted estimate is given as what it is."""
    page = read_page(write_folder(tmp_path / "run", card=trained.card))
    metrics = trained.card["metrics"]
    assert page.classes["verdict"] == ["Not measured on held-out questions: there is no eval.json."]
    assert f"on seen families {points(metrics['seen_gain'])} ± {metrics['seen_error'] * 100:.1f}" in page.text
    assert "fugu eval --policy DIR" in page.text


def test_a_run_that_died_is_told(tmp_path: Path) -> None:
    """Without a card the training did not end; a row that was cut off is left out, and that is said."""
    folder = write_folder(
        tmp_path / "run", [{"stage": "evolution", "generation": 0, "reward/mean": 0.25, "sigma": 1.0}]
    )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "evol')
    page = read_page(folder)
    assert page.classes["verdict bad"][0].startswith("The training did not end")
    assert "The last row of metrics.jsonl was cut off" in page.text
    assert "evolution: reward/mean" in page.text


def test_what_it_was_trained_on(trained: Trained) -> None:
    """Data, seed, commit, packages, questions and every hash of the files are on the page."""
    run, training = json.loads((trained.policy / "run.json").read_text()), trained.card["training"]
    assert trained.page.row("data") == [run["data"]["name"]]
    assert trained.page.row("seed") == ["3"]
    assert trained.page.row("questions") == ["train: 48, validation: 24"]
    assert trained.page.row("chosen candidate") == [training["candidate"]]
    assert trained.page.row("commit")[0].startswith(run["commit"] or "unknown")
    assert f"numpy: {np.__version__}" in trained.page.row("packages")[0]
    assert trained.page.row("run.data.sha256.outcomes.jsonl") == [run["data"]["sha256"]["outcomes.jsonl"]]
    assert trained.page.row("card.weights_sha256") == [trained.card["weights_sha256"]]


def test_every_candidate_is_listed(trained: Trained) -> None:
    """Each candidate with its gains and errors on seen and unseen families, as logged; the chosen one is marked."""
    judged = [row for row in read_rows(trained.policy / "metrics.jsonl") if row["stage"] == "judge"]
    assert len(judged) > 10
    for row in judged:
        shown = trained.page.row(str(row["candidate"]))
        for place, kind in enumerate(("seen", "unseen")):
            gain, error = float(str(row[f"{kind}_gain"])), float(str(row[f"{kind}_error"]))
            assert shown[place] == f"{points(gain)} ± {error * 100:.1f}"
        assert (shown[-1] == "chosen") == (row["candidate"] == trained.card["training"]["candidate"])


def test_the_evaluations_numbers(trained: Trained) -> None:
    """Accuracy of every worker and baseline, the oracle, and why something was not measured."""
    measured = trained.measured
    charts = " ".join(trained.page.words)
    for name, value in {**measured["workers"], **measured["baselines"], "oracle": measured["oracle"]}.items():
        assert name in charts
        assert ("unknown" if value is None else f"{value * 100:.1f} %") in charts
    assert trained.page.row("vote_5") == ["the pool has 4 workers"]
    assert trained.page.row("accuracy") == [f"{measured['accuracy'] * 100:.1f} %"]
    for worker, share in measured["shares"].items():
        assert [worker, f"{share * 100:.1f} %"] in trained.page.rows


def test_the_whisker_is_the_interval_of_the_gain(tmp_path: Path) -> None:
    """Our bar's whisker runs from the best single worker plus the gain's low end to it plus the high end."""
    measured = {
        "workers": {"ant": 0.4},
        "accuracy": 0.5,
        "best_single": {"worker": "ant", "accuracy": 0.4},
        "gain": {"mean": 0.1, "low": 0.05, "high": 0.15},
    }
    folder = write_folder(tmp_path / "run", eval=measured)
    chart = re.findall(r"<svg.*?</svg>", write_training_report(folder).read_text(), re.DOTALL)[0]
    start, *_ = (float(line.get("x1") or 0) for line in find(chart, "line"))
    whisker = find(chart, "line")[1]
    unit = float(find(chart, "rect")[0].get("width") or 0) / 0.4
    ends = [(float(whisker.get(end) or 0) - start) / unit for end in ("x1", "x2")]
    assert ends == pytest.approx([0.45, 0.55], abs=0.001)


def test_many_families_are_all_in_the_table(tmp_path: Path) -> None:
    """The chart has the twenty families that lose most questions, and says so; the table beside it has every one."""
    families = {f"family-{k}": {"n": k, "accuracy": 0.25, "oracle": 0.75, "regret": 0.5} for k in range(1, 31)}
    rows = [{"stage": "diagnostics", "n": 465, "regret/by_family": families}]
    page = read_page(write_folder(tmp_path / "run", rows))
    assert "The 20 of 30 that lose most questions." in page.text
    assert [name in page.text for name in ("50.0 % (n = 30)", "50.0 % (n = 11)", "50.0 % (n = 10)")] == [
        True,
        True,
        False,
    ]
    assert [row[0] for row in page.rows if row[0].startswith("family-")] == [f"family-{k}" for k in range(30, 0, -1)]


def coordinate(folder: Path, worker: str) -> dict[str, Any]:
    """Diagnostics of six episodes of a pool with this worker in it."""
    questions = [{"qid": str(i), "prompt": f"q {i}?", "split": "test", "family": worker[:9]} for i in range(6)]
    outcomes = [
        {
            "qid": str(i),
            "model": name,
            "correct": float((i % 3 == 0) == (name == worker)),
            "answer": "a",
            "cost_usd": 0.01,
        }
        for i in range(6)
        for name in (worker, "bee")
    ]
    matrix = build_matrix(read_recorded(write_recorded(folder, questions, outcomes)))
    turns = [
        Turns(
            calls=((worker, "worker"), ("bee", "verifier")),
            answered_by=worker,
            accepted=i > 0,
            turns=2 + i % 4,
            agreement=1 + i % 2,
            asked=2,
            score=float(i % 2),
            cost_usd=0.02,
        )
        for i in range(6)
    ]
    return diagnose(turns, matrix, ranking=(0, 1), turn_limit=5)


EVOLUTION = [
    {
        "stage": "evolution",
        "generation": g,
        "reward/mean": 0.5 + g / 100,
        "reward/max": 0.75,
        "sigma": 0.03,
        "reward/std": 0.1,
    }
    for g in range(5)
]


def test_a_coordinators_folder(tmp_path: Path) -> None:
    """Candidates, curves, shares, calls, agreement and regret of a coordinator, and its alarms in red, as logged."""
    d = coordinate(tmp_path / "data", "ant")
    told = msgspec.to_builtins(alarms({**d, "cost/ratio_to_best_single": 7.5}))
    rows = [
        {
            "stage": "candidate",
            "candidate": "supervised",
            "seen_reward": 0.71,
            "seen_error": 0.01,
            "unseen_reward": 0.655,
        },
        {"stage": "candidate", "candidate": "reinforce", "seen_reward": 0.73, "chosen": True, "calls": 2.5},
        *EVOLUTION,
        {"stage": "validation", "generation": 4, "reward/seen": 0.7},
        {"stage": "diagnostics", **d},
        {"stage": "alarms", "alarms": told},
    ]
    page = read_page(write_folder(tmp_path / "run", rows, card={"kind": "coordinator"}))
    assert page.row("supervised") == ["71.0 ± 1.0", "65.5", "unknown", ""]
    assert page.row("reinforce") == ["73.0", "unknown", "2.5", "chosen"]
    assert any(alarm["code"] == "cost" for alarm in told)
    for alarm in told:
        assert alarm["message"] in page.classes["alarms"][0]
    for title in ("evolution: reward/mean, reward/max", "evolution: sigma", "validation: reward/seen"):
        assert title in page.text
    assert page.row("accuracy") == ["50.0 %"]
    assert page.row("calls per question") == ["2.00"]
    assert page.row("entropy given the question, bits") == ["unknown"]
    assert ["bee", "50.0 %"] in page.rows
    assert ["thinker", "0.0 %"] in page.rows
    for row in d["accuracy/by_agreement"]:
        assert f"{row['agreement']} of 2 agree" in page.text
        assert f"{row['accuracy'] * 100:.1f} % (n = {row['n']})" in page.text
    assert ["ant", "6", "50.0 %", "33.3 %", "100.0 %", "50.0 %"] in page.rows
    assert "50.0 % (n = 6)" in page.text
    assert "Everything in the files is shown above." in page.text


def test_of_many_candidates_the_best_are_listed(tmp_path: Path) -> None:
    """The first forty, the chosen one wherever it stands, and how many more there are."""
    rows = [{"stage": "candidate", "candidate": f"start {k}", "seen_gain": -k / 100} for k in range(60)]
    page = read_page(write_folder(tmp_path / "run", rows, card={"training": {"candidate": "start 50"}}))
    listed = [row for row in page.rows if row[0].startswith("start ")]
    assert [row[0] for row in listed] == [*(f"start {k}" for k in range(40)), "start 50"]
    assert [row[0] for row in listed if row[-1] == "chosen"] == ["start 50"]
    assert "19 more in metrics.jsonl." in page.text


def test_diagnostics_of_the_evaluation_come_first(tmp_path: Path) -> None:
    """Where both are there, held-out diagnostics are shown, and the training's own stand in the raw part."""
    d = coordinate(tmp_path / "data", "ant")
    rows = [{"stage": "diagnostics", **d, "calls/mean": 1.25}]
    page = read_page(write_folder(tmp_path / "run", rows, card={}, eval={"diagnostics": {**d, "calls/mean": 4.5}}))
    assert ["calls per question", "4.50"] in page.rows
    assert ["calls per question", "1.25"] not in page.rows
    assert '"calls/mean": 1.25' in page.text


def test_alarms_that_nobody_recorded_are_looked_for(tmp_path: Path) -> None:
    """A run whose files hold no alarms is looked at here, and the page says so and at what; with none, it says that."""
    broken = [{**row, "sigma": 0.03 * 50 ** row["generation"]} for row in EVOLUTION]
    page = read_page(write_folder(tmp_path / "broken", broken, card={}))
    assert "sigma_explosion" in page.classes["alarms"][0]
    assert "none were recorded, so they were looked for here, in the evolution's course" in page.text
    page = read_page(write_folder(tmp_path / "sound", EVOLUTION, card={}))
    assert "alarms" not in page.classes
    assert "No alarms (none were recorded" in page.text
    page = read_page(write_folder(tmp_path / "quiet", [*broken, {"stage": "alarms", "alarms": []}], card={}))
    assert "No alarms (as recorded)." in page.text


def test_missing_parts_are_said_to_be_missing(tmp_path: Path) -> None:
    """From `run.json` alone a page is made whose every part says that there is nothing."""
    page = read_page(write_folder(tmp_path / "run"))
    for words in (
        "No metrics.jsonl.",
        "No candidates on record.",
        "No eval.json",
        "No diagnostics on record.",
        "no card.json",
    ):
        assert words in page.text
    assert page.row("data") == ["missing"]
    assert page.row("seed") == ["5"]
    assert "svg" not in page.tags


def test_what_is_not_understood_stands_in_the_raw_part(tmp_path: Path) -> None:
    """Unknown stages and keys, and numbers that are none, are neither dropped nor a stumble."""
    rows = [
        {"stage": "curious", "thing": [1, {"two": 2}]},
        {"no stage": True},
        {"stage": "evolution", "generation": 0, "reward/mean": math.nan, "sigma": "wide", "note": "slow"},
        {"stage": "candidate", "candidate": "deep", "settings": {"depth": 77}},
        {"stage": "diagnostics", "n": 3, "share/calls": "everybody", "mood/index": 0.123},
        {"stage": "alarms", "odd": "bell"},
    ]
    measured = {"gain": "plenty", "workers": [1], "weather": "rain"}
    page = read_page(write_folder(tmp_path / "run", rows, card={"workers": "ant", "gate": []}, eval=measured))
    raw = page.text[page.text.index("What no part above shows") :]
    for words in (
        '"two": 2',
        '"no stage": true',
        '"note": "slow"',
        '"depth": 77',
        '"mood/index": 0.123',
        "bell",
        "rain",
    ):
        assert words in raw
    assert "No verdict" in page.text
    assert "NaN" in raw


def test_a_hostile_name_stays_a_name(tmp_path: Path) -> None:
    """Markup, quotes, control characters and half characters in any name or value end as text: no tag, no attribute."""
    d = coordinate(tmp_path / "data", HOSTILE.replace("\x00", "").replace("\ud800", "") + "x")
    d["share/calls"][HOSTILE] = 0.25
    rows = [
        {"stage": "candidate", "candidate": HOSTILE, "seen_gain": 0.1, HOSTILE: HOSTILE},
        *({**row, HOSTILE: 1.0, "stage": HOSTILE} for row in EVOLUTION),
        {"stage": "validation", HOSTILE: HOSTILE},
        {"stage": "diagnostics", **d, HOSTILE: HOSTILE},
        {"stage": "alarms", "alarms": [{"code": HOSTILE, "message": HOSTILE}]},
        {"stage": "strange", HOSTILE: [HOSTILE]},
    ]
    card = {"kind": HOSTILE, "workers": [{"id": HOSTILE, "model": HOSTILE}], "gate": {"promoted": True, "forced": 1}}
    measured = {
        "gain": {"mean": 0.1, "low": 0.05, "high": 0.2},
        "best_single": {"worker": HOSTILE, "accuracy": 0.5},
        "policy": {"id": HOSTILE},
        "workers": {HOSTILE: 0.5},
        "shares": {HOSTILE: 1.0},
        "by_category": {HOSTILE: {"n": 1, "accuracy": 0.5, "oracle": 1.0}},
        "baselines_not_measured": {HOSTILE: HOSTILE},
        HOSTILE: HOSTILE,
    }
    run = {"command": [HOSTILE], "config": {HOSTILE: HOSTILE}, "data": {"name": HOSTILE}}
    page = read_page(write_folder(tmp_path / "<i>run", rows, run=run, card=card, eval=measured))
    assert {"i", "script"}.isdisjoint(page.tags)
    assert page.text.count("alert('1')") > 20
    plain = {"html", "head", "body", "meta", "style", "title", "section", "h1", "h2", "h3", "p", "b", "ul", "li", "pre"}
    table = {"table", "tr", "td", "th", "details", "summary", "figure"}
    assert set(page.tags) <= plain | table | DRAWN


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """No `run.json`, or damaged files, are errors that name the file, and leave no page."""
    with pytest.raises(ConfigError, match=r"no training run here: expected the file run\.json"):
        write_training_report(tmp_path)
    with pytest.raises(ConfigError, match="no training run here"):
        write_training_report(tmp_path / "nowhere")
    folder = write_folder(tmp_path / "run", [{"stage": "judge"}])
    for name, content, message in (
        ("metrics.jsonl", b"{}\n{\n", r"metrics\.jsonl, line 2: not JSON"),
        ("card.json", b"[1]", r"card\.json: '\[1\]': expected a JSON object"),
        ("eval.json", b"\xff", r"eval\.json: cannot be read"),
    ):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            write_training_report(folder)
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
    assert not (folder / "report.html").exists()
    (folder / "report.html").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_training_report(folder)


def parse_chart(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def find(chart: str, tag: str) -> list[ElementTree.Element]:
    return list(parse_chart(chart).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def read_texts(chart: str) -> list[str]:
    return [text.text or "" for text in find(chart, "text")]


CHARTS = {
    "lines": lambda name: line_chart(
        [Series(name=name, points=[(0, 1.0), (1, None), (2, 2.0)])], title=name, x_label=name
    ),
    "bars": lambda name: bar_chart([Bar(label=name, value=0.5, text=name, low=0.4, high=0.6)], title=name),
    "shares": lambda name: share_bar([(name, 0.75), ("other", 0.25)], title=name),
    "histogram": lambda name: histogram([(name, 3)], title=name, x_label=name),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_charts_are_well_formed(kind: str) -> None:
    """Whatever the names, a chart is XML of its own with a title for those who cannot see it."""
    for name in ("plain", HOSTILE, "", "é" * 200):
        root = parse_chart(CHARTS[kind](name))
        assert root.get("aria-label") == re.sub("[\x00\ud800]", "\ufffd", name)
        assert {element.tag.partition("}")[2] for element in root.iter()} <= DRAWN


@pytest.mark.parametrize(
    "chart",
    [
        line_chart([], title="t", x_label="x"),
        line_chart([Series(name="a", points=[(0, None), (1, math.nan), (2, math.inf)])], title="t", x_label="x"),
        bar_chart([], title="t"),
        bar_chart([Bar(label="a", value=None, text="unknown")], title="t"),
        share_bar([("a", 0.0), ("b", math.nan)], title="t"),
        histogram([], title="t", x_label="x"),
        histogram([("0", 0)], title="t", x_label="x"),
    ],
)
def test_a_chart_of_nothing_says_so(chart: str) -> None:
    """Without anything known, a chart says "no data"."""
    assert read_texts(chart)[-1] == "no data"


def test_an_unknown_point_is_a_gap() -> None:
    """A line is broken where a value is unknown; a point between two gaps is a dot; two lines have two colours."""
    chart = line_chart(
        [
            Series(name="one", points=[(0, 1.0), (1, 2.0), (2, None), (3, 1.5), (4, math.nan), (5, 1.0), (6, 1.2)]),
            Series(name="two", points=[(0, 0.5), (6, 0.7)]),
        ],
        title="t",
        x_label="x",
    )
    lines = find(chart, "polyline")
    assert [len((line.get("points") or "").split()) for line in lines] == [2, 2, 2]
    assert len(find(chart, "circle")) == 1
    assert len({line.get("style") for line in lines}) == 2
    assert {"one", "two", "x"} <= set(read_texts(chart))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.0, 1.0), {"0", "0.5", "1"}),
        ((0.61, 0.648), {"0.61", "0.62", "0.65"}),
        ((-3.0, 7.0), {"-5", "0", "5", "10"}),
        ((12345.0, 98765.0), {"0", "50000", "100000"}),
        ((0.5, 0.5), {"0.45", "0.5", "0.55"}),
        ((0.0, 0.0), {"-1", "0", "1"}),
        ((1e-30, 1e30), {"0", "1e+30"}),
        ((5e-324, 5e-324), set()),
    ],
)
def test_axes_have_round_numbers(values: tuple[float, float], ticks: set[str]) -> None:
    """Ticks are few, at round numbers, and enclose the line, also when all values are the same."""
    chart = line_chart([Series(name="a", points=list(enumerate(values)))], title="t", x_label="x")
    assert ticks <= set(read_texts(chart))
    assert len(find(chart, "line")) <= 8
    left, top, width, height = map(float, (parse_chart(chart).get("viewBox") or "").split())
    for point in (find(chart, "polyline")[0].get("points") or "").split():
        x, y = map(float, point.split(","))
        assert left <= x <= width
        assert top <= y <= height


def test_bars_are_as_long_as_their_values() -> None:
    """Twice the value is twice the bar, negative ones go to the other side of zero, whiskers span the interval."""
    bars = [
        Bar(label="a", value=0.25, text="25 %"),
        Bar(label="b", value=0.5, text="50 %", low=0.25, high=0.75, is_ours=True),
        Bar(label="c", value=-0.25, text="-25 %"),
        Bar(label="d", value=None, text="unknown"),
    ]
    chart = bar_chart(bars, title="t")
    a, b, c = find(chart, "rect")
    assert float(b.get("width") or 0) == pytest.approx(2 * float(a.get("width") or 0), abs=0.2)
    assert float(c.get("x") or 0) + float(c.get("width") or 0) == pytest.approx(float(a.get("x") or 0), abs=0.2)
    assert b.get("style") != a.get("style")
    whisker = find(chart, "line")[1]
    span = float(whisker.get("x2") or 0) - float(whisker.get("x1") or 0)
    assert span == pytest.approx(float(b.get("width") or 0), abs=0.2)
    assert "unknown" in read_texts(chart)


def test_shares_fill_the_bar() -> None:
    """Parts are as wide as their shares of the sum, largest first; past eight the rest is one part."""
    parts = [rect for rect in find(share_bar([("a", 1), ("b", 3)], title="t"), "rect") if rect.get("height") == "26.0"]
    assert [float(rect.get("width") or 0) for rect in parts] == pytest.approx([678 * 0.75 - 1, 678 * 0.25 - 1], abs=0.1)
    chart = share_bar([(f"w{k}", 1.0) for k in range(20)], title="t")
    assert "13 others 65.0 %" in read_texts(chart)
    assert len([rect for rect in find(chart, "rect") if rect.get("height") == "26.0"]) == 8


def test_columns_are_as_high_as_their_counts() -> None:
    """A histogram's columns are in proportion, each with its count."""
    chart = histogram([("1", 10), ("2", 5), ("3", 0)], title="t", x_label="calls")
    assert [float(rect.get("height") or 0) for rect in find(chart, "rect")] == [116, 58, 0]
    assert {"10", "5", "0", "calls"} <= set(read_texts(chart))


def test_every_colour_is_defined_for_light_and_dark() -> None:
    """The charts use only variables that the style defines, once for light pages and once for dark ones."""
    used = set(re.findall(r"var\((--\w+),", "".join(make("a") for make in CHARTS.values())))
    assert {"--ink", "--soft", "--s0"} <= used
    for name in used:
        light, dark = re.findall(rf"{name}:(#\w{{6}});", STYLE)
        assert light != dark


def test_text_is_safe_everywhere() -> None:
    """Markup and quotes are escaped, and what neither XML nor UTF-8 can hold is replaced."""
    assert escape_text("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"
    assert escape_text("\x00\x1b\ud800\ufffe ok\t\U0001f600") == "\ufffd\ufffd\ufffd\ufffd ok\t\U0001f600"
    assert escape_text(None) == "None"
