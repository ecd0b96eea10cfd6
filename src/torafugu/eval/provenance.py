"""Where a number comes from: the data's hashes and the commit of the code that made it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from ..pool.recorded import RecordedSet
from ..types import Json

__all__ = ["describe_data", "find_commit"]


def describe_data(recorded: RecordedSet) -> dict[str, Json]:
    """Name of the folder, SHA-256 of its questions and outcomes, and the datasets that were used."""
    files = sorted(p for stem in ("questions", "outcomes") for p in recorded.path.glob(f"{stem}.jsonl*"))
    return {
        "name": recorded.path.resolve().name,
        "sha256": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "datasets": sorted({q.dataset for q in recorded.questions}),
        "questions": len(recorded.questions),
        "workers": list(recorded.workers),
    }


def find_commit() -> str | None:
    """The commit of this source tree, `-dirty` when it differs from it; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")
