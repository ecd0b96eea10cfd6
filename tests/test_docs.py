"""The documentation says what the code does: keys are explained, links lead somewhere, examples can be read."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from torafugu.cli.installation import Installation, read_installation
from torafugu.errors import WorkerCode
from torafugu.local.causal_lm import GeneratorOptions
from torafugu.orchestrate import Budget
from torafugu.orchestrate.conductor import ConductorConfig
from torafugu.orchestrate.head import Card
from torafugu.orchestrate.panel import PanelConfig
from torafugu.pool.recorded import Question, Sample
from torafugu.pool.spec import Limits, PoolSpec, Prices, Tags, Timeouts, WorkerSpec, read_pool
from torafugu.server.config import KeySpec, ServerConfig
from torafugu.server.sessions import SessionsConfig
from torafugu.store import RunRow

ROOT = Path(__file__).parents[1]
DOCS = sorted(ROOT.glob("docs/**/*.md"))
TOP = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "bench/README.md")
PAGES = [*(ROOT / name for name in TOP), *DOCS]
SECTIONS = {
    "### fugu.toml": Installation,
    "#### `[server]`": ServerConfig,
    "#### `[[server.keys]]`": KeySpec,
    "#### `[conductor]`": ConductorConfig,
    "#### `[panel]`": PanelConfig,
    "#### `[budget]`": Budget,
    "#### `[sessions]`": SessionsConfig,
    "#### Local workers": GeneratorOptions,
    "### pool.toml": PoolSpec,
    "#### `[[worker]]`": WorkerSpec,
    "#### `prices`": Prices,
    "#### `tags`": Tags,
    "#### `limits`": Limits,
    "#### `timeouts`": Timeouts,
}
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_JSON = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", re.MULTILINE)


def section(heading: str, page: str = "docs/reference.md") -> str:
    """The text under a heading of a page, up to the next heading."""
    _, found, rest = (ROOT / page).read_text().partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        if page.exists():
            text = _FENCE.sub("", page.read_text())
            yield from ((page, link) for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link))


def examples() -> list[tuple[str, str]]:
    return [
        (f"{page.relative_to(ROOT)}-{number}", text)
        for page in DOCS
        for number, text in enumerate(_TOML.findall(page.read_text()), start=1)
    ]


@pytest.mark.parametrize(("heading", "cls"), SECTIONS.items(), ids=[cls.__name__ for cls in SECTIONS.values()])
def test_every_key_has_its_row(heading: str, cls: type) -> None:
    """Each key of a file has one row in the section of its table, and no row is about a key that there is not."""
    told = [name for name, _ in _ROW.findall(section(heading))]
    assert told == [field.name for field in dataclasses.fields(cls)]


@pytest.mark.parametrize(("heading", "cls"), SECTIONS.items(), ids=[cls.__name__ for cls in SECTIONS.values()])
def test_defaults_are_told_as_they_are(heading: str, cls: type) -> None:
    """A key is called required if and only if it is; a number or text that stands as its default is its default."""
    told = dict(_ROW.findall(section(heading)))
    for field in dataclasses.fields(cls):
        default = told[field.name].strip()
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert default.startswith("*required*") == is_required, field.name
        if isinstance(field.default, (bool, int, float, str)):
            assert tomllib.loads(f"it = {default.strip('`')}")["it"] == field.default, field.name


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("docs/recorded-format.md", "## questions", Question.__struct_fields__),
        ("docs/recorded-format.md", "## outcomes", Sample.__struct_fields__),
        ("docs/reference.md", "### card.json", Card.__struct_fields__),
        ("docs/reference.md", "### A run", RunRow.__struct_fields__),
        ("docs/reference.md", "### Errors", get_args(WorkerCode)),
    ],
)
def test_every_field_and_code_is_explained(page: str, heading: str, names: tuple[str, ...]) -> None:
    """Each field of what is written, and each way in which a worker fails, stands in the section about it."""
    told = section(heading, page)
    assert [name for name in names if f"`{name}`" not in told] == []


def test_rows_of_the_recorded_format_can_be_read() -> None:
    """Every example row of questions and outcomes is one, and says nothing that would be passed over."""
    for heading, row_type in (("## questions", Question), ("## outcomes", Sample)):
        rows = "".join(_JSON.findall(section(heading, "docs/recorded-format.md"))).splitlines()
        assert len(rows) >= 3
        for row in rows:
            assert json.loads(row).keys() <= set(row_type.__struct_fields__)
            msgspec.json.decode(row, type=row_type)


def test_pages_are_there() -> None:
    """Every page whose links are checked exists."""
    assert [str(page) for page in PAGES if not page.exists()] == []


def test_links_lead_to_files() -> None:
    """Every relative link of a page leads to a file or folder of this repository."""
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page, link in links()
        if not (page.parent / link.partition("#")[0]).exists()
    ]
    assert broken == []


def test_anchors_lead_to_headings() -> None:
    """Every link into a page of Markdown leads to one of its headings."""
    broken = []
    for page, link in links():
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if anchor and target.suffix == ".md" and target.exists() and anchor not in anchors(target):
            broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


@pytest.mark.parametrize("text", [text for _, text in examples()], ids=[name for name, _ in examples()])
def test_examples_are_accepted(text: str, tmp_path: Path) -> None:
    """Every TOML example is TOML; one that declares workers is a pool file, any other an installation file."""
    file = tmp_path / "example.toml"
    file.write_text(text)
    if "worker" in tomllib.loads(text):
        assert read_pool(file).worker
    else:
        read_installation(file)


def test_reference_has_an_example_of_each_file() -> None:
    """The reference shows a pool file and an installation file."""
    shown = [tomllib.loads(text) for name, text in examples() if name.startswith("docs/reference.md")]
    assert any("worker" in table for table in shown)
    assert any("server" in table for table in shown)
