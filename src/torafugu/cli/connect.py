"""`fugu connect`: points the coding agents that people already use at our server, and takes that back.

What is written where is said here, one function per client; how it is put into a file and out again is `managed.py`'s.
Keys stay in the environment: files name the variable, or the command that reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..types import Json
from .arguments import at_least_one
from .console import out
from .managed import Block, Change, Members, Part, apply_changes, holds_ours, plan_put, plan_take

__all__ = ["CLIENTS", "Target", "add_parser"]

_URL = "http://127.0.0.1:8377"
_MODEL = "fugu"
_KEY_ENV = "FUGU_API_KEY"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SILENCE_MS = 7_200_000
"""Two hours: a run may stay silent until it is over, and the server's own limits end it before."""
_CLIENT_RETRIES = 2
"""Fewer than Codex has by default: the server has its own over the workers, and a retried run is a second run."""
_OPENCODE_OUTPUT_TOKENS = 32_000
"""What it asks for at most, whatever is declared."""
_YAML_KEY = re.compile(r"(\"[^\"]+\"|'[^']+'|[\w-]+)\s*:(?:\s|$)")
_YAML_NAME = re.compile(r"^- +name:\s*(\S.*?)\s*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a client is pointed at."""

    root: str
    """URL without `/v1`."""
    model: str
    key_env: str
    context_tokens: int | None = None
    """What the models behind it can read; None: each client guesses."""

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A program that can be connected."""

    parts: Callable[[Target, Mapping[str, str]], list[Part]]
    """What goes into which file; the mapping is the environment."""
    start: Callable[[Target], str]
    """The command that uses it."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "connect",
        help="point Codex, Claude Code, opencode or aider at this server",
        description="Put what a client needs to use a Torafugu server into its own configuration; the rest of the file "
        "keeps its bytes, and --remove takes ours out again. No key is written: files name the variable that holds it.",
    )
    parser.add_argument("client", choices=sorted(CLIENTS), help="which client")
    parser.add_argument("--url", default=_URL, help=f"where `fugu serve` listens (default {_URL})")
    parser.add_argument(
        "--model", default=_MODEL, help="what it asks for: `fugu-ultra`, a worker's id ... (default fugu)"
    )
    parser.add_argument(
        "--key-env",
        default=_KEY_ENV,
        metavar="NAME",
        help=f"environment variable that holds the key (default {_KEY_ENV})",
    )
    parser.add_argument(
        "--context-tokens",
        type=at_least_one,
        metavar="N",
        help="context window of the workers, so that the client shortens conversations in time (default: it guesses)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--remove", action="store_true", help="take out what `fugu connect` had put in")
    what.add_argument("--print", action="store_true", help="show what would be put where, and write nothing")
    parser.set_defaults(run=_command)


def _command(args: argparse.Namespace) -> int:
    client = CLIENTS[args.client]
    target = _read_target(args)
    parts = client.parts(target, os.environ)
    if args.print:
        for part in parts:
            out.print(_describe(part))
        return 0
    plan = plan_take if args.remove else plan_put
    changes = [change for part in parts for change in plan(part)]
    apply_changes(changes)
    is_changed = any(change.is_needed for change in changes)
    for change in changes:
        if change.is_needed:
            out.print(_tell(change))
    if args.remove:
        if not is_changed:
            out.print(f"nothing of ours is in {', '.join(str(part.path) for part in parts)}")
        return 0
    if not is_changed:
        out.print(f"{', '.join(str(part.path) for part in parts)}: already so")
    out.print("next:")
    if target.key_env not in os.environ:
        out.print(f"  export {target.key_env}=...   # one of the server's keys; any word if it has none")
    out.print(f"  {client.start(target)}")
    return 0


def _read_target(args: argparse.Namespace) -> Target:
    url, model, key_env = args.url, args.model, args.key_env
    if any(sign in url for sign in "@?#"):  # may hold a secret: not quoted
        raise ConfigError("--url: expected no '@', no '?' and no '#' in it: name the key's variable in --key-env")
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isprintable() or " " in url:
        raise ConfigError(f"--url {url!r}: expected http://HOST:PORT or https://HOST")
    if not model or not model.isprintable() or model != model.strip():
        raise ConfigError(f"--model {model!r}: expected the name of a model, as GET /v1/models lists them")
    if not _VARIABLE.fullmatch(key_env):
        raise ConfigError("--key-env: expected the name of an environment variable, not the key itself")
    root = url.rstrip("/").removesuffix("/v1").rstrip("/")
    return Target(root=root, model=model, key_env=key_env, context_tokens=args.context_tokens)


def _describe(part: Part) -> str:
    if isinstance(part, Block):
        return f"# {part.path}{' (at the top)' if part.is_at_top else ''}\n{part.lines.rstrip()}\n"
    merged: dict[str, object] = {}
    for holder, members in part.members.items():
        inner = merged
        for name in holder:
            inner = inner.setdefault(name, {})  # type: ignore[assignment]  # made here, so it is a dict
        inner.update(members)
    return f"# {part.path}\n{json.dumps(merged, indent=2, ensure_ascii=False)}\n"


def _tell(change: Change) -> str:
    if change.after is None:
        return f"removed {change.path}"
    return f"{'wrote' if change.before is None else 'changed'} {change.path}"


# --- Codex ---


def _codex(target: Target, environ: Mapping[str, str]) -> list[Part]:
    folder = Path(environ.get("CODEX_HOME") or Path.home() / ".codex")
    config, profile = folder / "config.toml", folder / "fugu.config.toml"
    provider: dict[str, str | int] = {
        "name": "Torafugu",
        "base_url": target.base_url,
        "wire_api": "responses",
        "env_key": target.key_env,
        "stream_idle_timeout_ms": _SILENCE_MS,
        "request_max_retries": _CLIENT_RETRIES,
        "stream_max_retries": _CLIENT_RETRIES,
    }
    chosen: dict[str, str | int] = {"model": target.model, "model_provider": "fugu"}
    if target.context_tokens is not None:
        chosen["model_context_window"] = target.context_tokens
    return [
        Block(
            path=config,
            lines=f"[model_providers.fugu]\n{_toml(provider)}",
            check=_check_toml(config, (("model_providers", "fugu"),)),
        ),
        # A profile is a file of its own: a table [profiles.*] keeps newer versions from starting.
        Block(
            path=profile, lines=_toml(chosen), check=_check_toml(profile, [(key,) for key in chosen]), is_at_top=True
        ),
    ]


def _start_codex(target: Target) -> str:
    del target
    return "codex --profile fugu"


def _toml(values: Mapping[str, str | int]) -> str:
    return "\n".join(f"{key} = {_quote(value) if isinstance(value, str) else value}" for key, value in values.items())


def _check_toml(path: Path, ours: Iterable[tuple[str, ...]]) -> Callable[[str, str], None]:
    def check(rest: str, whole: str) -> None:
        try:
            table = tomllib.loads(rest)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
        for names in ours:
            inner: object = table
            for name in names:
                inner = inner.get(name) if isinstance(inner, dict) else None
            if inner is not None:
                raise _taken(path, ".".join(names))
        try:
            tomllib.loads(whole)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: what --print shows does not go with what is there: {error}") from None

    return check


# --- Claude Code ---


def _claude_code(target: Target, environ: Mapping[str, str]) -> list[Part]:
    folder = Path(environ.get("CLAUDE_CONFIG_DIR") or Path.home() / ".claude")
    sizes = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("FABLE", "OPUS", "SONNET", "HAIKU")))
    env = {
        "ANTHROPIC_BASE_URL": target.root,
        # Empty, so that keys of the shell, which are Anthropic's, are not sent to this server as well.
        "ANTHROPIC_API_KEY": "",
        "ANTHROPIC_AUTH_TOKEN": "",
        **dict.fromkeys(sizes, target.model),
        "API_TIMEOUT_MS": str(_SILENCE_MS),
    }
    if target.context_tokens is not None:
        env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(target.context_tokens)
    # A command instead of a key. A server without keys takes any word; without one Claude Code asks to log in.
    helper = f"printenv {target.key_env} || echo none"
    return [Members(path=folder / "settings.json", members={(): {"apiKeyHelper": helper}, ("env",): env})]


def _start_claude_code(target: Target) -> str:
    del target
    return "claude"


# --- opencode ---


def _opencode(target: Target, environ: Mapping[str, str]) -> list[Part]:
    folder = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "opencode"
    places = (folder / "opencode.jsonc", folder / "opencode.json")
    path = next(filter(holds_ours, places), None) or next((place for place in places if place.exists()), places[-1])
    if environ.get("OPENCODE_CONFIG"):
        path = Path(environ["OPENCODE_CONFIG"])
    model: dict[str, Json] = {"name": target.model}
    if target.context_tokens is not None:
        output = min(_OPENCODE_OUTPUT_TOKENS, target.context_tokens // 2)
        model["limit"] = {"context": target.context_tokens, "output": output}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Torafugu",
        "options": {"baseURL": target.base_url, "apiKey": f"{{env:{target.key_env}}}"},
        "models": {target.model: model},
    }
    return [Members(path=path, members={("provider",): {"fugu": provider}})]


def _start_opencode(target: Target) -> str:
    return f"opencode --model {shlex.quote(f'fugu/{target.model}')}"


# --- aider ---


def _aider(target: Target, environ: Mapping[str, str]) -> list[Part]:
    del environ  # aider looks in the home folder only
    home, model = Path.home(), f"openai/{target.model}"
    conf, settings = home / ".aider.conf.yml", home / ".aider.model.settings.yml"
    known: dict[str, Json] = {"litellm_provider": "openai", "mode": "chat"}  # enough to be a model that it knows
    if target.context_tokens is not None:
        known["max_input_tokens"] = target.context_tokens
    return [
        Block(
            path=conf,
            lines=f"openai-api-base: {_quote(target.base_url)}\nmodel: {_quote(model)}",
            check=_check_yaml_keys(conf, ("openai-api-base", "model")),
        ),
        # For models that it does not know it would ask for whole files instead of changes.
        Block(
            path=settings,
            lines=f"- name: {_quote(model)}\n  edit_format: diff\n  use_repo_map: true",
            check=_check_yaml_list(settings, model),
        ),
        Members(path=home / ".aider.model.metadata.json", members={(): {model: known}}),
    ]


def _start_aider(target: Target) -> str:
    return f'OPENAI_API_KEY="${target.key_env}" aider'


def _check_yaml_keys(path: Path, ours: Iterable[str]) -> Callable[[str, str], None]:
    def check(rest: str, whole: str) -> None:
        del whole
        for number, line in _yaml_lines(rest):
            key = _YAML_KEY.match(line)
            if key is None and not line.startswith("- "):
                raise ConfigError(f"{path}: line {number}: {line!r}: expected `key: value` at the left margin")
            if key is not None and key[1].strip("\"'") in ours:
                raise _taken(path, key[1])

    return check


def _check_yaml_list(path: Path, model: str) -> Callable[[str, str], None]:
    def check(rest: str, whole: str) -> None:
        del whole
        for number, line in _yaml_lines(rest):
            if not line.startswith("- "):
                raise ConfigError(f"{path}: line {number}: {line!r}: expected `- name: MODEL` at the left margin")
        if any(name.strip("\"'") == model for name in _YAML_NAME.findall(rest)):
            raise _taken(path, model)

    return check


def _yaml_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that begin at the left margin, where ours will stand beside them."""
    for number, line in enumerate(text.splitlines(), start=1):
        is_start = line.rstrip() == "---" and number == 1
        if line.strip() and not line.startswith((" ", "#")) and not is_start:
            yield number, line


# --- all of them ---


def _quote(text: str) -> str:
    """As TOML and YAML both read it."""
    return json.dumps(text, ensure_ascii=False)


def _taken(path: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{path}: {name!r} is set there, and not by `fugu connect`: take it out first, or put in by hand what "
        "--print shows"
    )


CLIENTS: Mapping[str, Client] = {
    "codex": Client(parts=_codex, start=_start_codex),
    "claude-code": Client(parts=_claude_code, start=_start_claude_code),
    "opencode": Client(parts=_opencode, start=_start_opencode),
    "aider": Client(parts=_aider, start=_start_aider),
}
