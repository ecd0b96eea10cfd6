"""One page about one training run: `report.html` beside the files that the run wrote.

It reads `run.json` (needed), `card.json`, `metrics.jsonl` and `eval.json`, and shows what they say: the verdict and the
alarms first. What is missing is said to be missing, what is not understood stands under "Raw", and nothing is measured
here (alarms are looked for where the run recorded none). The page stands alone: no scripts, nothing loaded. Rows of
`metrics.jsonl` are told apart by `stage`; one with a generation, a step or an iteration is a point of a curve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..types import Json
from .diagnostics import alarms, split_evolutions
from .page import (
    flatten,
    is_plain,
    read_number,
    read_object,
    read_rows,
    render_figure,
    render_missing,
    render_page,
    render_section,
    render_table,
    render_text,
    show_value,
)
from .svg import Bar, Series, bar_chart, escape_text, histogram, line_chart, share_bar

__all__ = ["write_training_report"]

_CANDIDATE_STAGES = ("candidate", "judge")
_MAX_CANDIDATES = 40
_SUMMARY_STAGES = ("evolution", "validation", "final")
"""A single row of these, without a generation, is shown as it is."""
_X_KEYS = ("generation", "step", "iteration")
_EVAL_SHOWN = {
    *("n", "split", "commit", "command", "unscored", "accuracy", "best_single", "oracle", "gain", "gain_by_family"),
    *("gap_closed", "calls_mean", "cost_usd", "cost_basis", "best_single_cost_usd", "workers", "baselines"),
    *("baselines_not_measured", "shares", "routing_entropy_bits", "by_category", "diagnostics", "alarms"),
}
"""Keys of `eval.json` that a part of the page shows in full."""
_BARS = 20
"""Of a chart by family; the table beside it holds all."""


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

    @property
    def is_measured(self) -> bool:
        """`eval.json` is of the head in this folder."""
        weights = str((self.card or {}).get("weights_sha256") or "")
        policy = str(_mapping((self.measured or {}).get("policy")).get("id"))
        return self.measured is not None and weights[:12] in policy

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
    described = read_object(folder / "run.json")
    if described is None:
        raise ConfigError(f"{folder}: no training run here: expected the file run.json that `fugu train` writes")
    rows, is_cut = read_rows(folder / "metrics.jsonl")
    return _Run(
        name=folder.resolve().name,
        run=described,
        card=read_object(folder / "card.json"),
        measured=read_object(folder / "eval.json"),
        rows=rows,
        is_cut=is_cut,
    )


def _page(run: _Run) -> str:
    verdict = _verdict(run)
    if not run.is_measured:  # what another head measured is not this one's: the verdict says so, and that is all
        run = replace(run, measured=None)
    measured = run.measured or {}
    in_training = run.staged("diagnostics")
    held_out = _mapping(measured.get("diagnostics"))
    d = held_out or (in_training[-1] if in_training else {})
    of = "of the evaluation" if held_out else "of the training's own held-out questions, as last recorded"
    body = [
        verdict,
        _alarm_list(run, d),
        render_section("What was trained on what", _provenance(run)),
        render_section("Candidates judged", _candidates(run)),
        render_section("Course of the training", _courses(run)),
        render_section("Held-out measurement", _measurement(run.measured)),
        render_section("What the policy does", _behaviour(d, of) + ("" if held_out else _selector_behaviour(measured))),
        render_section("Raw", _raw(run, d)),
    ]
    return render_page(f"Training report: {run.name}", body)


def _verdict(run: _Run) -> str:
    if run.card is None:
        return render_text(
            "verdict bad", "The training did not end: there is no card.json, so nothing here can be served."
        )
    if run.measured is None:
        return render_text("verdict", "Not measured on held-out questions: there is no eval.json.") + _own_estimate(
            run.card
        )
    measured, gain = run.measured, _mapping(run.measured.get("gain"))
    if not run.is_measured:
        policy, weights = _mapping(measured.get("policy")).get("id"), str(run.card.get("weights_sha256") or "")
        message = f"Not measured: eval.json is of {policy}, and the weights in this folder are {weights[:12]}."
        return render_text("verdict bad", message) + _own_estimate(run.card)
    mean, low, high = (read_number(gain.get(key)) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return render_text("verdict", "No verdict: eval.json gives no gain with an interval.") + _own_estimate(run.card)
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
        note = render_text("bad", f"Split {split} is what heads are trained on: this is no held-out measurement.")
    return render_text(f"verdict {kind}", text) + note + _gate(run.card)


def _gate(card: Mapping[str, Json]) -> str:
    gate = _mapping(card.get("gate"))
    if not gate.get("promoted"):
        return render_text("soft", "Not promoted: `fugu eval --promote` marks a policy as fit to serve.")
    return (
        render_text("bad", f"Promoted by force: {gate.get('objection')}")
        if gate.get("forced")
        else render_text("", "Promoted.")
    )


def _own_estimate(card: Mapping[str, Json]) -> str:
    """What cross-fitting said; it chose the candidate too, so it is too kind."""
    metrics, found = _mapping(card.get("metrics")), []
    for kind in ("seen", "unseen"):
        gain, error = read_number(metrics.get(f"{kind}_gain")), read_number(metrics.get(f"{kind}_error"))
        if gain is not None:
            found.append(f"on {kind} families {_points(gain)}" + ("" if error is None else f" ± {error * 100:.1f}"))
    if not found:
        return render_missing("The card holds no estimate of the training's own either.")
    text = f"The training's own cross-fitted estimate, in points over the best single worker: {', '.join(found)}"
    return render_text("soft", f"{text} (of the chosen candidate, so it is kind).")


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
        return render_text("soft", f"No alarms ({note}).")
    items = "".join(f"<li><b>{escape_text(a.get('code'))}</b>: {escape_text(a.get('message'))}</li>" for a in found)
    return f'<ul class="alarms">{items}</ul>' + render_text("soft", f"Alarms: {note}.")


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
    missing = "" if run.card is not None else render_missing("No card.json: the training did not end.")
    everything = list(flatten({"run": run.run, "card": card}))
    whole = render_table(("key", "value"), everything)
    return (
        missing
        + render_table(("", ""), [(name, "missing" if value is None else show_value(value)) for name, value in rows])
        + f"<details><summary>All of run.json and card.json</summary>{whole}</details>"
    )


def _candidates(run: _Run) -> str:
    """Gains or rewards with their standard errors, then every other plain value that the rows have."""
    rows = run.staged(*_CANDIDATE_STAGES)
    if not rows:
        return render_missing("No candidates on record.")
    chosen = _mapping((run.card or {}).get("training")).get("candidate")
    named = [str(row.get("candidate", row.get("name", "unnamed"))) for row in rows]
    held = [key for key in dict.fromkeys(k for row in rows for k in row) if key.startswith(("seen", "unseen"))]
    values = [key for key in held if not key.endswith("_error")]
    paired = {f"{_stem(key)}_error" for key in values}
    special = {"stage", "candidate", "name", "chosen", *values, *(paired & set(held))}
    rest = [k for k in dict.fromkeys(k for row in rows for k, v in row.items() if is_plain(v)) if k not in special]
    picked = {k for k, row in enumerate(rows) if row.get("chosen", named[k] == chosen)}
    shown = [k for k in range(len(rows)) if k < _MAX_CANDIDATES or k in picked]
    table = [
        (
            named[k],
            *(_with_error(key, rows[k].get(key), rows[k].get(f"{_stem(key)}_error")) for key in values),
            *(show_value(rows[k].get(key)) for key in rest),
            "chosen" if k in picked else "",
        )
        for k in shown
    ]
    heads = ("candidate", *(f"{key.replace('_', ' ')}, points ± standard error" for key in values), *rest, "")
    note = "" if picked else render_missing("Which of them was chosen is not on record.")
    left = len(rows) - len(shown)
    more = render_text("soft", f"{left} more in metrics.jsonl.") if left else ""
    return note + render_table(heads, table, chosen={at for at, k in enumerate(shown) if k in picked}) + more


def _stem(key: str) -> str:
    return key.removesuffix("_gain").removesuffix("_reward")


def _with_error(key: str, value: Json, error: Json) -> str:
    number, spread = read_number(value), read_number(error)
    if number is None:
        return "unknown"
    text = _points(number) if key.endswith("_gain") else f"{number * 100:.1f}"
    return text if spread is None else f"{text} ± {spread * 100:.1f}"


def _courses(run: _Run) -> str:
    if run.rows is None:
        return render_missing("No metrics.jsonl.")
    parts = [render_missing("The last row of metrics.jsonl was cut off, and is left out.")] if run.is_cut else []
    stages: dict[str, list[Mapping[str, Json]]] = {}
    for row in run.rows:
        if _is_point(row):
            stages.setdefault(str(row.get("stage")), []).append(row)
    for stage, rows in stages.items():
        parts.append(_course(stage, rows))
    if not stages:
        parts.append(render_missing("No curves on record: no row has a generation, a step or an iteration."))
    for row in run.rows:
        if row.get("stage") in _SUMMARY_STAGES and not _is_point(row):
            values = [(key, show_value(value)) for key, value in row.items() if key != "stage"]
            parts.append(f"<h3>{escape_text(row['stage'])}</h3>" + render_table(("", ""), values))
    return "".join(parts)


def _is_point(row: Mapping[str, Json]) -> bool:
    return _find_x(row) is not None and row.get("stage") not in _CANDIDATE_STAGES


def _find_x(row: Mapping[str, Json]) -> str | None:
    return next((key for key in _X_KEYS if read_number(row.get(key)) is not None), None)


def _course(stage: str, rows: Sequence[Mapping[str, Json]]) -> str:
    """A chart of the rewards together, and one of each other number. Runs that follow each other are lines apart."""
    x = _find_x(rows[0]) or _X_KEYS[0]
    runs = split_evolutions({**row, "generation": row.get(x)} for row in rows)
    keys = [
        k
        for k in dict.fromkeys(k for row in rows for k in row)
        if any(read_number(row.get(k)) is not None for row in rows)
    ]
    keys = [key for key in keys if key not in _X_KEYS and not (stage == "diagnostics" and key.startswith("left_out"))]
    rewards = [key for key in keys if key.startswith("reward") and not key.endswith("std")]
    groups = ([rewards] if rewards else []) + [[key] for key in keys if key not in rewards]

    def lines(group: list[str]) -> list[Series]:
        return [
            Series(
                name=key if len(runs) == 1 else f"{key}, run {k}",
                points=[
                    (g, read_number(row.get(key))) for row in run if (g := read_number(row["generation"])) is not None
                ],
            )
            for key in group
            for k, run in enumerate(runs, 1)
        ]

    charts = [
        render_figure(line_chart(lines(group), title=f"{stage}: {', '.join(group)}", x_label=x)) for group in groups
    ]
    if stage == "diagnostics":  # a score of numbers: there for those who look for one
        return f"<details><summary>Course of all diagnostics</summary>{''.join(charts)}</details>"
    return "".join(charts)


def _measurement(measured: Mapping[str, Json] | None) -> str:
    if measured is None:
        return render_missing("No eval.json: `fugu eval --policy DIR --data DIR --json DIR/eval.json` writes it.")
    single = _mapping(measured.get("best_single"))
    gain, families = _mapping(measured.get("gain")), _mapping(measured.get("gain_by_family"))
    ours, base = read_number(measured.get("accuracy")), read_number(single.get("accuracy"))
    ends = [None if base is None or (g := read_number(gain.get(k))) is None else base + g for k in ("low", "high")]
    bars = [
        Bar(label=str(name), value=read_number(value), text=_percent(value))
        for group in (measured.get("workers"), measured.get("baselines"))
        for name, value in _mapping(group).items()
    ]
    bars.append(
        Bar(label="this policy", value=ours, text=_percent(ours), low=ends[0], high=ends[1], is_ours=True),
    )
    bars.append(Bar(label="oracle", value=read_number(measured.get("oracle")), text=_percent(measured.get("oracle"))))
    bars.sort(key=lambda bar: -1.0 if bar.value is None else bar.value)
    data = _mapping(measured.get("data"))
    facts = [
        ("data", f"{data.get('name')}, split {measured.get('split')}, {measured.get('n')} questions"),
        ("not scored", show_value(_mapping(measured.get("unscored")).get("count"))),
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
        ("basis of the cost", show_value(measured.get("cost_basis"))),
        ("cost", f"{_usd(measured.get('cost_usd'))} (best single {_usd(measured.get('best_single_cost_usd'))})"),
        ("measured by", f"{' '.join(map(str, _sequence(measured.get('command'))))}, commit {measured.get('commit')}"),
    ]
    note = "Whiskers: the interval of the gain, drawn from the best single worker."
    not_measured = [(name, show_value(why)) for name, why in _mapping(measured.get("baselines_not_measured")).items()]
    return (
        render_table(("", ""), facts)
        + render_figure(bar_chart(bars, title="accuracy"), note)
        + (render_table(("not measured", "why"), not_measured) if not_measured else "")
    )


def _behaviour(d: Mapping[str, Json], of: str) -> str:
    if not d:
        return render_missing("No diagnostics on record.")
    parts = [render_text("soft", f"Diagnostics {of}.")]
    known = [(label, write(d[key])) for key, (label, write) in _NUMBERS.items() if key in d]
    unknown = [label for key, (label, _) in _NUMBERS.items() if key not in d]
    parts.append(render_table(("", ""), known))
    if unknown:
        parts.append(render_missing(f"Not on record: {', '.join(unknown)}."))
    never = _sequence(d.get("workers/never_used"))
    if never:
        parts.append(render_text("", f"Workers never called: {', '.join(map(str, never))}."))
    for key, title in (("share/calls", "calls"), ("share/answers", "answers"), ("share/roles", "roles of calls")):
        parts.append(_shares(_mapping(d.get(key)), title))
    for key, label in (("calls/histogram", "calls"), ("turns/histogram", "turns")):
        counts = [(str(k), int(n)) for k, v in _mapping(d.get(key)).items() if (n := read_number(v)) is not None]
        parts.append(
            render_figure(histogram(counts, title=f"questions by {label}", x_label=f"{label} of one question"))
        )
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
        render_text("", entropy)
        + _shares(_mapping(measured["shares"]), "answers, of the evaluation")
        + _by_group(measured.get("by_category"), "category")
    )


def _shares(shares: Mapping[str, Json], title: str) -> str:
    parts = [(str(name), share) for name, value in shares.items() if (share := read_number(value)) is not None]
    if not parts:
        return render_missing(f"Shares of {title}: not on record.")
    rows = [(name, _percent(share)) for name, share in sorted(parts, key=lambda part: -part[1])]
    return render_figure(share_bar(parts, title=f"shares of {title}")) + render_table(("", "share"), rows)


def _agreement(d: Mapping[str, Json]) -> str:
    rows = [_mapping(row) for row in _sequence(d.get("accuracy/by_agreement"))]
    if not rows:
        return render_missing("Accuracy by agreement: not on record.")
    bars = [
        Bar(
            label=f"{row.get('agreement')} of {row.get('asked')} agree",
            value=read_number(row.get("accuracy")),
            text=f"{_percent(row.get('accuracy'))} (n = {row.get('n')})",
            low=read_number(row.get("low")),
            high=read_number(row.get("high")),
        )
        for row in rows
    ]
    return render_figure(bar_chart(bars, title="accuracy by agreement"), "Whiskers: 95 % Wilson interval.")


def _by_group(groups: Json, label: str) -> str:
    rows = sorted(
        ((str(name), _mapping(row)) for name, row in _mapping(groups).items()),
        key=lambda item: -(_regret(item[1]) or 0.0) * (read_number(item[1].get("n")) or 0.0),
    )
    if not rows:
        return render_missing(f"Regret by {label}: not on record.")
    bars = [
        Bar(label=name, value=_regret(row), text=f"{_percent(_regret(row))} (n = {show_value(row.get('n'))})")
        for name, row in rows[:_BARS]
    ]
    table = [
        (
            name,
            show_value(row.get("n")),
            *(_percent(row.get(key)) for key in ("accuracy", "best_single", "oracle")),
            _percent(_regret(row)),
        )
        for name, row in rows
    ]
    heads = (label, "n", "accuracy", "best single", "oracle", "regret")
    note = (
        f"The {_BARS} of {len(rows)} that lose most questions." if len(rows) > _BARS else "Most lost questions first."
    )
    chart = render_figure(bar_chart(bars, title=f"regret to the best worker per question, by {label}"), note)
    return chart + render_table(heads, table)


def _regret(row: Mapping[str, Json]) -> float | None:
    given, ours, oracle = (read_number(row.get(key)) for key in ("regret", "accuracy", "oracle"))
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
        return render_text("soft", "Everything in the files is shown above.")
    text = escape_text(json.dumps(left, indent=1, ensure_ascii=False))
    return f"<details><summary>What no part above shows</summary><pre>{text}</pre></details>"


def _unshown(row: Mapping[str, Json]) -> dict[str, Json]:
    """What is left of a row of the metrics; with its stage, where there is anything."""
    stage, rest = row.get("stage"), dict(row)
    if stage in _CANDIDATE_STAGES:
        rest = {key: value for key, value in row.items() if not is_plain(value)}
    elif _is_point(row):
        rest = {key: value for key, value in row.items() if read_number(value) is None and key != "stage"}
    elif stage in _SUMMARY_STAGES or (stage == "alarms" and ("alarms" in row or "code" in row)):
        rest = {}
    return {"stage": stage, **rest} if rest else {}


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else ()


def _percent(value: Json) -> str:
    number = read_number(value)
    return "unknown" if number is None else f"{number * 100:.1f} %"


def _points(value: Json) -> str:
    number = read_number(value)
    return "unknown" if number is None else f"{number * 100:+.1f}"


def _interval(low: Json, high: Json) -> str:
    return f"[{_points(low)}, {_points(high)}]"


def _decimal(value: Json) -> str:
    number = read_number(value)
    return "unknown" if number is None else f"{number:.2f}"


def _usd(value: Json) -> str:
    number = read_number(value)
    return "unknown" if number is None else f"${number:.4g}"


_NUMBERS: Mapping[str, tuple[str, Callable[[Json], str]]] = {
    "n": ("questions", show_value),
    "left_out/unscored": ("left out: not scored", show_value),
    "left_out/no_outcome": ("left out: no worker's outcome known", show_value),
    "accuracy/mean": ("accuracy", _percent),
    "best_single/worker": ("best single worker", show_value),
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
    "turns/limit": ("limit of turns", show_value),
    "turns/at_limit_share": ("questions that use all turns", _percent),
    "stop/accepted": ("ended by a verifier", show_value),
    "stop/limit": ("ended by a limit", show_value),
    "stop/accepted_share": ("share ended by a verifier", _percent),
    "stop/accepted_at_once_share": ("first answer accepted at once", _percent),
    "stop/no_answer_share": ("no answer", _percent),
    "stop/thinker_only_share": ("thinkers only", _percent),
    "accuracy/accepted": ("accuracy where accepted", _percent),
    "accuracy/not_accepted": ("accuracy where not accepted", _percent),
    "cost/usd_total": ("cost", _usd),
    "cost/usd_known": ("cost, as far as known", _usd),
    "cost/unknown": ("questions of unknown cost", show_value),
    "cost/usd_per_question": ("cost per question", _usd),
    "cost/best_single_usd_per_question": ("cost per question of the best single worker", _usd),
    "cost/ratio_to_best_single": ("times the best single worker's cost", _decimal),
}
"""Numbers of `diagnose`: how each is called, and written."""
_DIAGNOSTICS_SHOWN = {
    *("stage", "share/calls", "share/answers", "share/roles", "workers/never_used", "calls/histogram"),
    *("turns/histogram", "accuracy/by_agreement", "regret/by_family", "regret/by_category", *_X_KEYS, *_NUMBERS),
}
