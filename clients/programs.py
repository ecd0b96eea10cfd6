"""The real clients: which versions, how each is installed, connected, and asked one thing without a person.

A variant is the same program with other settings. What a program would send home by itself is switched off by its own
documented settings; `drive.py` also lets nothing past loopback, and says what tried.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PROGRAMS", "Program", "install"]

HERE = Path(__file__).parent
AIDER_PYTHONS = ("python3.12", "python3.11", "python3.10")
AIDER_BELOW = (3, 13)
"""aider 0.86.2 refuses this one."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A client, in the version that is driven."""

    name: str
    """As `fugu connect` calls it."""
    package: str
    version: str
    binary: str
    endpoint: str
    """What it needs of the server."""
    ask: Sequence[str]
    """Arguments; MODEL and PROMPT are filled in."""
    go_on: Sequence[str]
    """The same, in the session before."""
    environ: Mapping[str, str] = field(default_factory=dict)
    said_in: str | None = None
    """File with the answer; None: what it prints."""
    variant: str = ""
    is_python: bool = False
    writes_edits: bool = False
    """Changes files by what it reads in answers, and offers no tools."""

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}{f', {self.variant}' if self.variant else ''}"


def _codex(version: str, *more: str, variant: str = "") -> Program:
    settings = ("-c", "check_for_update_on_startup=false", "-c", "analytics.enabled=false", *more)
    start = ("exec", "--profile", "fugu", "--skip-git-repo-check", "--sandbox", "danger-full-access", *settings)
    return Program(
        name="codex",
        package="@openai/codex",
        version=version,
        variant=variant,
        binary="codex",
        endpoint="/v1/responses",
        ask=(*start, "-o", "last.txt", "PROMPT"),
        go_on=(*start, "-o", "last.txt", "resume", "--last", "PROMPT"),
        said_in="last.txt",
    )


_CATALOG = ("-c", f'model_catalog_json="{HERE / "codex_models.json"}"')
_CLAUDE = ("-p", "PROMPT", "--allowedTools", "Bash,Read,Edit")
_OPENCODE = ("run", "--model", "fugu/MODEL", "PROMPT")
_AIDER = ("--yes-always", "--no-pretty", "--message", "PROMPT", "notes.txt")

PROGRAMS: Sequence[Program] = (
    _codex("0.142.5"),
    _codex("0.142.5", *_CATALOG, variant="`apply_patch`"),
    _codex("0.169.0"),
    _codex("0.169.0", *_CATALOG, variant="`apply_patch`"),
    Program(
        name="claude-code",
        package="@anthropic-ai/claude-code",
        version="2.1.329",
        binary="claude",
        endpoint="/v1/messages",
        ask=_CLAUDE,
        go_on=("--continue", *_CLAUDE),
        environ={
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
        },
    ),
    Program(
        name="opencode",
        package="opencode-ai",
        version="1.18.33",
        binary="opencode",
        endpoint="/v1/chat/completions",
        ask=_OPENCODE,
        go_on=(*_OPENCODE[:-1], "--continue", "PROMPT"),
        environ={
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_SHARE": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        },
    ),
    Program(
        name="aider",
        package="aider-chat",
        version="0.86.2",
        binary="aider",
        endpoint="/v1/chat/completions",
        ask=_AIDER,
        go_on=("--restore-chat-history", *_AIDER),
        environ={
            "AIDER_ANALYTICS": "false",
            "AIDER_CHECK_UPDATE": "false",
            "AIDER_SHOW_RELEASE_NOTES": "false",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        is_python=True,
        writes_edits=True,
    ),
)


def install(program: Program, folder: Path) -> Path:
    """The program's binary, from the registry if it is not in the folder yet."""
    home = folder / f"{program.binary}-{program.version}"
    binary = home / ("bin" if program.is_python else "node_modules/.bin") / program.binary
    if binary.exists():
        return binary
    home.mkdir(parents=True, exist_ok=True)
    if program.is_python:
        _run(_find_python(), "-m", "venv", "--clear", home)
        _run(home / "bin" / "python", "-m", "pip", "install", "--quiet", f"{program.package}=={program.version}")
    else:
        (home / "package.json").write_text('{"private": true}\n')
        exact = f"{program.package}@{program.version}"
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--save-exact", exact, cwd=home)
    return binary


def _find_python() -> str:
    """This one, or another that aider takes. A name on the path may be a shim with nothing behind it."""
    if sys.version_info < AIDER_BELOW:
        return sys.executable
    for name in AIDER_PYTHONS:
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    raise SystemExit(f"aider needs one of {', '.join(AIDER_PYTHONS)}: leave it out with --client")


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
