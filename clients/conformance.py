"""Runs conformance suites that can be pointed at a server: `python clients/conformance.py --help`.

Between a suite and the oracle that stands for all models (`oracle.py`) is `fugu serve` as it is deployed. Each suite
lives in an environment of its own, installed from PyPI at its first run; nothing else beyond loopback is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oracle import Oracle

HERE = Path(__file__).parent
ROOT = HERE.parent
FOLDER = ROOT / "build" / "conformance"
_SHOWN = 8
"""Failures of each suite that are told one by one."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One of `suites/`."""

    title: str
    script: str
    packages: Sequence[str] = ()
    """What it needs; the first is the suite's own. None: this program's environment will do."""
    bare: Sequence[str] = ()
    """Installed without what they say they depend on."""


SUITES: Mapping[str, Suite] = {
    "openresponses": Suite(
        title="OpenResponses types", script="openresponses.py", packages=("openresponses-types==2.4.0",)
    ),
    "openapi": Suite(
        title="OpenAI's API by schemathesis",
        script="description.py",
        packages=("schemathesis==4.32.5", "openai==3.52.0", "pyyaml"),
    ),
    "bfcl": Suite(
        title="BFCL v4 simple, multiple, parallel",
        script="function_calling.py",
        # bfcl-eval depends on the client libraries of all vendors and on torch: none of it is needed for this.
        bare=("bfcl-eval==2026.3.23",),
        packages=(
            *("openai==3.52.0", "tqdm", "overrides", "filelock", "python-dotenv", "tenacity"),
            *("tree_sitter==0.21.3", "tree-sitter-java==0.21.0", "tree-sitter-javascript==0.21.4"),
        ),
    ),
    "compatibility": Suite(title="Compatibility cases", script="compatibility.py"),
}


def main() -> int:
    args = _parse()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Any] | str] = {}
    with Oracle() as oracle, serve(FOLDER / "server", oracle.url) as environ:
        for name in args.only or SUITES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[name] = run(SUITES[name], name, environ, args)
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(to_markdown(results))
    return 0 if all(is_passed(cases) for cases in results.values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=SUITES, help="this suite; may be repeated (default all)")
    parser.add_argument("--openapi", type=Path, help="OpenAI's description (default: made from the openai package)")
    parser.add_argument("--examples", type=int, default=100, help="requests that schemathesis makes up (default 100)")
    parser.add_argument("--limit", type=int, help="questions of each BFCL category (default all)")
    return parser.parse_args()


# --- the server ---


@contextmanager
def serve(folder: Path, oracle: str) -> Iterator[Mapping[str, str]]:
    """`fugu serve` on a pool that is the oracle twice, once in each wire dialect; the environment of suites."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    workers = (("oracle", "openai"), ("claude", "anthropic"), ("planner", "openai"))
    (folder / "pool.toml").write_text("\n".join(_worker(id, dialect, oracle) for id, dialect in workers))
    (folder / "fugu.toml").write_text(
        'pool = "pool.toml"\nrecord = "runs.sqlite"\n[conductor]\nworker = "planner"\n'
        '[server]\nport = 0\ndrain_s = 1\n[[server.keys]]\nname = "suites"\nenv = "FUGU_API_KEY"\n'
    )
    key = f"sk-{secrets.token_hex(24)}"
    command = [sys.executable, "-m", "torafugu.cli", "serve", "--config", str(folder / "fugu.toml")]
    with (folder / "stderr.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "FUGU_API_KEY": key}, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            found = re.search(r" at (\S+)/v1,", process.stdout.readline())
            if found is None:
                raise SystemExit(f"fugu serve did not start:\n{(folder / 'stderr.log').read_text()}")
            yield {"FUGU_URL": found[1], "FUGU_API_KEY": key, "ORACLE_URL": oracle}
        finally:
            process.terminate()
            process.wait(timeout=20)


def _worker(id: str, dialect: str, url: str) -> str:
    return (
        f'[[worker]]\nid = "{id}"\ndialect = "{dialect}"\nmodel = "{id}"\nbase_url = "{url}/v1"\n'
        'modalities = ["text", "image", "pdf"]\nprices = { input = 1, output = 4 }\nlimits = { concurrency = 16 }\n'
    )


# --- one suite ---


def run(suite: Suite, name: str, environ: Mapping[str, str], args: argparse.Namespace) -> list[Any] | str:
    """Its cases; or why it could not be run."""
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    python = install(suite, folder / "venv")
    if isinstance(python, str):
        return python
    arguments = {
        "openapi": [str(folder), str(args.openapi.resolve()) if args.openapi else "-", str(args.examples)],
        "bfcl": [str(folder), str(args.limit or "")],
    }
    command = [str(python), str(HERE / "suites" / suite.script), *arguments.get(name, ())]
    told = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", **environ}
    done = subprocess.run(command, env=told, capture_output=True, text=True)
    (folder / "stderr.log").write_text(done.stderr)
    if done.returncode:
        return f"it ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    return list(json.loads(done.stdout))


def install(suite: Suite, folder: Path) -> Path | str:
    """A Python that has what the suite needs; or why not."""
    if not suite.packages:
        return Path(sys.executable)
    python = folder / "bin" / "python"
    wanted = json.dumps([suite.bare, suite.packages])
    if (folder / "has").exists() and (folder / "has").read_text() == wanted:
        return python
    quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    commands = [[sys.executable, "-m", "venv", "--clear", str(folder)]]
    if suite.bare:
        commands.append([str(python), *quiet, "--no-deps", *suite.bare])
    commands.append([str(python), *quiet, *suite.packages])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"not installed: {done.stderr.strip()[-300:]}"
    (folder / "has").write_text(wanted)
    return python


# --- the table ---


def is_passed(cases: list[Any] | str) -> bool:
    return not isinstance(cases, str) and all(case["problem"] is None or case["explained"] for case in cases)


def to_markdown(results: Mapping[str, list[Any] | str]) -> str:
    """A row for each suite, and what failed under it."""
    lines = ["| Suite | Cases | Passed | Failed, explained | Failed |", "|---|---|---|---|---|"]
    notes: list[str] = []
    for name, cases in results.items():
        suite = SUITES[name]
        package = (*suite.bare, *suite.packages, "")[0]
        title = f"{suite.title} (`{package}`)" if package else suite.title
        if isinstance(cases, str):
            lines.append(f"| {title} | not run: {_cell(cases)} | | | |")
            continue
        failed = [case for case in cases if case["problem"] is not None]
        explained = [case for case in failed if case["explained"]]
        counts = (len(cases), len(cases) - len(failed), len(explained), len(failed) - len(explained))
        lines.append(f"| {title} | {' | '.join(map(str, counts))} |")
        for why, count in Counter(case["explained"] for case in explained).items():
            notes.append(f"- {suite.title}: {count} x {why}")
        unexplained = [case for case in failed if not case["explained"]]
        notes += [f"- {suite.title}: {case['name']}: {_cell(case['problem'])}" for case in unexplained[:_SHOWN]]
        if len(unexplained) > _SHOWN:
            notes.append(f"- {suite.title}: and {len(unexplained) - _SHOWN} more, in results.json")
    return "\n".join([*lines, "", *notes])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
