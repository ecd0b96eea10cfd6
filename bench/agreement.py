"""How often right answers agree, as strings and by what they say, and how often a right one agrees with a wrong one.

    python -m bench.agreement

Pairs of different workers' first answers to the same question, of all splits; answers of partial score are left out.
Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bench.recorded import POOLS
from torafugu.agreement import canonical_answer
from torafugu.eval.matrix import OutcomeMatrix, build_matrix
from torafugu.eval.provenance import describe_data, find_commit
from torafugu.pool.recorded import read_recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("../shared/data/recorded"))
    parser.add_argument("--only", action="append", choices=sorted(POOLS), help="default: all")
    args = parser.parse_args()
    rows = []
    for name in args.only or POOLS:
        folder, datasets = POOLS[name]
        recorded = read_recorded(args.root / folder, datasets=datasets)
        rows.append({"pool": name, "data": describe_data(recorded), **count_pairs(build_matrix(recorded))})
    print(json.dumps({"command": sys.argv, "commit": find_commit(), "pools": rows}, indent=1))


def count_pairs(matrix: OutcomeMatrix) -> dict[str, Any]:
    started = time.perf_counter()
    forms = [[canonical_answer(answer) for answer in answers] for answers in matrix.answers]
    elapsed = time.perf_counter() - started
    counts = dict.fromkeys(("right", "right_as_strings", "right_by_form", "mixed_as_strings", "mixed_by_form"), 0)
    for scores, answers, said in zip(matrix.first, matrix.answers, forms, strict=True):
        for a, b in combinations(np.flatnonzero(np.isin(scores, (0, 1)) & np.array([bool(form) for form in said])), 2):
            kind = "right" if scores[a] and scores[b] else "mixed"
            if scores[a] or scores[b]:
                counts["right"] += kind == "right"
                counts[f"{kind}_as_strings"] += answers[a] == answers[b]
                counts[f"{kind}_by_form"] += said[a] == said[b]
    return counts | {"microseconds_per_answer": round(elapsed * 1e6 / matrix.first.size, 1)}


if __name__ == "__main__":
    main()
