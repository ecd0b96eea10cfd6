"""Hidden states on disk: encoded once, the same when read back, never trusted when damaged."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from heads import DIM, Texts
from torafugu.errors import ConfigError
from torafugu.eval.states import KnownStates, default_cache, encode_questions
from torafugu.pool.recorded import Question
from torafugu.types import Message


def make_questions(count: int, start: int = 0) -> list[Question]:
    """Of different lengths, so that they are not encoded in their own order."""
    texts = [f"question {i} " + "x" * (i * 37 % 11) for i in range(start, start + count)]
    return [Question(qid=str(i), prompt=text, split="test") for i, text in enumerate(texts)]


def files_of(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_rows_belong_to_questions() -> None:
    """Row i is the state of question i, in whatever order and chunks they were encoded."""
    questions, encoder = make_questions(150), Texts()
    states = encode_questions(encoder, questions, cache=None)
    assert (states.shape, states.dtype) == ((150, DIM), np.float32)
    np.testing.assert_array_equal(states, encoder.states([q.text for q in questions]))
    assert sorted(encoder.read) == sorted(q.text for q in questions)


def test_second_call_encodes_nothing(tmp_path: Path) -> None:
    """What was encoded once is read back bit for bit, in another order and by another process's encoder too."""
    questions = make_questions(150)
    first = encode_questions(Texts(), questions, cache=tmp_path)
    encoder, told = Texts(), []
    again = encode_questions(encoder, questions[::-1], cache=tmp_path, progress=told.append)
    assert encoder.read == []
    assert again.tobytes() == first[::-1].tobytes()
    assert told == [150]


def test_only_the_unknown_are_encoded(tmp_path: Path) -> None:
    """More questions cost only themselves, and progress adds up to all of them."""
    encode_questions(Texts(), make_questions(100), cache=tmp_path)
    encoder, told = Texts(), []
    encode_questions(encoder, make_questions(170), cache=tmp_path, progress=told.append)
    assert sorted(encoder.read) == sorted(q.text for q in make_questions(70, start=100))
    assert told == [100, 64, 6]
    assert encode_questions(encoder, [], cache=tmp_path).shape == (0, DIM)


def test_no_cache_keeps_nothing(tmp_path: Path) -> None:
    """Without a cache every call encodes, and no file is written."""
    encoder = Texts()
    encode_questions(encoder, make_questions(3), cache=None)
    encode_questions(encoder, make_questions(3), cache=None)
    assert len(encoder.read) == 6
    assert files_of(tmp_path) == []


def test_another_encoder(tmp_path: Path) -> None:
    """States of one encoder are never taken for another's, nor those of another width."""
    questions = make_questions(5)
    encode_questions(Texts("one"), questions, cache=tmp_path)
    for encoder in (Texts("other"), Texts("one", dim=DIM * 2)):
        states = encode_questions(encoder, questions, cache=tmp_path)
        assert len(encoder.read) == 5
        assert states.shape == (5, encoder.dim)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "truncated": lambda raw: raw[:-7],
    "half": lambda raw: raw[: len(raw) // 2],
    "longer": lambda raw: raw + b"\0" * 4 * DIM,
    "flipped state": lambda raw: raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:],
    "flipped key": lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:],
    "foreign": lambda raw: b"PK\x03\x04 not ours at all",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_file(tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file is named in a warning and its texts are encoded again; never is a wrong state returned."""
    questions = make_questions(100)
    right = encode_questions(Texts(), questions, cache=tmp_path)
    path = files_of(tmp_path)[0]
    path.write_bytes(damage(path.read_bytes()))
    encoder = Texts()
    with caplog.at_level(logging.WARNING):
        assert encode_questions(encoder, questions, cache=tmp_path).tobytes() == right.tobytes()
    assert len(encoder.read) in (64, 36)
    assert str(path) in caplog.text


def test_repaired_by_encoding_again(tmp_path: Path) -> None:
    """When the texts of a damaged file are encoded again, the file is whole again."""
    questions = make_questions(30)
    encode_questions(Texts(), questions, cache=tmp_path)
    (path,) = files_of(tmp_path)
    path.write_bytes(b"")
    encode_questions(Texts(), questions, cache=tmp_path)
    encoder = Texts()
    encode_questions(encoder, questions, cache=tmp_path)
    assert encoder.read == []
    assert files_of(tmp_path) == [path]


def test_writers_at_once(tmp_path: Path) -> None:
    """Several writers of the very same texts do not disturb each other, and leave whole files only."""
    count = 4
    barrier = threading.Barrier(count)

    class AtOnce(Texts):
        def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            barrier.wait(timeout=10)
            return super().encode_texts(texts)

    questions = make_questions(40)
    with ThreadPoolExecutor(count) as threads:
        results = list(threads.map(lambda _: encode_questions(AtOnce(), questions, cache=tmp_path), range(count)))
    assert len({result.tobytes() for result in results}) == 1
    encoder = Texts()
    assert encode_questions(encoder, questions, cache=tmp_path).tobytes() == results[0].tobytes()
    assert encoder.read == []
    assert [path.suffix for path in files_of(tmp_path)] == [".states"]


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A cache folder that cannot be written is an error that names it and says what to do."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"file/.*cannot be kept: Not a directory: choose another folder"):
        encode_questions(Texts(), make_questions(3), cache=tmp_path / "file")


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache lies where the XDG rules say."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "torafugu" / "states"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/torafugu/states")


def test_known_states() -> None:
    """States that are known are handed out by the text of the last message; any other text is an error."""
    known = KnownStates("texts", {"a": np.ones(DIM, np.float32)}, DIM)
    messages = (Message(role="system", content="b"), Message(role="user", content="a"))
    assert asyncio.run(known.encode(messages)).hidden.tolist() == [1] * DIM
    with pytest.raises(KeyError):
        asyncio.run(known.encode(messages[:1]))
