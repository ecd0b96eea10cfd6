"""`fugu connect`: what it writes for each client, that it keeps what is not ours to the byte, and when it refuses."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import Fugu, Said
from torafugu.cli.jsonc import parse, put_members, take_member

CLIENTS = ("codex", "claude-code", "opencode", "aider")
SECRET = "sk-never-in-a-file"
CODEX, PROFILE = ".codex/config.toml", ".codex/fugu.config.toml"
CLAUDE, OPENCODE = ".claude/settings.json", ".config/opencode/opencode.json"
AIDER, SETTINGS, METADATA = ".aider.conf.yml", ".aider.model.settings.yml", ".aider.model.metadata.json"


@dataclass(frozen=True)
class Home:
    """A home folder of its own, and the command run in it."""

    path: Path
    capture: pytest.CaptureFixture[str]

    def fugu(self, *arguments: str) -> Said:
        return Fugu(self.capture)("connect", *arguments)

    def write(self, name: str, content: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
        return path

    def read(self, name: str) -> str:
        return (self.path / name).read_bytes().decode()

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.path)): p.read_bytes() for p in self.path.rglob("*") if p.is_file()}


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("CODEX_HOME", "CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "OPENCODE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FUGU_API_KEY", SECRET)
    return Home(tmp_path, capsys)


# What is written


def test_codex_gets_a_provider_and_a_profile(home: Home) -> None:
    """Codex finds a provider that speaks responses, with its key in the environment, and a profile that uses it."""
    said = home.fugu("codex", "--url", "http://localhost:9000/v1/", "--model", "fugu-ultra")
    assert said.status == 0, said.err
    provider = tomllib.loads(home.read(CODEX))["model_providers"]["fugu"]
    assert provider["base_url"] == "http://localhost:9000/v1"
    assert (provider["wire_api"], provider["env_key"]) == ("responses", "FUGU_API_KEY")
    assert tomllib.loads(home.read(PROFILE)) == {"model": "fugu-ultra", "model_provider": "fugu"}
    assert f"wrote {home.path / CODEX}\nwrote {home.path / PROFILE}\nnext:\n  codex --profile fugu\n" == said.out


def test_claude_code_is_sent_to_the_server_without_a_key_in_the_file(home: Home) -> None:
    """Every model that Claude Code asks for is ours, its key comes from a command, keys of the shell are blanked."""
    assert home.fugu("claude-code", "--url", "https://fugu.example/v1", "--key-env", "MY_KEY").status == 0
    settings = json.loads(home.read(CLAUDE))
    assert settings["apiKeyHelper"] == "printenv MY_KEY || echo none"
    env = settings["env"]
    assert env["ANTHROPIC_BASE_URL"] == "https://fugu.example"
    assert env["ANTHROPIC_API_KEY"] == env["ANTHROPIC_AUTH_TOKEN"] == ""
    assert {value for name, value in env.items() if name.endswith("_MODEL")} == {"fugu"}


def test_opencode_gets_a_provider(home: Home) -> None:
    """opencode finds our endpoint as a provider of its own, whose key stands in the environment."""
    said = home.fugu("opencode", "--model", "alpha")
    provider = json.loads(home.read(OPENCODE))["provider"]["fugu"]
    assert provider["options"] == {"baseURL": "http://127.0.0.1:8377/v1", "apiKey": "{env:FUGU_API_KEY}"}
    assert list(provider["models"]) == ["alpha"]
    assert said.out.endswith("next:\n  opencode --model fugu/alpha\n")


def test_aider_knows_endpoint_model_and_edit_format(home: Home) -> None:
    """aider is told endpoint and model, that the model makes edits as diffs, and enough to know it."""
    said = home.fugu("aider")
    assert 'openai-api-base: "http://127.0.0.1:8377/v1"\nmodel: "openai/fugu"' in home.read(AIDER)
    assert '- name: "openai/fugu"\n  edit_format: diff\n' in home.read(SETTINGS)
    assert json.loads(home.read(METADATA))["openai/fugu"]["litellm_provider"] == "openai"
    assert said.out.endswith('next:\n  OPENAI_API_KEY="$FUGU_API_KEY" aider\n')


def test_a_context_window_is_told_to_each_client(home: Home) -> None:
    """--context-tokens reaches every client under its own name for it; without it nothing is claimed."""
    for client in CLIENTS:
        assert home.fugu(client, "--context-tokens", "64000").status == 0
    assert tomllib.loads(home.read(PROFILE))["model_context_window"] == 64000
    assert json.loads(home.read(CLAUDE))["env"]["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "64000"
    model = json.loads(home.read(OPENCODE))["provider"]["fugu"]["models"]["fugu"]
    assert model["limit"] == {"context": 64000, "output": 32000}
    assert json.loads(home.read(METADATA))["openai/fugu"]["max_input_tokens"] == 64000
    for client in CLIENTS:
        assert home.fugu(client).status == 0
    assert all(b"64000" not in content for content in home.files().values())


@pytest.mark.parametrize("client", CLIENTS)
def test_no_secret_is_written(client: str, home: Home) -> None:
    """The key's value stands in no file and is not printed; only its variable is named."""
    said = home.fugu(client)
    shown = home.fugu(client, "--print")
    assert said.status == shown.status == 0
    assert SECRET not in said.out + said.err + shown.out
    assert home.files()
    assert all(SECRET.encode() not in content for content in home.files().values())


def test_the_way_to_a_key_is_named_where_there_is_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable in the environment, the next command is to export it."""
    monkeypatch.delenv("FUGU_API_KEY")
    assert "next:\n  export FUGU_API_KEY=..." in home.fugu("codex").out


@pytest.mark.parametrize("client", CLIENTS)
def test_printing_writes_nothing(client: str, home: Home) -> None:
    """--print shows path and content of each file, and leaves the home folder empty."""
    said = home.fugu(client, "--print", "--url", "http://localhost:9")
    assert said.status == 0
    assert "http://localhost:9" in said.out
    assert str(home.path) in said.out
    assert home.files() == {}


@pytest.mark.parametrize(
    ("client", "variable", "value", "file"),
    [
        ("codex", "CODEX_HOME", "c", "c/config.toml"),
        ("claude-code", "CLAUDE_CONFIG_DIR", "c", "c/settings.json"),
        ("opencode", "XDG_CONFIG_HOME", "x", "x/opencode/opencode.json"),
        ("opencode", "OPENCODE_CONFIG", "mine.jsonc", "mine.jsonc"),
    ],
)
def test_places_that_a_client_is_told_of_are_used(
    client: str, variable: str, value: str, file: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables that move a client's configuration move ours with it."""
    monkeypatch.setenv(variable, str(home.path / value))
    assert home.fugu(client).status == 0
    assert "127.0.0.1:8377" in home.read(file)
    assert not list(home.path.glob(".c*"))
    assert home.fugu(client, "--remove").status == 0
    assert home.files() == {}


def test_opencode_with_comments_in_its_file(home: Home) -> None:
    """Where opencode.jsonc is, it is used, its comments and commas stay, and it is found again beside a second file."""
    before = '{\n  // mine\n  "theme": "dark", /* , */\n  "provider": {\n    "own": {},\n  },\n}\n'
    home.write(".config/opencode/opencode.jsonc", before)
    assert home.fugu("opencode").status == 0
    text = home.read(".config/opencode/opencode.jsonc")
    assert "// mine" in text
    assert set(parse(text).value["provider"]) == {"own", "fugu"}
    home.write(OPENCODE, "{}")
    assert home.fugu("opencode", "--remove").status == 0
    assert home.read(".config/opencode/opencode.jsonc") == before


# What is kept

OTHERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "codex": (
        "codex",
        CODEX,
        (
            '# mine\nmodel = "gpt-6"  # stays\n\n[profiles]\n',
            'model = "gpt-6"',
            "[tui]\r\nanimations = false\r\n",
            "",
            "\n",
        ),
    ),
    "profile": ("codex", PROFILE, ('approval_policy = "never"\n\n[tui]\nanimations = false\n', "# only this")),
    "claude-code": (
        "claude-code",
        CLAUDE,
        (
            '{\n    "permissions": {\n        "allow": ["Bash"]\n    },\n    "env": {\n        "FOO": "1"\n    }\n}',
            '{"env":{"FOO":"1"},"hooks":{}}\n',
            '{\n\t"env": {}\n}\n',
            "{}",
            '{\r\n  "model": "opus"\r\n}\r\n',
            "",
            " \n",
        ),
    ),
    "opencode": ("opencode", OPENCODE, ('{ "provider": { "own": { "name": "ü" } } }', '{\n  "provider": {\n  }\n}\n')),
    "aider": (
        "aider",
        AIDER,
        (
            "# mine\ndark-mode: true\nread:\n- A.md\n  # deep\nlint-cmd:\n  - x\n",
            "auto-commits: false",
            "---\nvim: true\n",
        ),
    ),
    "settings": ("aider", SETTINGS, ("- name: openai/gpt-4o\n  edit_format: diff\n", "# none")),
    "metadata": ("aider", METADATA, ('{"openai/x": {"mode": "chat"}}',)),
}
KEPT = [(client, file, text) for client, file, texts in OTHERS.values() for text in texts]


@pytest.mark.parametrize(("client", "file", "before"), KEPT)
def test_what_is_not_ours_keeps_its_bytes(client: str, file: str, before: str, home: Home) -> None:
    """Connecting twice changes nothing the second time; connecting anew replaces ours; removing restores every byte and
    leaves no file of ours behind."""
    home.write(file, before)
    assert home.fugu(client).status == 0
    connected = home.files()
    assert home.read(file) != before
    assert home.read(f"{file}.fugu-backup") == before
    assert "already so" in home.fugu(client).out
    assert home.files() == connected
    assert home.fugu(client, "--url", "http://10.0.0.7:80", "--model", "alpha").status == 0
    assert "127.0.0.1" not in home.read(file)
    assert home.fugu(client).status == 0
    assert home.read(file) == connected[file].decode()
    assert home.fugu(client, "--remove").status == 0
    assert home.files() == {file: before.encode()}


@pytest.mark.parametrize("client", CLIENTS)
def test_files_that_were_not_there_are_gone_again(client: str, home: Home) -> None:
    """Removing takes away the files that connecting made; removing once more says that there is nothing."""
    assert home.fugu(client).status == 0
    assert home.fugu(client, "--remove").status == 0
    assert home.files() == {}
    again = home.fugu(client, "--remove")
    assert again.status == 0
    assert "nothing of ours is in" in again.out


def test_tables_that_codex_adds_after_ours_survive(home: Home) -> None:
    """What a program writes after our block is not taken for ours: Codex keeps comments, and adds tables at the end."""
    home.write(CODEX, 'model = "gpt-6"')
    home.fugu("codex")
    added = '\n[mcp_servers.foo]\ncommand = "echo"\n'
    home.write(CODEX, home.read(CODEX) + added)
    assert home.fugu("codex", "--model", "alpha").status == 0
    assert home.fugu("codex", "--remove").status == 0
    assert home.read(CODEX) == 'model = "gpt-6"' + added
    assert home.read(f"{CODEX}.fugu-backup") == 'model = "gpt-6"'


def test_lines_are_not_joined_when_a_block_goes(home: Home) -> None:
    """Where a line was written right after our block, the line break before it stays."""
    home.write(CODEX, "hide_agent_reasoning = true")
    home.fugu("codex")
    home.write(CODEX, home.read(CODEX) + "[tui]\n")
    before = home.read(CODEX)
    assert "already so" in home.fugu("codex").out
    assert home.read(CODEX) == before
    assert home.fugu("codex", "--remove").status == 0
    assert tomllib.loads(home.read(CODEX)) == {"hide_agent_reasoning": True, "tui": {}}


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("client", ["claude-code", "opencode"])
def test_a_file_that_was_written_anew_loses_only_ours(client: str, indent: int | None, home: Home) -> None:
    """After a program wrote a JSON file again, in its own form and order and with more in it, our members can still be
    taken out, and replaced."""
    file = CLAUDE if client == "claude-code" else OPENCODE
    mine = {"env": {"FOO": "1"}, "theme": "dark"} if client == "claude-code" else {"theme": "dark"}
    home.write(file, json.dumps(mine))
    for action in ("--remove", "--model=alpha"):
        home.fugu(client)
        settings = json.loads(home.read(file))
        home.write(file, json.dumps(dict(sorted({**settings, "zzz": [1]}.items())), indent=indent))
        assert home.fugu(client, action).status == 0
        assert json.loads(home.read(file))["zzz"] == [1]
        assert json.loads(home.read(file))["theme"] == "dark"
    assert "alpha" in home.read(file)
    assert home.fugu(client, "--remove").status == 0
    assert json.loads(home.read(file)) == {**mine, "zzz": [1]}


def test_permissions_and_links_stay(home: Home) -> None:
    """A link into somebody's dotfiles stays one, the file behind it keeps its mode, and files of ours are private."""
    real = home.write("dotfiles/codex.toml", "# mine\n")
    real.chmod(0o640)
    (home.path / ".codex").mkdir()
    (home.path / CODEX).symlink_to(real)
    assert home.fugu("codex").status == 0
    assert (home.path / CODEX).is_symlink()
    assert "model_providers" in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert stat.S_IMODE((home.path / PROFILE).stat().st_mode) == 0o600
    assert home.fugu("codex", "--remove").status == 0
    assert real.read_text() == "# mine\n"


# When it refuses


@pytest.mark.parametrize(
    ("client", "file", "content", "named"),
    [
        ("codex", CODEX, '[model_providers.fugu]\nname = "mine"\n', "'model_providers.fugu' is set there"),
        ("codex", PROFILE, 'model = "gpt-6"\n', "'model' is set there"),
        ("claude-code", CLAUDE, '{"apiKeyHelper": "x", "env": {"ANTHROPIC_MODEL": "opus"}}', "env.ANTHROPIC_MODEL"),
        ("opencode", OPENCODE, '{"provider": {"fugu": {}}}', "provider.fugu is set already"),
        ("aider", AIDER, "dark-mode: true\nmodel: gpt-4o\n", "'model' is set there"),
        ("aider", AIDER, '"openai-api-base" : http://x\n', "openai-api-base"),
        ("aider", SETTINGS, "- name: 'openai/fugu'  # mine\n", "'openai/fugu' is set there"),
        ("aider", METADATA, '{"openai/fugu": {}}', "openai/fugu is set already"),
        ("codex", CODEX, "model = \n", "not TOML"),
        ("codex", CODEX, "model_providers = { own = {} }\n", "does not go with what is there"),
        ("claude-code", CLAUDE, '{"env": {"A": 1}', "not JSON: line 1"),
        ("claude-code", CLAUDE, '{"env": "A"}', "env is no object"),
        ("claude-code", CLAUDE, "[]", "expected a JSON object"),
        ("opencode", OPENCODE, '{"provider": [],}', "provider is no object"),
        ("aider", AIDER, "{model: gpt-4o}\n", "expected `key: value` at the left margin"),
        ("aider", AIDER, "dark-mode: true\n...\n", "line 2"),
        ("aider", SETTINGS, "  - name: x\n- y\nz: 1\n", "line 3"),
    ],
)
def test_what_stands_in_the_way_is_named_and_left_alone(
    client: str, file: str, content: str, named: str, home: Home
) -> None:
    """A key that a person has set, or a file that cannot be read, ends with 2 and one line; no file is touched."""
    home.write(file, content)
    before = home.files()
    said = home.fugu(client)
    assert said.status == 2
    assert named in said.err
    assert file.rpartition("/")[2] in said.err
    assert said.err.count("\n") == 1
    assert home.files() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("  # <<< fugu connect <<<", ""),
        lambda text: text.replace("stream_max_retries", "\n[mine]\nstream_max_retries"),
        lambda text: text + text,
    ],
    ids=["no end", "a table inside", "twice"],
)
def test_a_damaged_block_is_not_guessed_at(damage: Any, home: Home) -> None:
    """Where our block is not whole any more, neither connecting nor removing touches the file."""
    home.fugu("codex")
    home.write(CODEX, damaged := damage(home.read(CODEX)))
    for arguments in (["codex"], ["codex", "--remove"]):
        said = home.fugu(*arguments)
        assert said.status == 2
        assert "take it out by hand" in said.err
        assert home.read(CODEX) == damaged


def test_a_file_that_is_not_text_is_refused(home: Home) -> None:
    """A configuration that is not UTF-8 is named, and stays."""
    path = home.write(AIDER, "")
    path.write_bytes(b"model: \xff\n")
    said = home.fugu("aider")
    assert said.status == 2
    assert "not UTF-8" in said.err
    assert path.read_bytes() == b"model: \xff\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "localhost:8377"], "expected http://HOST:PORT"),
        (["--url", "http://"], "expected http://HOST:PORT"),
        (["--url", "http://[::1"], "expected http://HOST:PORT"),
        (["--url", "http://a b/v1"], "expected http://HOST:PORT"),
        (["--url", f"http://me:{SECRET}@host/v1"], "expected no '@'"),
        (["--key-env", SECRET], "not the key itself"),
        (["--model", "a\nb"], "expected the name of a model"),
        (["--context-tokens", "0"], "expected a whole number of at least 1"),
    ],
)
def test_a_wrong_option_is_explained_without_its_secret(arguments: list[str], message: str, home: Home) -> None:
    """What is no address, variable or model ends with 2 and writes nothing; what may be a key is not shown."""
    said = home.fugu("codex", *arguments)
    assert said.status == 2
    assert message in said.err
    assert SECRET not in said.err
    assert home.files() == {}


def test_a_folder_that_cannot_be_written_is_named(home: Home) -> None:
    """Where a file stands in the place of a folder, the error names it."""
    home.write(".codex", "a file")
    said = home.fugu("codex")
    assert said.status != 0
    assert ".codex" in said.err
    assert "Traceback" not in said.err


# Text with members

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(st.text(max_size=3), _VALUES, max_size=4)


@given(_OBJECTS, _VALUES, st.sampled_from([None, 1, "\t"]), st.sampled_from(["", "\n", " // end"]))
def test_putting_in_and_taking_out_are_opposites(mine: Any, ours: Any, indent: Any, end: str) -> None:
    """Whatever the file holds, in whatever form: with our member it is that and ours, without the piece it is the text
    before, and taken out by name it is the value before."""
    text = json.dumps(mine, indent=indent) + end
    with_ours, piece = put_members(text, (), {"ours!": ours})
    assert parse(with_ours).value == {**mine, "ours!": ours}
    assert with_ours.count(piece) == 1
    assert with_ours.replace(piece, "") == text
    assert parse(take_member(with_ours, ["ours!"])).value == mine


@given(_OBJECTS, st.sampled_from([None, 2]))
def test_any_member_can_be_taken_out(mine: dict[str, Any], indent: int | None) -> None:
    """First, last or between: what is left is JSON without that member."""
    for name in mine:
        left = json.loads(take_member(json.dumps(mine, indent=indent), [name]))
        assert left == {other: value for other, value in mine.items() if other != name}


@pytest.mark.parametrize("text", ["", "{", '{"a" 1}', '{"a": 1 "b": 2}', "[1 2]", "{a: 1}", '"\n"', "{} {}", "[" * 200])
def test_what_is_not_json_says_where(text: str) -> None:
    """Broken text is a ValueError that says what was expected, whatever is broken."""
    with pytest.raises(ValueError, match=r"line \d+: .* expected|nested more than"):
        parse(text)


def test_taking_out_keeps_comments() -> None:
    """Comments around a member stay when it goes."""
    text = '{\n  "a": 1, // one\n  "b": 2 // two\n}\n'
    assert take_member(text, ["b"]) == '{\n  "a": 1 // one // two\n}\n'
    assert take_member(text, ["a"]) == '{ // one\n  "b": 2 // two\n}\n'
    assert take_member(text, ["c"]) == text


def test_no_temporary_file_stays(home: Home) -> None:
    """Nothing but the files that are named is left in the folders."""
    home.fugu("claude-code")
    assert sorted(os.listdir(home.path / ".claude")) == ["settings.json", "settings.json.fugu-connect"]
