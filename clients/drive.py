"""Drives the real Codex, Claude Code, opencode and aider against `fugu serve`: `python clients/drive.py --help`.

Each is installed in its pinned version, connected with `fugu connect` in a home of its own, and asked three things
without a person: a plain answer; a task with tool calls and an edit; a second turn in the same session. The workers are
`brain.py` behind real HTTP. Passed means: the program ended well, the file is changed, and the answers hold what only a
tool, and only the conversation before, could have told. Nothing but loopback can be reached.
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
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from brain import AFTER, BEFORE, FILE, Brain
from programs import PROGRAMS, Program, install

HERE = Path(__file__).parent
ROOT = HERE.parent
FOLDER = ROOT / "build" / "clients"
PAGE = ROOT / "docs" / "clients.md"
FAVOURITE = "beta"
"""Whom `fugu` asks, so that it differs from asking `alpha` by name."""
WHO_CALLS_TOOLS = {"fugu": (FAVOURITE,), "fugu-ultra": ("alpha", "beta"), "alpha": ("alpha",)}
"""Of the workers. In the workflow both steps do, so two steps of one run wait for the client, one after the other."""
MODELS = tuple(WHO_CALLS_TOOLS)
TIMEOUT_S = 120.0
_BEGIN, _END = "<!-- results: make clients -->", "<!-- end of results -->"
_TICKET = re.compile(r"ticket: (\w+)")

PLAIN = "Say a word about fruit. [plain]"
EDIT = f"Look at {FILE}, and change the colour to blue. [edit]"
AGAIN = "Which ticket did you give me? [again]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one client with one model; "yes", or why not."""

    client: str
    model: str
    plain: str = "not run"
    edit: str = "not run"
    again: str = "not run"
    removed: str = "not run"
    tools_by: tuple[str, ...] = ()
    """Workers that were shown results of tools."""
    reached_for: tuple[str, ...] = ()
    """Hosts that it tried to reach beyond loopback."""

    @property
    def is_passed(self) -> bool:
        return self.plain == self.edit == self.again == self.removed == "yes"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A running server and what it can be asked about."""

    url: str
    key: str
    brain: Brain
    wall: Wall

    def runs(self) -> list[Any]:
        return list(self._get("/v1/runs?limit=200")["data"])

    def has(self, endpoint: str) -> bool:
        request = urllib.request.Request(self.url + endpoint, b"{}", self._headers())
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            return error.code != 404
        return True

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=self._headers())) as answer:
            return json.load(answer)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json"}


class Wall:
    """Stands where programs look for a proxy: whatever is not loopback comes here, is written down and refused."""

    def __init__(self) -> None:
        self.hosts: list[str] = []

    def __enter__(self) -> Wall:
        hosts = self.hosts

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                words = self.raw_requestline.decode("latin-1").split()
                if len(words) > 1:
                    hosts.append(words[1].split("/")[2] if "//" in words[1] else words[1])
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def main() -> int:
    args = _parse()
    folder = FOLDER.resolve()
    chosen = [program for program in PROGRAMS if not args.client or program.name in args.client]
    rows = []
    with Wall() as wall, Brain() as brain, serve(folder / "server", brain, wall) as installation:
        for program in chosen:
            print(f"{program.title}: installing", file=sys.stderr)
            binary = install(program, folder)
            for model in args.model or MODELS:
                row = drive(program, binary, model, installation, folder / "homes")
                rows.append(row)
                print(f"{row.client}, {row.model}: {'passed' if row.is_passed else row}", file=sys.stderr)
    table = to_markdown(rows)
    print(table)
    (folder / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if args.write:
        write_table(PAGE, table)
    return 0 if rows and all(row.is_passed for row in rows) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = sorted({program.name for program in PROGRAMS})
    parser.add_argument("--client", action="append", choices=names, help="only this one; may be repeated (default all)")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one; may be repeated (default all)")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.write and (args.client or args.model):
        parser.error("--write is for the whole table: leave --client and --model out")
    return args


# --- the server ---


@contextmanager
def serve(folder: Path, brain: Brain, wall: Wall) -> Iterator[Installation]:
    """`fugu serve` in a process of its own, on a pool of three workers that are all the brain."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    workers = ("alpha", "beta", "planner")
    (folder / "pool.toml").write_text("\n".join(_worker(id, brain.url) for id in workers))
    make_head(folder / "policy", workers)
    (folder / "fugu.toml").write_text(
        'pool = "pool.toml"\npolicy = "policy"\nrecord = "runs.sqlite"\n[conductor]\nworker = "planner"\n'
        '[server]\nport = 0\ndrain_s = 1\n[[server.keys]]\nname = "clients"\nenv = "FUGU_API_KEY"\n'
    )
    key = f"sk-{secrets.token_hex(24)}"
    with (folder / "stderr.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "torafugu.cli", "serve", "--config", str(folder / "fugu.toml")],
            env={**os.environ, "FUGU_API_KEY": key},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            found = re.search(r" at (\S+)/v1,", process.stdout.readline())
            if found is None:
                raise SystemExit(f"fugu serve did not start:\n{(folder / 'stderr.log').read_text()}")
            yield Installation(url=found[1], key=key, brain=brain, wall=wall)
        finally:
            process.terminate()
            process.wait(timeout=20)


def _worker(id: str, url: str) -> str:
    prices = "prices = { input = 1, output = 4 }"
    return f'[[worker]]\nid = "{id}"\ndialect = "openai"\nmodel = "{id}"\nbase_url = "{url}"\n{prices}\n'


def make_head(folder: Path, workers: Sequence[str]) -> None:
    """A head that always asks the favourite: what is driven is the way through, not the choice."""
    import numpy as np

    from torafugu.local import MiniLM
    from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity

    encoder = MiniLM()
    card = Card(
        encoder=encoder.name,
        workers=tuple(WorkerIdentity(id, id) for id in workers),
        training={},
        metrics={},
        baselines={"best_single": {"worker": FAVOURITE, "accuracy": 0.5}},
    )
    features = FeatureMap(np.zeros(encoder.dim, np.float32), np.zeros((encoder.dim, 1), np.float32))
    Head.create(features, np.array([[0, float(id == FAVOURITE)] for id in workers], np.float32), card).save(folder)
    encoder.close()


# --- one client with one model ---


def drive(program: Program, binary: Path, model: str, installation: Installation, homes: Path) -> Row:
    """Connect, ask three things, disconnect."""
    if not installation.has(program.endpoint):
        why = f"no: the server has no {program.endpoint}"
        return Row(client=program.title, model=model, plain=why, edit=why, again=why, removed=why)
    home = homes / re.sub(r"\W+", "-", f"{program.title} {model}")
    shutil.rmtree(home, ignore_errors=True)
    work = home / "work"
    work.mkdir(parents=True)
    visit = _Visit(program=program, binary=binary, model=model, installation=installation, home=home, work=work)
    before_asked, before_hosts = len(installation.brain.asked), len(installation.wall.hosts)
    if problem := visit.connect():
        return Row(client=program.title, model=model, plain=f"no: {problem}")
    plain, edit, again, removed = visit.ask_plain(), visit.ask_edit(), visit.ask_again(), visit.disconnect()
    tools_by = visit.tool_users(installation.brain.asked[before_asked:])
    if edit == "yes" and tools_by != (() if program.writes_edits else WHO_CALLS_TOOLS[model]):
        edit = f"no: tools were called by {', '.join(tools_by) or 'nobody'}"
    return Row(
        client=program.title,
        model=model,
        plain=plain,
        edit=edit,
        again=again,
        removed=removed,
        tools_by=tools_by,
        reached_for=tuple(sorted(set(installation.wall.hosts[before_hosts:]))),
    )


class _Visit:
    """One home folder, one session."""

    def __init__(
        self, *, program: Program, binary: Path, model: str, installation: Installation, home: Path, work: Path
    ) -> None:
        self._program, self._binary, self._model = program, binary, model
        self._installation, self._home, self._work = installation, home, work
        self._nonce, self._ticket = secrets.token_hex(4), ""
        (work / FILE).write_text(f"nonce: {self._nonce}\n{BEFORE}\n")
        subprocess.run(["git", "init", "--quiet", str(work)], check=True)
        self._empty = self._configuration()

    def connect(self) -> str | None:
        said = self._fugu("--url", self._installation.url, "--model", self._model, "--context-tokens", "128000")
        return None if said.returncode == 0 else said.stderr.strip()

    def disconnect(self) -> str:
        said = self._fugu("--remove")
        left = self._configuration() - self._empty
        return "yes" if said.returncode == 0 and not left else f"no: {said.stderr.strip() or sorted(left)}"

    def ask_plain(self) -> str:
        said, why = self._ask(self._program.ask, PLAIN)
        return why or ("yes" if "kumquat" in said else f"no: it said {said[-200:]!r}")

    def ask_edit(self) -> str:
        said, why = self._ask(self._program.ask, EDIT)
        self._ticket = next(iter(_TICKET.findall(said)), "")
        if why:
            return why
        if (self._work / FILE).read_text() != f"nonce: {self._nonce}\n{AFTER}\n":
            return f"no: the file is not changed; it said {said[-200:]!r}"
        if f"nonce: {self._nonce} " not in said:
            return f"no: what was in the file is not in {said[-200:]!r}"
        return "yes"

    def ask_again(self) -> str:
        said, why = self._ask(self._program.go_on, AGAIN)
        return why or ("yes" if self._ticket and self._ticket in said else f"no: it said {said[-200:]!r}")

    def tool_users(self, asked: Sequence[Any]) -> tuple[str, ...]:
        shown = {body["model"] for body in asked if any(message["role"] == "tool" for message in body["messages"])}
        return tuple(sorted(shown))

    def _ask(self, arguments: Sequence[str], prompt: str) -> tuple[str, str | None]:
        """What it said, and what went wrong."""
        known = {run["id"] for run in self._installation.runs()}
        filled = [part.replace("MODEL", self._model).replace("PROMPT", prompt) for part in arguments]
        try:
            done = subprocess.run(
                [self._binary, *map(self._fill_catalog, filled)],
                cwd=self._work,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return "", f"no: nothing after {TIMEOUT_S:.0f} s"
        with (self._home / "log.txt").open("a") as log:
            log.write(f"$ {' '.join(filled)}\n{done.stdout}\n")
        if done.returncode:
            return done.stdout, f"no: it ended with {done.returncode}: {done.stdout[-200:]!r}"
        runs = [run for run in self._installation.runs() if run["id"] not in known]
        if not runs or any(run["model"] != self._model for run in runs):
            return done.stdout, f"no: the record has {[run['model'] for run in runs]}"
        if failed := [run["status"] for run in runs if run["status"] not in ("answered", "suspended")]:
            return done.stdout, f"no: of its runs, some ended as {failed}"
        said = done.stdout if self._program.said_in is None else (self._work / self._program.said_in).read_text()
        return " ".join(said.split()), None

    def _fill_catalog(self, argument: str) -> str:
        """Codex's catalog names the model, so each model has its own."""
        name, _, path = argument.partition("=")
        if name != "model_catalog_json":
            return argument
        catalog = self._home / "models.json"
        catalog.write_text(Path(path.strip('"')).read_text().replace("MODEL", self._model))
        return f'{name}="{catalog}"'

    def _fugu(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torafugu.cli", "connect", self._program.name, *arguments]
        return subprocess.run(command, env=self._environ(), capture_output=True, text=True, cwd=self._work)

    def _configuration(self) -> set[str]:
        """Files in the home that mention the server or us."""
        found = set()
        for path in self._home.rglob("*"):
            if path.is_file() and path.suffix in (".toml", ".json", ".jsonc", ".yml", ".fugu-connect", ".fugu-backup"):
                text = path.read_text(errors="replace")
                if "fugu connect" in text or f"{self._installation.url}" in text:
                    found.add(str(path.relative_to(self._home)))
        return found

    def _environ(self) -> dict[str, str]:
        wall = self._installation.wall.url
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), wall)
        local = "127.0.0.1,localhost"
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "TMPDIR": tempfile.gettempdir(),
            "FUGU_API_KEY": self._installation.key,
            "OPENAI_API_KEY": self._installation.key if self._program.name == "aider" else "",
            "GIT_AUTHOR_NAME": "driver",
            "GIT_AUTHOR_EMAIL": "driver@localhost",
            "GIT_COMMITTER_NAME": "driver",
            "GIT_COMMITTER_EMAIL": "driver@localhost",
            **proxies,
            **{name.lower(): url for name, url in proxies.items()},
            "NO_PROXY": local,
            "no_proxy": local,
            **self._program.environ,
        }


# --- the table ---


def to_markdown(rows: Sequence[Row]) -> str:
    """A row for each client and model."""
    columns = ("Client", "`model`", "Plain answer", "Tool calls and edit", "Second turn", "Tools called by")
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    lines = [
        f"| {row.client} | `{row.model}` | {_cell(row.plain)} | {_cell(row.edit)} | {_cell(row.again)} | "
        f"{', '.join(row.tools_by) or '-'} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write_table(page: Path, table: str) -> None:
    """Between the two comments of the page."""
    text = page.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"{page}: expected the comments {_BEGIN} and {_END}")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
