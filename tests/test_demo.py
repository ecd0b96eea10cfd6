"""The main job from end to end, as `make demo` runs it, only smaller."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from torafugu.orchestrate.head import Head
from torafugu.store import RunRow, open_reader


def test_the_demo_learns_serves_and_records(tmp_path: Path) -> None:
    """Profile, training, evaluation, server and record, without a key: it gains beyond chance, and answers."""
    ran = subprocess.run(
        [sys.executable, "-m", "torafugu.cli", "demo", "--n", "240", "--seed", "1", "--out", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["gain"]["low"] > 0
    assert report["oracle"] >= report["accuracy"]
    head = Head.load(tmp_path / "policy")
    assert head.card.gate["promoted"] is True
    assert head.card.gate["forced"] is False

    async def read() -> list[RunRow]:
        async with open_reader(tmp_path / "runs.sqlite") as reader:
            return await reader.list_runs(100)

    runs = asyncio.run(read())
    assert len(runs) == 6
    assert {run.status for run in runs} == {"answered"}
    assert {run.policy for run in runs} == {f"fugu@{head.id}"}
    for text in (head.id, "gain over the best single worker", runs[0].id, "planned   step 0", "answered  with step 0"):
        assert text in ran.stdout
