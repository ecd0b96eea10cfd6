"""The picture of a report. The only file that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError

__all__ = ["plot_report"]

_OURS, _SINGLE, _OTHER, _ORACLE = "#c8102e", "#1f2937", "#9ca3af", "#e5e7eb"


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Accuracy of every worker, baseline and of our policy, with the interval of its gain, under the oracle's ceiling.

    Raises:
        ConfigError: matplotlib is not installed, or it cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError("matplotlib is not installed: pip install 'torafugu[eval]'") from None
    single, gain = report["best_single"], report["gain"]
    bars = [(name, value, _OTHER) for name, value in report["workers"].items() if value and name != single["worker"]]
    bars.append((f"{single['worker']} (best single)", single["accuracy"], _SINGLE))
    bars += [(name.replace("_", " "), value, _OTHER) for name, value in report["baselines"].items() if value]
    bars.append((report["policy"]["id"], report["accuracy"], _OURS))
    bars.append(("oracle", report["oracle"], _ORACLE))
    bars.sort(key=lambda bar: bar[1])
    figure = Figure(figsize=(8, 0.3 * len(bars) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    axes.barh(places, [value * 100 for _, value, _ in bars], color=[colour for _, _, colour in bars])
    axes.set_yticks(places, [name for name, _, _ in bars], fontsize=8)
    for place, (_, value, _) in zip(places, bars, strict=True):
        axes.text(value * 100 + 0.4, place, f"{value * 100:.1f}", va="center", fontsize=8)
    axes.set_xlabel("accuracy, %")
    data = report["data"]
    axes.set_title(
        f"{data['name']} {'+'.join(data['datasets'])}, {report['split']}, n = {report['n']}: gain over the best single "
        f"worker {gain['mean'] * 100:+.1f} [{gain['low'] * 100:+.1f}, {gain['high'] * 100:+.1f}]",
        fontsize=9,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the picture cannot be written: {error}") from None
