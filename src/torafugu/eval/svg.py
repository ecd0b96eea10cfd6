"""Small charts as SVG text, for pages that stand alone: lines, bars with intervals, a stacked bar, a histogram.

Each function returns one well-formed `<svg>` element without scripts, fonts or addresses to load. Colours are the
page's CSS variables (`STYLE`, light and dark), with the light ones as what stands in where there is no such page. What
is unknown (None, NaN) is a gap, never a zero. Names come from outside: all text goes through `escape_text`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["STYLE", "Bar", "Series", "bar_chart", "escape_text", "histogram", "line_chart", "share_bar"]

_LIGHT = ("#2563b0", "#c2500e", "#237a3b", "#8a3ea8", "#a6761d", "#0f7f86", "#c0326b", "#5b6472")
_DARK = ("#7db0f0", "#f2a35e", "#7fce8f", "#cf9be6", "#dcbc66", "#66cdd3", "#f08fb5", "#aab3bf")
_INK = {"ink": ("#1b1f24", "#e6e8eb"), "soft": ("#5c6670", "#a3abb5"), "grid": ("#dfe3e8", "#3a4048")}
_WIDTH, _CHAR = 680, 6.3  # user units; the mean width of a character at 11 units
_TITLE, _ROW = 24, 20
_TOO_LARGE = 1e100  # a value past it is as good as infinite, and would overflow the axis
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not: control characters and halves of surrogate pairs."""


def _variables(side: int) -> str:
    colours = {f"s{k}": pair for k, pair in enumerate(zip(_LIGHT, _DARK, strict=True))} | _INK
    return "".join(f"--{name}:{pair[side]};" for name, pair in colours.items())


STYLE = (
    f":root{{{_variables(0)}}}\n"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}\n"
    "svg{width:100%;max-width:680px;height:auto;display:block}"
)
"""CSS of the variables that the charts use; what is printed is light."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line."""

    name: str
    points: Sequence[tuple[float, float | None]]
    """(x, y) in the order of x; y None is a gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar."""

    label: str
    value: float | None
    text: str
    """The value as it is to be read."""
    low: float | None = None
    high: float | None = None
    """Ends of its interval; both or none are drawn."""
    is_ours: bool = False
    """Stands out."""


def escape_text(text: object) -> str:
    """Text that is safe in HTML and XML, inside quotes too; what no page can hold becomes U+FFFD."""
    return escape(_ILLEGAL.sub("\ufffd", str(text)), quote=True)


def line_chart(series: Sequence[Series], *, title: str, x_label: str) -> str:
    """All series on the same axes, with a legend."""
    points = [point for line in series for run in _known_runs(line.points) for point in run]
    if not points:
        return _no_data(title)
    ticks_x, ticks_y = (_ticks(min(values), max(values)) for values in zip(*points, strict=True))
    names = [_short(line.name, 30) for line in series]
    rows = _legend_rows(names)
    left = 14 + _CHAR * max(len(_tick(y)) for y in ticks_y)
    top = _TITLE + 18 * (rows[-1][1] + 1) + 8
    bottom, right = top + 190, _WIDTH - 14
    height = bottom + 38

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * _part(x, ticks_x[0], ticks_x[-1]),
            bottom - (bottom - top) * _part(y, ticks_y[0], ticks_y[-1]),
        )

    parts = [_legend_entry(k, name, *rows[k]) for k, name in enumerate(names)]
    for y in ticks_y:
        height_y = at(ticks_x[0], y)[1]
        parts.append(_line(left, height_y, right, height_y, "grid"))
        parts.append(_text(left - 6, height_y + 4, _tick(y), "end"))
    for x in ticks_x:
        parts.append(_text(at(x, ticks_y[0])[0], bottom + 16, _tick(x), "middle"))
    parts.append(_line(left, bottom, right, bottom, "soft"))
    parts.append(_text((left + right) / 2, bottom + 32, x_label, "middle"))
    for k, line in enumerate(series):
        parts += _polyline([[at(x, y) for x, y in run] for run in _known_runs(line.points)], k)
    return _svg(title, height, parts)


def bar_chart(bars: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars from zero, in the order given; an unknown value has no bar, only its text."""
    numbers = [v for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None and _is_known(v)]
    if not numbers:
        return _no_data(title)
    left = 16 + _CHAR * max(len(_short(bar.label, 34)) for bar in bars)
    right = _WIDTH - 20 - _CHAR * max(len(bar.text) for bar in bars)
    low, high = min(0.0, *numbers), max(0.0, *numbers)

    def at(value: float) -> float:
        return left + (right - left) * _part(value, low, high)

    parts = [_line(at(0), _TITLE, at(0), _TITLE + _ROW * len(bars), "soft")]
    for row, bar in enumerate(bars):
        y = _TITLE + _ROW * row
        parts.append(_text(left - 8, y + 14, _short(bar.label, 34), "end", full=bar.label))
        parts.append(_text(right + 8, y + 14, bar.text))
        if bar.value is not None and _is_known(bar.value):
            ends = sorted((at(0), at(bar.value)))
            parts.append(_rect(ends[0], y + 4, ends[1] - ends[0], _ROW - 8, 1 if bar.is_ours else 0))
        if bar.low is not None and bar.high is not None and _is_known(bar.low) and _is_known(bar.high):
            a, b, middle = at(bar.low), at(bar.high), y + _ROW / 2
            parts.append(_line(a, middle, b, middle, "ink"))
            parts += [_line(end, middle - 4, end, middle + 4, "ink") for end in (a, b)]
    return _svg(title, _TITLE + _ROW * len(bars) + 6, parts)


def share_bar(shares: Sequence[tuple[str, float]], *, title: str) -> str:
    """One bar, cut by shares of their sum, largest first. Past the eighth colour the rest is one part that says so."""
    wanted = sorted(((name, s) for name, s in shares if _is_known(s) and s > 0), key=lambda part: -part[1])
    if not wanted:
        return _no_data(title)
    if len(wanted) > len(_LIGHT):
        kept = len(_LIGHT) - 1
        wanted[kept:] = [(f"{len(wanted) - kept} others", sum(share for _, share in wanted[kept:]))]
    total = sum(share for _, share in wanted)
    names = [f"{_short(name, 34)} {share / total * 100:.1f} %" for name, share in wanted]
    rows, parts, start = _legend_rows(names), [], 0.0
    for k, (name, share) in enumerate(wanted):
        width = (_WIDTH - 2) * share / total
        parts.append(_rect(1 + start, _TITLE, max(0.5, width - 1), 26, k, full=f"{name} {share / total * 100:.1f} %"))
        parts.append(_legend_entry(k, names[k], rows[k][0], rows[k][1], top=_TITLE + 36))
        start += width
    return _svg(title, _TITLE + 36 + 18 * (rows[-1][1] + 1) + 4, parts)


def histogram(counts: Sequence[tuple[str, int]], *, title: str, x_label: str) -> str:
    """A column for each value, with its count."""
    if not counts or max(count for _, count in counts) <= 0:
        return _no_data(title)
    most, bottom = max(count for _, count in counts), _TITLE + 140
    step = min(70.0, (_WIDTH - 20) / len(counts))
    parts = [_line(10, bottom, 10 + step * len(counts), bottom, "soft")]
    for k, (label, count) in enumerate(counts):
        height = 116 * count / most
        middle = 10 + step * (k + 0.5)
        parts.append(_rect(middle - step * 0.36, bottom - height, step * 0.72, height, 0, full=f"{label}: {count}"))
        parts.append(_text(middle, bottom - height - 5, str(count), "middle"))
        parts.append(_text(middle, bottom + 15, label, "middle"))
    parts.append(_text(10, bottom + 32, x_label))
    return _svg(title, bottom + 40, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = escape_text(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{name}" '
        'font-family="system-ui,sans-serif" font-size="11">'
        f'<text x="1" y="14" font-size="13" font-weight="600" style="fill:{_colour("ink")}">{name}</text>'
        + "".join(parts)
        + "</svg>"
    )


def _no_data(title: str) -> str:
    return _svg(title, 44, [_text(1, 34, "no data")])


def _colour(name: str) -> str:
    return f"var(--{name},{_LIGHT[int(name[1:])] if name[1:].isdigit() else _INK[name][0]})"


def _text(x: float, y: float, text: str, anchor: str = "start", *, full: str | None = None) -> str:
    """`full` is shown when the pointer rests on it."""
    tip = "" if full is None else f"<title>{escape_text(full)}</title>"
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} style="fill:{_colour("soft")}">{escape_text(text)}{tip}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{_colour(colour)}"/>'


def _rect(x: float, y: float, width: float, height: float, series: int, *, full: str | None = None) -> str:
    tip = "" if full is None else f"<title>{escape_text(full)}</title>"
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} rx="1.5" style="fill:{_colour(f"s{series % len(_LIGHT)}")}">{tip}</rect>'


def _polyline(runs: Sequence[Sequence[tuple[float, float]]], series: int) -> list[str]:
    """A line for each run; a point that stands alone is a dot."""
    colour, drawn = _colour(f"s{series % len(_LIGHT)}"), []
    for run in runs:
        if len(run) == 1:
            drawn.append(f'<circle cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2.5" style="fill:{colour}"/>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            drawn.append(f'<polyline points="{path}" style="fill:none;stroke:{colour};stroke-width:1.8"/>')
    return drawn


def _legend_rows(names: Sequence[str]) -> list[tuple[float, int]]:
    """(x, row) of each name, from left to right and on to the next row."""
    places, x, row = [], 1.0, 0
    for name in names:
        width = 26 + _CHAR * len(name)
        if x > 1 and x + width > _WIDTH:
            x, row = 1.0, row + 1
        places.append((x, row))
        x += width
    return places


def _legend_entry(series: int, name: str, x: float, row: int, top: float = _TITLE) -> str:
    y = top + 18 * row
    return _rect(x, y + 2, 10, 10, series) + _text(x + 14, y + 11, name)


def _known_runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and _is_known(y) and _is_known(x):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _is_known(value: float) -> bool:
    return abs(value) < _TOO_LARGE  # False for NaN


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers, steps of 1, 2 or 5 times a power of ten, that enclose low and high."""
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1 / _TOO_LARGE):  # one value: make room around it
        room = max(abs(low) / 10, 1 / _TOO_LARGE) if low else 1.0
        low, high = low - room, high + room
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _tick(value: float) -> str:
    return f"{value:.6g}" if value else "0"


def _part(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0


def _short(text: str, limit: int) -> str:
    """Cut with a mark; charts say the whole where the pointer rests, and tables beside them always."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
