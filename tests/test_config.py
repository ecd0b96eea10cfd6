"""TOML in, frozen dataclasses out: every mistake in a file is named with its key, its value and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest

from torafugu.config import read_table, read_toml
from torafugu.errors import ConfigError
from torafugu.pool.spec import read_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ConfigError(f"size {self.size}: expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    name: str
    count: int = 0
    ratio: float = 0.5
    price: Decimal | None = None
    on: bool = False
    mode: Literal["fast", "slow"] = "fast"
    path: Path | None = None
    words: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    inners: tuple[Inner, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)


def read(text: str, folder: Path) -> Sample:
    path = folder / "sample.toml"
    path.write_text(text, encoding="utf-8")
    return read_table(Sample, read_toml(path), where="sample.toml")


def test_a_file_becomes_a_dataclass(tmp_path: Path) -> None:
    """Every type has its TOML form, decimals stay exact, and what is left out has its default."""
    sample = read(
        """
        name = "n"
        count = 3
        ratio = 2
        price = 0.1
        on = true
        mode = "slow"
        path = "~/x"
        words = ["a", "b"]
        inner = { size = 7 }
        weights = { a = 1 }
        free = { a = [1, 2.5, "x", true], b = { c = 0.25 } }
        [[inners]]
        size = 1
        [[inners]]
        """,
        tmp_path,
    )
    assert sample == Sample(
        name="n",
        count=3,
        ratio=2.0,
        price=Decimal("0.1"),
        on=True,
        mode="slow",
        path=Path.home() / "x",
        words=("a", "b"),
        inner=Inner(size=7),
        inners=(Inner(size=1), Inner()),
        weights={"a": 1},
        free={"a": [1, 2.5, "x", True], "b": {"c": 0.25}},
    )
    assert type(sample.ratio) is float
    assert type(sample.free["b"]["c"]) is float
    assert read('name = "n"', tmp_path) == Sample(name="n")
    assert read('name = "n"\nprice = "0.10"', tmp_path).price == Decimal("0.10")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nmae = 1", "sample.toml: unknown key 'nmae': expected one of count, free, inner, inners, mode, name, on"),
        ("count = 2.5", "sample.toml.count: Decimal('2.5') is not an integer"),
        ("count = true", "sample.toml.count: True is not an integer"),
        ('count = "3"', "sample.toml.count: '3' is not an integer"),
        ("ratio = true", "sample.toml.ratio: True is not a number"),
        ('ratio = "half"', "sample.toml.ratio: 'half' is not a number"),
        ('price = "much"', "sample.toml.price: 'much' is not a number"),
        ("price = []", "sample.toml.price: [] is not a number"),
        ("on = 1", "sample.toml.on: 1 is not true or false"),
        ('mode = "quick"', "sample.toml.mode: 'quick' is not one of 'fast', 'slow'"),
        ("path = 3", "sample.toml.path: 3 is not a path"),
        ('words = "a"', "sample.toml.words: 'a' is not a list of strings"),
        ('words = ["a", 2]', "sample.toml.words[1]: 2 is not a string"),
        ("inner = 1", "sample.toml.inner: 1 is not a table"),
        ("inner = { sise = 1 }", "sample.toml.inner: unknown key 'sise': expected one of size"),
        ("inner = { size = -1 }", "sample.toml.inner: size -1: expected 0 or more"),
        ("inners = [{ size = 1 }, { size = 'x' }]", "sample.toml.inners[1].size: 'x' is not an integer"),
        ("inners = 1", "sample.toml.inners: 1 is not"),
        ("weights = [1]", "sample.toml.weights: [1] is not a table"),
        ("weights = { a = 'x' }", "sample.toml.weights.a: 'x' is not an integer"),
        ("free = { a = [2026-11-21] }", "sample.toml.free.a[0]: datetime.date(2026, 11, 21) is not a value that JSON"),
        ("free = { a = nan }", "sample.toml.free.a: Decimal('NaN') is not a value that JSON has"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(line: str, message: str, tmp_path: Path) -> None:
    """The error says where, what stands there, and what may stand there."""
    with pytest.raises(ConfigError) as caught:
        read(f'name = "n"\n{line}', tmp_path)
    assert str(caught.value).startswith(message)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """With the type that was expected."""
    with pytest.raises(ConfigError, match=r"sample\.toml: key 'name' is missing: expected a string"):
        read("", tmp_path)


@pytest.mark.parametrize("text", [b"a = ", b"a = '\xff'", b"a=1\na=2"])
def test_a_file_that_is_not_toml_is_named(text: bytes, tmp_path: Path) -> None:
    """Syntax, encoding and double keys are told with the file's name."""
    path = tmp_path / "broken.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"broken\.toml: not TOML"):
        read_toml(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file and a folder in its place are told apart."""
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)


# --- pool files ---

WORKER = '[[worker]]\nid = "a"\ndialect = "openai"\nmodel = "m"\n'


def pool(text: str, folder: Path) -> Any:
    path = folder / "pool.toml"
    path.write_text(text, encoding="utf-8")
    return read_pool(path)


def test_a_pool_file_is_read(tmp_path: Path) -> None:
    """Prices stay exact, and what is sent along may hold any JSON."""
    text = WORKER + (
        "prices = { input = 0.15, output = 0.60 }\n"
        'tags = { provider = "p", zero_retention = true }\n'
        "timeouts = { total_s = 30 }\n"
        'modalities = ["text", "pdf"]\n'
        "efforts = []\n"
        'refuses = ["temperature"]\n'
        "late_system = true\n"
        'extra_body = { temperature = 0.2, provider = { order = ["x"] } }\n'
    )
    (worker,) = pool("max_attempts = 2\n" + text, tmp_path).worker
    assert worker.prices.input == Decimal("0.15")
    assert worker.tags.zero_retention is True
    assert worker.timeouts.total_s == 30.0
    assert (worker.modalities, worker.efforts, worker.refuses, worker.late_system) == (
        ("text", "pdf"),
        (),
        ("temperature",),
        True,
    )
    assert worker.extra_body == {"temperature": 0.2, "provider": {"order": ["x"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the pool is empty: declare at least one"),
        ("worker = []", "the pool is empty"),
        ("worker = 3", "worker: 3 is not a list"),
        (WORKER + WORKER, "worker id 'a' is declared twice"),
        ("max_attempts = 0\n" + WORKER, "max_attempts 0: expected at least 1"),
        (WORKER.replace('"a"', '"a;b"'), r"worker\[0\]: id 'a;b': expected 1-100 letters"),
        (WORKER.replace('"openai"', '"opneai"'), r"worker\[0\].dialect: 'opneai' is not one of 'openai', 'anthropic'"),
        (WORKER.replace('model = "m"\n', ""), r"worker\[0\]: key 'model' is missing"),
        (WORKER + 'api_key = "sk"', r"worker\[0\]: unknown key 'api_key': expected one of base_url, context_tokens"),
        (WORKER + 'base_url = "localhost"', "base_url 'localhost': expected http:// or https://"),
        (WORKER + 'base_url = "http://"', "base_url 'http://': expected a host"),
        (WORKER + 'base_url = "http://h:port/v1"', "base_url 'http://h:port/v1': Port could not be cast"),
        (WORKER + 'base_url = "http://h/v1?key=k"', "base_url of 'h': expected no user"),
        (WORKER + 'base_url = "http://u:secret@h/v1"', "base_url of 'h': expected no user"),
        (WORKER + "limits = { concurrency = 0 }", "concurrency 0: expected at least 1"),
        (WORKER + "limits = { queue = -1 }", "queue -1: expected 0 or more"),
        (WORKER + "timeouts = { idle_s = 0 }", "idle_s 0.0: expected a number of seconds above 0"),
        (WORKER + "timeouts = { idle_s = nan }", "idle_s nan: expected"),
        (WORKER + "timeouts = { total_s = inf }", "total_s inf: expected"),
        (WORKER + "prices = { input = -1, output = 1 }", "input -1: expected USD per million tokens"),
        (WORKER + "prices = { input = 1, output = nan }", "output NaN: expected"),
        (WORKER + "prices = { input = 1 }", "key 'output' is missing"),
        (WORKER + "context_tokens = 0", "context_tokens 0: expected at least 1"),
        (WORKER + "max_output_tokens = -5", "max_output_tokens -5: expected at least 1"),
        (WORKER + 'modalities = ["text", "images"]', r"modalities\[1\]: 'images' is not one of 'text', 'image', 'pdf'"),
        (WORKER + 'efforts = ["hihg"]', r"efforts\[0\]: 'hihg' is not one of 'none', 'minimal', 'low'"),
        (
            WORKER.replace("openai", "anthropic") + 'efforts = ["low", "none"]',
            r"efforts\[1\]: 'none' is not one of 'low', 'medium', 'high', 'xhigh', 'max'",
        ),
        (WORKER + 'refuses = ["stop"]', r"refuses\[0\]: 'stop' is not one of 'temperature', 'top_p', 'seed'"),
        (WORKER + "late_system = 1", "late_system: 1 is not true or false"),
        (WORKER + "extra_body = { stream = true }", "extra_body: 'stream' is set by the pool"),
    ],
)
def test_a_mistake_in_a_pool_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    """Every rule of a pool file has an error that says which worker, which key and what to do."""
    with pytest.raises(ConfigError, match=message) as caught:
        pool(text, tmp_path)
    assert "pool.toml" in str(caught.value)
    assert "secret" not in str(caught.value)
