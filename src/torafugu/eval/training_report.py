"""One page about one training run: `report.html` beside the files that the run wrote.

It reads `run.json` (needed), `card.json`, `metrics.jsonl` and `eval.json`, and shows what they say: the verdict and the
alarms first. What is missing is said to be missing, what is not understood stands under "Raw", and nothing is measured
here (alarms are looked for where the run recorded none). The page stands alone: no scripts, nothing loaded. Rows of
`metrics.jsonl` are told apart by `stage`; one with a generation, a step or an iteration is a point of a curve.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..types import Json
from .diagnostics import alarms, split_evolutions
from .svg import STYLE, Bar, Series, bar_chart, escape_text, histogram, line_chart, share_bar

__all__ = ["write_training_report"]

_CANDIDATE_STAGES = ("candidate", "judge")
_SUMMARY_STAGES = ("evolution", "validation", "final")
"""A single row of these, without a generation, is shown as it is."""
_NUMERIC = re.compile(r"[-+$\[]?\d[\d.,+e\s±%\]-]*$|unknown$")
_X_KEYS = ("generation", "step", "iteration")
_EVAL_SHOWN = {
    *("n", "split", "commit", "command", "unscored", "accuracy", "best_single", "oracle", "gain", "gain_by_family"),
    *("gap_closed", "calls_mean", "cost_usd", "cost_basis", "best_single_cost_usd", "workers", "baselines"),
    *("baselines_not_measured", "shares", "routing_entropy_bits", "by_category", "diagnostics", "alarms"),
}
"""Keys of `eval.json` that a part of the page shows in full."""
_BARS = 20
"""Of a chart by family; the table beside it holds all."""
_PAGE_STYLE = """
:root{--paper:#fff;--card:#f6f7f9;--bad:#b3121d;--bad-paper:#fdecec;--good:#1d6b34}
@media screen and (prefers-color-scheme:dark){:root{--paper:#15181c;--card:#1e2227;--bad:#ff8f8f;--bad-paper:#3a1c1f;
--good:#7fce8f}}
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;
padding:0 1em}
h1{font-size:1.5em;margin:0}h2{font-size:1.15em;margin:2em 0 .5em;border-bottom:1px solid var(--grid)}
table{border-collapse:collapse;margin:.7em 0;font-size:13px;display:block;overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0;border-bottom:1px solid var(--grid);
overflow-wrap:anywhere}
td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}tr.chosen{font-weight:600}
.soft,.missing{color:var(--soft)}.missing{font-style:italic}.verdict{font-size:1.2em;background:var(--card);
padding:.7em 1em;border-radius:6px}.good{color:var(--good)}.bad{color:var(--bad)}
ul.alarms{background:var(--bad-paper);color:var(--bad);border-left:4px solid var(--bad);padding:.6em 1em .6em 2em}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);padding:.7em;font-size:12px}figure{margin:1em 0}
@media print{body{max-width:none;margin:0}figure,tr{break-inside:avoid}h2{break-after:avoid}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The files of a training folder. None: there is no such file."""

    name: str
    run: Mapping[str, Json]
    card: Mapping[str, Json] | None
    measured: Mapping[str, Json] | None
    rows: Sequence[Mapping[str, Json]] | None
    is_cut: bool
    """The last row of the metrics was not written to its end."""

    def staged(self, *stages: str) -> list[Mapping[str, Json]]:
        return [row for row in self.rows or () if row.get("stage") in stages]


def write_training_report(folder: Path) -> Path:
    """Writes `folder/report.html` and returns its path.

    Raises:
        ConfigError: the folder holds no training run, one of its files is damaged, or the page cannot be written.
    """
    run = _read(folder)
    page, path = _page(run), folder / "report.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: the report cannot be written: {error}") from None
    return path


def _read(folder: Path) -> _Run:
    described = _read_object(folder / "run.json")
    if described is None:
        raise ConfigError(f"{folder}: no training run here: expected the file run.json that `fugu train` writes")
    rows, is_cut = _read_rows(folder / "metrics.jsonl")
    return _Run(
        name=folder.resolve().name,
        run=described,
        card=_read_object(folder / "card.json"),
        measured=_read_object(folder / "eval.json"),
        rows=rows,
        is_cut=is_cut,
    )


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _read_object(path: Path) -> Mapping[str, Json] | None:
    text = _read_text(path)
    return None if text is None else _parse(text, str(path))


def _parse(text: str, where: str) -> Mapping[str, Json]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}; it is as the training or evaluation left it?") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {str(value)[:60]!r}: expected a JSON object")
    return value


def _read_rows(path: Path) -> tuple[list[Mapping[str, Json]] | None, bool]:
    """(rows, whether the last one was cut): a run that was killed is the very one that one wants to read about."""
    text = _read_text(path)
    if text is None:
        return None, False
    lines = text.split("\n")
    is_cut = bool(lines.pop())  # every whole row ends with a newline
    return [_parse(line, f"{path}, line {k}") for k, line in enumerate(lines, 1) if line.strip()], is_cut


def _page(run: _Run) -> str:
    measured = run.measured or {}
    in_training = run.staged("diagnostics")
    held_out = _mapping(measured.get("diagnostics"))
    d = held_out or (in_training[-1] if in_training else {})
    of = "of the evaluation" if held_out else "of the training's own held-out questions, as last recorded"
    title = escape_text(f"Training report: {run.name}")
    body = [
        f"<h1>{title}</h1>",
        _verdict(run),
        _alarm_list(run, d),
        _section("What was trained on what", _provenance(run)),
        _section("Candidates judged", _candidates(run)),
        _section("Course of the training", _courses(run)),
        _section("Held-out measurement", _measurement(run.measured)),
        _section("What the policy does", _behaviour(d, of) + ("" if held_out else _selector_behaviour(measured))),
        _section("Raw", _raw(run, d)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{title}</title>\n<style>{STYLE}{_PAGE_STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _verdict(run: _Run) -> str:
    if run.card is None:
        return _say("verdict bad", "The training did not end: there is no card.json, so nothing here can be served.")
    if run.measured is None:
        return _say("verdict", "Not measured on held-out questions: there is no eval.json.") + _own_estimate(run.card)
    measured, gain = run.measured, _mapping(run.measured.get("gain"))
    policy, weights = str(_mapping(measured.get("policy")).get("id")), str(run.card.get("weights_sha256") or "")
    if weights[:12] not in policy:
        message = f"Not measured: eval.json is of {policy}, and the weights in this folder are {weights[:12]}."
        return _say("verdict bad", message) + _own_estimate(run.card)
    mean, low, high = (_number(gain.get(key)) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return _say("verdict", "No verdict: eval.json gives no gain with an interval.") + _own_estimate(run.card)
    single = f"the best single worker, {_mapping(measured.get('best_single')).get('worker')}"
    kind, claim = "", f"Does not beat {single}: the interval of its gain holds zero"
    if low > 0:
        kind, claim = "good", f"Beats {single}"
    elif high < 0:
        kind, claim = "bad", f"Does worse than {single}"
    split = measured.get("split")
    text = (
        f"{claim}: {_points(mean)} points, {_interval(low, high)}, on {measured.get('n')} questions of split {split}."
    )
    note = ""
    if split in ("train", "validation"):
        note = _say("bad", f"Split {split} is what heads are trained on: this is no held-out measurement.")
    return _say(f"verdict {kind}", text) + note + _gate(run.card)


def _gate(card: Mapping[str, Json]) -> str:
    gate = _mapping(card.get("gate"))
    if not gate.get("promoted"):
        return _say("soft", "Not promoted: `fugu eval --promote` marks a policy as fit to serve.")
    return _say("bad", f"Promoted by force: {gate.get('objection')}") if gate.get("forced") else _say("", "Promoted.")


def _own_estimate(card: Mapping[str, Json]) -> str:
    """What cross-fitting said; it chose the candidate too, so it is too kind."""
    metrics, found = _mapping(card.get("metrics")), []
    for kind in ("seen", "unseen"):
        gain, error = _number(metrics.get(f"{kind}_gain")), _number(metrics.get(f"{kind}_error"))
        if gain is not None:
            found.append(f"on {kind} families {_points(gain)}" + ("" if error is None else f" ± {error * 100:.1f}"))
    if not found:
        return _missing("The card holds no estimate of the training's own either.")
    text = f"The training's own cross-fitted estimate, in points over the best single worker: {', '.join(found)}"
    return _say("soft", f"{text} (of the chosen candidate, so it is kind).")


def _alarm_list(run: _Run, d: Mapping[str, Json]) -> str:
    logged = run.staged("alarms")
    last = [row["alarms"] for row in logged if "alarms" in row][-1:]  # of those logged every few generations
    lists = [*last, [row for row in logged if "code" in row], (run.measured or {}).get("alarms")]
    found = [_mapping(alarm) for part in lists for alarm in _sequence(part)]
    is_recorded = bool(logged) or "alarms" in (run.measured or {})
    evolutions = [row for row in run.rows or () if "sigma" in row and "generation" in row]
    note = "as recorded"
    if not is_recorded:
        found = [msgspec.to_builtins(alarm) for alarm in alarms(d, generations=evolutions)]
        read = [what for what, rows in (("what the policy does", d), ("the evolution's course", evolutions)) if rows]
        note = f"none were recorded, so they were looked for here, in {' and '.join(read) or 'nothing: no data'}"
    if not found:
        return _say("soft", f"No alarms ({note}).")
    items = "".join(f"<li><b>{escape_text(a.get('code'))}</b>: {escape_text(a.get('message'))}</li>" for a in found)
    return f'<ul class="alarms">{items}</ul>' + _say("soft", f"Alarms: {note}.")


def _provenance(run: _Run) -> str:
    card = run.card or {}
    training = _mapping(card.get("training"))
    data = _mapping(run.run.get("data"))
    commit = str(run.run.get("commit") or "unknown: not a source tree")
    workers = [_mapping(worker) for worker in _sequence(card.get("workers"))]
    rows = [
        ("policy", " ".join(str(card[key]) for key in ("kind", "weights_sha256") if key in card) or None),
        ("encoder", card.get("encoder")),
        ("workers", [f"{w.get('id')} ({w.get('model')})" for w in workers] or data.get("workers")),
        ("data", data.get("name")),
        ("datasets", data.get("datasets")),
        ("questions", training.get("questions") or data.get("questions")),
        ("chosen candidate", training.get("candidate")),
        ("seed", training.get("seed", _mapping(run.run.get("config")).get("seed"))),
        ("command", " ".join(map(str, _sequence(run.run.get("command")))) or None),
        ("commit", commit + (" (the tree differed from it)" if commit.endswith("-dirty") else "")),
        ("python", run.run.get("python")),
        ("packages", run.run.get("packages")),
        ("seconds", training.get("seconds")),
    ]
    missing = "" if run.card is not None else _missing("No card.json: the training did not end.")
    everything = list(_flatten({"run": run.run, "card": card}))
    return (
        missing
        + _table(("", ""), [(name, "missing" if value is None else _plain(value)) for name, value in rows])
        + f"<details><summary>All of run.json and card.json</summary>{_table(('key', 'value'), everything)}</details>"
    )


def _candidates(run: _Run) -> str:
    """Gains or rewards with their standard errors, then every other plain value that the rows have."""
    rows = run.staged(*_CANDIDATE_STAGES)
    if not rows:
        return _missing("No candidates on record.")
    chosen = _mapping((run.card or {}).get("training")).get("candidate")
    named = [str(row.get("candidate", row.get("name", "unnamed"))) for row in rows]
    held = [key for key in dict.fromkeys(k for row in rows for k in row) if key.startswith(("seen", "unseen"))]
    values = [key for key in held if not key.endswith("_error")]
    paired = {f"{_stem(key)}_error" for key in values}
    special = {"stage", "candidate", "name", "chosen", *values, *(paired & set(held))}
    rest = [k for k in dict.fromkeys(k for row in rows for k, v in row.items() if _is_plain(v)) if k not in special]
    picked = {k for k, row in enumerate(rows) if row.get("chosen", named[k] == chosen)}
    table = [
        (
            named[k],
            *(_with_error(key, row.get(key), row.get(f"{_stem(key)}_error")) for key in values),
            *(_plain(row.get(key)) for key in rest),
            "chosen" if k in picked else "",
        )
        for k, row in enumerate(rows)
    ]
    heads = ("candidate", *(f"{key.replace('_', ' ')}, points ± standard error" for key in values), *rest, "")
    note = "" if picked else _missing("Which of them was chosen is not on record.")
    return note + _table(heads, table, chosen=picked)


def _stem(key: str) -> str:
    return key.removesuffix("_gain").removesuffix("_reward")


def _with_error(key: str, value: Json, error: Json) -> str:
    number, spread = _number(value), _number(error)
    if number is None:
        return "unknown"
    text = _points(number) if key.endswith("_gain") else f"{number * 100:.1f}"
    return text if spread is None else f"{text} ± {spread * 100:.1f}"


def _courses(run: _Run) -> str:
    if run.rows is None:
        return _missing("No metrics.jsonl.")
    parts = [_missing("The last row of metrics.jsonl was cut off, and is left out.")] if run.is_cut else []
    stages: dict[str, list[Mapping[str, Json]]] = {}
    for row in run.rows:
        if _is_point(row):
            stages.setdefault(str(row.get("stage")), []).append(row)
    for stage, rows in stages.items():
        parts.append(_course(stage, rows))
    if not stages:
        parts.append(_missing("No curves on record: no row has a generation, a step or an iteration."))
    for row in run.rows:
        if row.get("stage") in _SUMMARY_STAGES and not _is_point(row):
            values = [(key, _plain(value)) for key, value in row.items() if key != "stage"]
            parts.append(f"<h3>{escape_text(row['stage'])}</h3>" + _table(("", ""), values))
    return "".join(parts)


def _is_point(row: Mapping[str, Json]) -> bool:
    return _find_x(row) is not None and row.get("stage") not in _CANDIDATE_STAGES


def _find_x(row: Mapping[str, Json]) -> str | None:
    return next((key for key in _X_KEYS if _number(row.get(key)) is not None), None)


def _course(stage: str, rows: Sequence[Mapping[str, Json]]) -> str:
    """A chart of the rewards together, and one of each other number. Runs that follow each other are lines apart."""
    x = _find_x(rows[0]) or _X_KEYS[0]
    runs = split_evolutions({**row, "generation": row.get(x)} for row in rows)
    keys = [
        k for k in dict.fromkeys(k for row in rows for k in row) if any(_number(row.get(k)) is not None for row in rows)
    ]
    keys = [key for key in keys if key not in _X_KEYS and not (stage == "diagnostics" and key.startswith("left_out"))]
    rewards = [key for key in keys if key.startswith("reward") and not key.endswith("std")]
    groups = ([rewards] if rewards else []) + [[key] for key in keys if key not in rewards]

    def lines(group: list[str]) -> list[Series]:
        return [
            Series(
                name=key if len(runs) == 1 else f"{key}, run {k}",
                points=[(g, _number(row.get(key))) for row in run if (g := _number(row["generation"])) is not None],
            )
            for key in group
            for k, run in enumerate(runs, 1)
        ]

    charts = [_figure(line_chart(lines(group), title=f"{stage}: {', '.join(group)}", x_label=x)) for group in groups]
    if stage == "diagnostics":  # a score of numbers: there for those who look for one
        return f"<details><summary>Course of all diagnostics</summary>{''.join(charts)}</details>"
    return "".join(charts)


def _measurement(measured: Mapping[str, Json] | None) -> str:
    if measured is None:
        return _missing("No eval.json: `fugu eval --policy DIR --data DIR --json DIR/eval.json` writes it.")
    single = _mapping(measured.get("best_single"))
    gain, families = _mapping(measured.get("gain")), _mapping(measured.get("gain_by_family"))
    ours, base = _number(measured.get("accuracy")), _number(single.get("accuracy"))
    ends = [None if base is None or (g := _number(gain.get(k))) is None else base + g for k in ("low", "high")]
    bars = [
        Bar(label=str(name), value=_number(value), text=_percent(value))
        for group in (measured.get("workers"), measured.get("baselines"))
        for name, value in _mapping(group).items()
    ]
    bars.append(
        Bar(label="this policy", value=ours, text=_percent(ours), low=ends[0], high=ends[1], is_ours=True),
    )
    bars.append(Bar(label="oracle", value=_number(measured.get("oracle")), text=_percent(measured.get("oracle"))))
    bars.sort(key=lambda bar: -1.0 if bar.value is None else bar.value)
    data = _mapping(measured.get("data"))
    facts = [
        ("data", f"{data.get('name')}, split {measured.get('split')}, {measured.get('n')} questions"),
        ("not scored", _plain(_mapping(measured.get("unscored")).get("count"))),
        ("accuracy", _percent(ours)),
        ("best single worker", f"{single.get('worker')}: {_percent(base)}"),
        ("gain, points", f"{_points(gain.get('mean'))} {_interval(gain.get('low'), gain.get('high'))}"),
        (
            "interval by families",
            f"{_interval(families.get('low'), families.get('high'))} of {families.get('families')}",
        ),
        (
            "oracle, and share of the gap closed",
            f"{_percent(measured.get('oracle'))}, {_percent(measured.get('gap_closed'))}",
        ),
        ("calls per question", _decimal(measured.get("calls_mean"))),
        ("basis of the cost", _plain(measured.get("cost_basis"))),
        ("cost", f"{_usd(measured.get('cost_usd'))} (best single {_usd(measured.get('best_single_cost_usd'))})"),
        ("measured by", f"{' '.join(map(str, _sequence(measured.get('command'))))}, commit {measured.get('commit')}"),
    ]
    note = "Whiskers: the interval of the gain, drawn from the best single worker."
    not_measured = [(name, _plain(why)) for name, why in _mapping(measured.get("baselines_not_measured")).items()]
    return (
        _table(("", ""), facts)
        + _figure(bar_chart(bars, title="accuracy"), note)
        + (_table(("not measured", "why"), not_measured) if not_measured else "")
    )


def _behaviour(d: Mapping[str, Json], of: str) -> str:
    if not d:
        return _missing("No diagnostics on record.")
    parts = [_say("soft", f"Diagnostics {of}.")]
    known = [(label, write(d[key])) for key, (label, write) in _NUMBERS.items() if key in d]
    unknown = [label for key, (label, _) in _NUMBERS.items() if key not in d]
    parts.append(_table(("", ""), known))
    if unknown:
        parts.append(_missing(f"Not on record: {', '.join(unknown)}."))
    never = _sequence(d.get("workers/never_used"))
    if never:
        parts.append(_say("", f"Workers never called: {', '.join(map(str, never))}."))
    for key, title in (("share/calls", "calls"), ("share/answers", "answers"), ("share/roles", "roles of calls")):
        parts.append(_shares(_mapping(d.get(key)), title))
    for key, label in (("calls/histogram", "calls"), ("turns/histogram", "turns")):
        counts = [(str(k), int(n)) for k, v in _mapping(d.get(key)).items() if (n := _number(v)) is not None]
        parts.append(_figure(histogram(counts, title=f"questions by {label}", x_label=f"{label} of one question")))
    parts += [_agreement(d), _by_group(d.get("regret/by_family"), "family")]
    parts.append(
        f"<details><summary>By category</summary>{_by_group(d.get('regret/by_category'), 'category')}</details>"
    )
    return "".join(parts)


def _selector_behaviour(measured: Mapping[str, Json]) -> str:
    """What an evaluation without diagnostics holds."""
    if "shares" not in measured:
        return ""
    entropy = f"Routing entropy {_decimal(measured.get('routing_entropy_bits'))} bits."
    return (
        _say("", entropy)
        + _shares(_mapping(measured["shares"]), "answers, of the evaluation")
        + _by_group(measured.get("by_category"), "category")
    )


def _shares(shares: Mapping[str, Json], title: str) -> str:
    parts = [(str(name), share) for name, value in shares.items() if (share := _number(value)) is not None]
    if not parts:
        return _missing(f"Shares of {title}: not on record.")
    rows = [(name, _percent(share)) for name, share in sorted(parts, key=lambda part: -part[1])]
    return _figure(share_bar(parts, title=f"shares of {title}")) + _table(("", "share"), rows)


def _agreement(d: Mapping[str, Json]) -> str:
    rows = [_mapping(row) for row in _sequence(d.get("accuracy/by_agreement"))]
    if not rows:
        return _missing("Accuracy by agreement: not on record.")
    bars = [
        Bar(
            label=f"{row.get('agreement')} of {row.get('asked')} agree",
            value=_number(row.get("accuracy")),
            text=f"{_percent(row.get('accuracy'))} (n = {row.get('n')})",
            low=_number(row.get("low")),
            high=_number(row.get("high")),
        )
        for row in rows
    ]
    return _figure(bar_chart(bars, title="accuracy by agreement"), "Whiskers: 95 % Wilson interval.")


def _by_group(groups: Json, label: str) -> str:
    rows = sorted(
        ((str(name), _mapping(row)) for name, row in _mapping(groups).items()),
        key=lambda item: -(_regret(item[1]) or 0.0) * (_number(item[1].get("n")) or 0.0),
    )
    if not rows:
        return _missing(f"Regret by {label}: not on record.")
    bars = [
        Bar(label=name, value=_regret(row), text=f"{_percent(_regret(row))} (n = {_plain(row.get('n'))})")
        for name, row in rows[:_BARS]
    ]
    table = [
        (
            name,
            _plain(row.get("n")),
            *(_percent(row.get(key)) for key in ("accuracy", "best_single", "oracle")),
            _percent(_regret(row)),
        )
        for name, row in rows
    ]
    heads = (label, "n", "accuracy", "best single", "oracle", "regret")
    note = (
        f"The {_BARS} of {len(rows)} that lose most questions." if len(rows) > _BARS else "Most lost questions first."
    )
    chart = _figure(bar_chart(bars, title=f"regret to the best worker per question, by {label}"), note)
    return chart + _table(heads, table)


def _regret(row: Mapping[str, Json]) -> float | None:
    given, ours, oracle = (_number(row.get(key)) for key in ("regret", "accuracy", "oracle"))
    if given is not None:
        return given
    return None if ours is None or oracle is None else oracle - ours


def _raw(run: _Run, d: Mapping[str, Json]) -> str:
    """What no part above shows."""
    left: dict[str, Json] = {}
    if rest := {key: value for key, value in (run.measured or {}).items() if key not in _EVAL_SHOWN}:
        left["eval.json"] = rest
    if rest := {key: value for key, value in d.items() if key not in _DIAGNOSTICS_SHOWN}:
        left["diagnostics"] = rest
    if rows := [rest for row in run.rows or () if row is not d and (rest := _unshown(row))]:
        left["metrics.jsonl"] = rows
    if not left:
        return _say("soft", "Everything in the files is shown above.")
    text = escape_text(json.dumps(left, indent=1, ensure_ascii=False))
    return f"<details><summary>What no part above shows</summary><pre>{text}</pre></details>"


def _unshown(row: Mapping[str, Json]) -> dict[str, Json]:
    """What is left of a row of the metrics; with its stage, where there is anything."""
    stage, rest = row.get("stage"), dict(row)
    if stage in _CANDIDATE_STAGES:
        rest = {key: value for key, value in row.items() if not _is_plain(value)}
    elif _is_point(row):
        rest = {key: value for key, value in row.items() if _number(value) is None and key != "stage"}
    elif stage in _SUMMARY_STAGES or (stage == "alarms" and ("alarms" in row or "code" in row)):
        rest = {}
    return {"stage": stage, **rest} if rest else {}


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape_text(title)}</h2>{content}</section>"


def _say(kind: str, text: str) -> str:
    return f'<p class="{kind}">{escape_text(text)}</p>'


def _missing(text: str) -> str:
    return _say("missing", text)


def _figure(chart: str, note: str = "") -> str:
    return f"<figure>{chart}{_say('soft', note) if note else ''}</figure>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, chosen: Collection[int] = ()) -> str:
    """All cells are text. Columns past the first that hold numbers are set to the right."""
    lines = []
    if any(heads):
        lines.append("<tr>" + "".join(f"<th>{escape_text(head)}</th>" for head in heads) + "</tr>")
    for k, row in enumerate(rows):
        cells = [
            f"<td{' class=number' if place and _NUMERIC.match(cell) else ''}>{escape_text(cell)}</td>"
            for place, cell in enumerate(row)
        ]
        lines.append(f"<tr{' class=chosen' if k in chosen else ''}>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else ()


def _number(value: Json) -> float | None:
    """None for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)


def _is_plain(value: Json) -> bool:
    return not isinstance(value, dict | list)


def _plain(value: Json) -> str:
    """A value in a table: lists of plain values with commas, anything deeper as JSON."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(map(_is_plain, value)):
        return ", ".join(map(_plain, value))
    return str(value) if _is_plain(value) else ", ".join(f"{k}: {_plain(v)}" for k, v in _pairs(value))


def _pairs(value: Json) -> Iterable[tuple[str, Json]]:
    return value.items() if isinstance(value, dict) else ((str(k), item) for k, item in enumerate(value))


def _flatten(value: Json, path: str = "") -> Iterator[tuple[str, str]]:
    """("a.b", value) of nested objects, exactly as they stand."""
    for key, item in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(item, dict) and item:
            yield from _flatten(item, name)
        else:
            yield name, item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def _percent(value: Json) -> str:
    number = _number(value)
    return "unknown" if number is None else f"{number * 100:.1f} %"


def _points(value: Json) -> str:
    number = _number(value)
    return "unknown" if number is None else f"{number * 100:+.1f}"


def _interval(low: Json, high: Json) -> str:
    return f"[{_points(low)}, {_points(high)}]"


def _decimal(value: Json) -> str:
    number = _number(value)
    return "unknown" if number is None else f"{number:.2f}"


def _usd(value: Json) -> str:
    number = _number(value)
    return "unknown" if number is None else f"${number:.4g}"


_NUMBERS: Mapping[str, tuple[str, Callable[[Json], str]]] = {
    "n": ("questions", _plain),
    "left_out/unscored": ("left out: not scored", _plain),
    "left_out/no_outcome": ("left out: no worker's outcome known", _plain),
    "accuracy/mean": ("accuracy", _percent),
    "best_single/worker": ("best single worker", _plain),
    "best_single/accuracy": ("its accuracy", _percent),
    "oracle/accuracy": ("oracle", _percent),
    "gain/mean": ("gain, points", _points),
    "gain/standard_error": ("its standard error, points", _points),
    "oracle/gap_closed": ("share of the gap to the oracle closed", _percent),
    "regret/mean": ("regret to the best worker per question", _percent),
    "regret/best_single": ("regret of the best single worker", _percent),
    "entropy/calls_bits": ("entropy of all calls, bits", _decimal),
    "entropy/first_calls_bits": ("entropy of first calls, bits", _decimal),
    "entropy/answers_bits": ("entropy of answers, bits", _decimal),
    "entropy/per_question_bits": ("entropy given the question, bits", _decimal),
    "entropy/information_bits": ("what the question tells of the choice, bits", _decimal),
    "calls/mean": ("calls per question", _decimal),
    "calls/one_call_share": ("questions with one call", _percent),
    "turns/mean": ("turns per question", _decimal),
    "turns/limit": ("limit of turns", _plain),
    "turns/at_limit_share": ("questions that use all turns", _percent),
    "stop/accepted": ("ended by a verifier", _plain),
    "stop/limit": ("ended by a limit", _plain),
    "stop/accepted_share": ("share ended by a verifier", _percent),
    "stop/accepted_at_once_share": ("first answer accepted at once", _percent),
    "stop/no_answer_share": ("no answer", _percent),
    "stop/thinker_only_share": ("thinkers only", _percent),
    "accuracy/accepted": ("accuracy where accepted", _percent),
    "accuracy/not_accepted": ("accuracy where not accepted", _percent),
    "cost/usd_total": ("cost", _usd),
    "cost/usd_known": ("cost, as far as known", _usd),
    "cost/unknown": ("questions of unknown cost", _plain),
    "cost/usd_per_question": ("cost per question", _usd),
    "cost/best_single_usd_per_question": ("cost per question of the best single worker", _usd),
    "cost/ratio_to_best_single": ("times the best single worker's cost", _decimal),
}
"""Numbers of `diagnose`: how each is called, and written."""
_DIAGNOSTICS_SHOWN = {
    *("stage", "share/calls", "share/answers", "share/roles", "workers/never_used", "calls/histogram"),
    *("turns/histogram", "accuracy/by_agreement", "regret/by_family", "regret/by_category", *_X_KEYS, *_NUMBERS),
}
