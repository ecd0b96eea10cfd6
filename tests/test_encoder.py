"""The embedded encoder: the same features in training and serving, near to fp32, each window computed once."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from torafugu.errors import ModelError
from torafugu.local import READINGS, MiniLM
from torafugu.local.encoder import FOLDER
from torafugu.local.windows import CLS, HEAD_CHARS, MAX_WINDOWS, SEP, TAIL_CHARS, WINDOW_PIECES, cut
from torafugu.orchestrate.encoder import Encoder, Encoding
from torafugu.types import ImagePart, Message, Role, TextPart

FIXTURE = Path(__file__).parent / "fixtures/minilm_fp32.npz"
WORD = "word "  # one word piece


@pytest.fixture(scope="module")
def shared() -> Iterator[MiniLM]:
    """For tests that do not count runs."""
    minilm = MiniLM()
    yield minilm
    minilm.close()


@pytest.fixture
def minilm() -> Iterator[MiniLM]:
    """With nothing cached."""
    fresh = MiniLM()
    yield fresh
    fresh.close()


def encode(encoder: Encoder, *messages: Message) -> Encoding:
    return asyncio.run(encoder.encode(messages))


def say(text: str | None, role: Role = "user") -> Message:
    return Message(role=role, content=text)


def split_words(text: str) -> list[int]:
    """A tokeniser for the tests of `cut`: a piece per word, which says which word it was."""
    return [int(word) for word in text.split()]


def count_up(start: int, n: int) -> str:
    return " ".join(str(number) for number in range(start, start + n))


# --- the network ----------------------------------------------------------------------------------------------------


def test_close_to_fp32(shared: MiniLM) -> None:
    """The 8-bit embeddings have cosine >= 0.999 with those of the fp32 weights, and 0.995 for a three-token text."""
    with np.load(FIXTURE) as reference:
        texts, wanted = [str(text) for text in reference["texts"]], reference["embeddings"]
    cosines = (shared.encode_texts(texts) * wanted).sum(axis=1)
    assert texts[0] == "yes"
    assert cosines[0] >= 0.995
    assert len(cosines) >= 12
    assert cosines[1:].min() >= 0.999


def test_hidden_has_length_one_and_dim(shared: MiniLM) -> None:
    """A hidden state is float32 of shape (dim,) and length one."""
    hidden = encode(shared, say("How far is the moon?")).hidden
    assert (hidden.shape, hidden.dtype) == ((shared.dim,), np.float32)
    assert np.linalg.norm(hidden) == pytest.approx(1, abs=1e-5)


def test_similar_texts_are_closer(shared: MiniLM) -> None:
    """A paraphrase is nearer than another subject."""
    question, paraphrase, other = shared.encode_texts(
        ["What is the capital of France?", "Which city is France's capital?", "Sort this list of integers in Python."]
    )
    assert question @ paraphrase > 0.8 > 0.3 > question @ other


def test_readings_differ(shared: MiniLM) -> None:
    """Each reading reads something else of the same network, and its name says which."""
    text = "Three readings of one question, and their mean."
    names, rows = [], []
    for reading in READINGS:
        minilm = MiniLM(reading=reading)
        names.append(minilm.name)
        rows.append(minilm.encode_texts([text])[0])
        minilm.close()
    assert len(set(names)) == len(READINGS) == 4
    assert np.array_equal(rows[READINGS.index("mean")], shared.encode_texts([text])[0])
    similarities = np.stack(rows) @ np.stack(rows).T
    assert similarities[~np.eye(4, dtype=bool)].max() < 0.999


def test_unknown_reading() -> None:
    """A reading that does not exist is refused, naming those that do."""
    with pytest.raises(ModelError, match=r"'max'.*mean, last, penultimate, cls"):
        MiniLM(reading="max")  # type: ignore[arg-type]  # that is the point


# --- training = serving ---------------------------------------------------------------------------------------------


def test_bulk_equals_single(shared: MiniLM, minilm: MiniLM) -> None:
    """Training features are the serving features, bit by bit, whatever else is encoded with them."""
    texts = [
        "short",
        "",
        WORD * 300,
        "A question of middling length, with a comma.",
        WORD * 3000,
        "x" * 40_000,
        "short",
    ]
    bulk = shared.encode_texts(texts)
    single = np.stack([encode(minilm, say(text)).hidden for text in texts])
    assert np.array_equal(bulk, single)


def test_windows_weigh_by_their_tokens(shared: MiniLM) -> None:
    """A last window of a few tokens has a few tokens' say."""
    full = " ".join(["Steep the tea in hot water, then pour."] * 25) + " Tea, hot."  # 25 * 10 + 4 pieces
    alone, rest, joined = shared.encode_texts([full, "linear algebra", full + " linear algebra"])
    assert encode(shared, say(full)).tokens_total == WINDOW_PIECES
    assert joined @ alone > 0.99 > 0.5 > joined @ rest


def test_bulk_progress(minilm: MiniLM) -> None:
    """Progress counts windows up to their number, and a window that occurs twice is computed once."""
    seen: list[tuple[int, int]] = []
    minilm.encode_texts(["a", WORD * 300, "a"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert minilm.runs == 3


def test_bulk_of_nothing(shared: MiniLM) -> None:
    """No texts give no rows, of the right width."""
    assert shared.encode_texts([]).shape == (0, shared.dim)


def test_another_instance_agrees(shared: MiniLM, minilm: MiniLM) -> None:
    """Two instances of the same build have the same name and give the same bits."""
    texts = ["Is seven prime?", WORD * 400]
    assert shared.name == minilm.name
    assert np.array_equal(shared.encode_texts(texts), minilm.encode_texts(texts))


# --- the cache ------------------------------------------------------------------------------------------------------


def test_growing_session_computes_only_new_windows(minilm: MiniLM) -> None:
    """Each turn of a session runs the network for the windows of that turn alone."""
    session = [say(count_up(1000, 200))]
    encode(minilm, *session)
    assert minilm.runs == 2  # a number of four digits is two pieces: 400 of them
    for turn in range(3):
        session.append(say(f"Turn {turn}, and now?", "assistant" if turn % 2 else "user"))
        encode(minilm, *session)
        assert minilm.runs == 3 + turn
    encode(minilm, *session)
    assert minilm.runs == 5


def test_cached_equals_computed(shared: MiniLM, minilm: MiniLM) -> None:
    """What was cached on the way gives the bits that a fresh encoder computes."""
    session = [say("What is a monad?"), say("A monoid in the category of endofunctors.", "assistant"), say("Simpler!")]
    for end in range(1, len(session)):
        encode(shared, *session[:end])
    assert np.array_equal(encode(shared, *session).hidden, encode(minilm, *session).hidden)


def test_concurrent_requests_share_a_window(minilm: MiniLM) -> None:
    """The same conversation asked at once by many runs the network once, and other ones are not mixed up with it."""

    async def ask() -> tuple[list[Encoding], list[Encoding]]:
        async with asyncio.TaskGroup() as group:
            same = [group.create_task(minilm.encode([say("the same")])) for _ in range(16)]
            others = [group.create_task(minilm.encode([say(f"number {i}")])) for i in range(8)]
        return [task.result() for task in same], [task.result() for task in others]

    same, others = asyncio.run(ask())
    assert minilm.runs == 1 + 8
    assert all(np.array_equal(encoding.hidden, same[0].hidden) for encoding in same)
    wanted = minilm.encode_texts([f"number {i}" for i in range(8)])
    assert np.array_equal(np.stack([encoding.hidden for encoding in others]), wanted)


def test_cache_forgets_the_oldest() -> None:
    """The cache is bounded; what was used longest ago goes first."""
    minilm = MiniLM(max_cached_windows=2)
    for text in ("a", "b", "a", "c", "a"):
        encode(minilm, say(text))
    assert minilm.runs == 3
    encode(minilm, say("b"))
    assert minilm.runs == 4
    minilm.close()


def test_cancelled_while_waiting_is_not_encoded(minilm: MiniLM) -> None:
    """A request that is given up while others are encoded costs no run."""

    async def ask() -> None:
        first = asyncio.ensure_future(minilm.encode([say(count_up(1000, 500))]))
        second = asyncio.ensure_future(minilm.encode([say("given up")]))
        await asyncio.sleep(0)  # both are handed to the thread, which is now busy with the first
        second.cancel()
        await first

    asyncio.run(ask())
    assert minilm.runs == 4


# --- what is read ---------------------------------------------------------------------------------------------------


def test_system_messages_are_not_read(shared: MiniLM) -> None:
    """System and developer messages, and messages without text, leave the hidden state as it is."""
    bare = encode(shared, say("Translate this."))
    full = encode(
        shared,
        say("You are a careful assistant. " * 50, "system"),
        say("Prefer tools.", "developer"),
        say("Translate this."),
        say(None, "assistant"),
    )
    assert np.array_equal(full.hidden, bare.hidden)
    assert (full.tokens_read, full.tokens_total) == (bare.tokens_read, bare.tokens_total) == (3, 3)


def test_images_alone_read_as_empty(shared: MiniLM) -> None:
    """A conversation without any text is encoded as the empty text, with no token read."""
    image = Message(role="user", content=(ImagePart(url="https://example.org/a.png"),))
    blank = Message(role="user", content=(TextPart(text=" \n\x00"),))
    empty = shared.encode_texts([""])[0]
    for messages in ((), (image,), (blank,), (image, blank)):
        encoding = encode(shared, *messages)
        assert np.array_equal(encoding.hidden, empty)
        assert (encoding.tokens_read, encoding.tokens_total) == (0, 0)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb \ud83d\ude00", "\x00\x01", "\u200b", "é" * 500, "🚉" * 300])
def test_odd_unicode(shared: MiniLM, text: str) -> None:
    """Lone surrogates, control characters and runs without a space give a finite hidden state."""
    hidden = encode(shared, say(text)).hidden
    assert np.isfinite(hidden).all()
    assert np.linalg.norm(hidden) == pytest.approx(1, abs=1e-5)


def test_megabyte_of_text(minilm: MiniLM) -> None:
    """A megabyte costs at most MAX_WINDOWS runs; its two ends are read, and the total is unknown."""
    text = "How many words follow? " + WORD * 200_000 + "Answer with a number."
    encoding = encode(minilm, say(text))
    assert minilm.runs <= MAX_WINDOWS
    assert 0 < encoding.tokens_read <= MAX_WINDOWS * WINDOW_PIECES
    assert encoding.tokens_total is None


def test_tokens_counted(shared: MiniLM) -> None:
    """Tokens read and in all are word pieces, and differ when windows were left out."""
    short, long = encode(shared, say(WORD * 10)), encode(shared, say(WORD * 3000))
    assert (short.tokens_read, short.tokens_total) == (10, 10)
    assert (long.tokens_read, long.tokens_total) == ((MAX_WINDOWS - 1) * WINDOW_PIECES + 3000 % WINDOW_PIECES, 3000)


def test_cut_starts_at_the_message() -> None:
    """Windows hold at most WINDOW_PIECES of one message, from its start; all are read while they are few enough."""
    made = cut([say(count_up(0, 300)), say(count_up(1000, 5), "tool")], split_words)
    assert made.windows == (
        (CLS, *range(WINDOW_PIECES), SEP),
        (CLS, *range(WINDOW_PIECES, 300), SEP),
        (CLS, *range(1000, 1005), SEP),
    )
    assert (made.pieces_read, made.pieces_total) == (305, 305)


def test_cut_keeps_the_task_and_the_newest() -> None:
    """Of a long conversation the first user message's first window and the newest seven are read, in order."""
    greeting, task = say("7", "assistant"), say(count_up(1000, 300))
    turns = [say(str(2000 + i), "assistant") for i in range(20)]
    made = cut([greeting, task, *turns], split_words)
    assert made.windows == (
        (CLS, *range(1000, 1000 + WINDOW_PIECES), SEP),
        *((CLS, 2000 + i, SEP) for i in range(13, 20)),
    )
    assert (made.pieces_read, made.pieces_total) == (WINDOW_PIECES + 7, None)


def test_cut_one_long_message() -> None:
    """Of one message of more than MAX_WINDOWS windows, the first and the last seven are read."""
    made = cut([say(count_up(100, 10 * WINDOW_PIECES))], split_words)
    starts = [window[1] - 100 for window in made.windows]
    assert starts == [0, *(WINDOW_PIECES * i for i in range(3, 10))]
    assert made.pieces_total == 10 * WINDOW_PIECES


def test_cut_exactly_full() -> None:
    """Nothing is dropped of a conversation of exactly MAX_WINDOWS windows."""
    made = cut([say(str(i)) for i in range(MAX_WINDOWS)], split_words)
    assert made.windows == tuple((CLS, i, SEP) for i in range(MAX_WINDOWS))
    assert made.pieces_total == MAX_WINDOWS


def test_cut_tokenises_no_more_than_it_reads() -> None:
    """Of a long session only the messages that are read are tokenised, and of a huge message only its ends."""
    asked: list[str] = []

    def tokenise(text: str) -> list[int]:
        asked.append(text)
        return split_words(text)

    cut([say(str(i)) for i in range(1000)], tokenise)
    assert len(asked) == MAX_WINDOWS + 1
    asked.clear()
    cut([say("1 " * 1_000_000)], tokenise)
    assert sum(map(len, set(asked))) == HEAD_CHARS + TAIL_CHARS


# --- files ----------------------------------------------------------------------------------------------------------


def copy_build(folder: Path) -> Path:
    return Path(shutil.copytree(FOLDER, folder / "minilm"))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_damaged_file(tmp_path: Path, name: str) -> None:
    """A single changed byte is found at load; the error names the file and says what to do."""
    folder = copy_build(tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: sha256 .* damaged: install torafugu again"):
        MiniLM(folder=folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "card.json"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    """Without one of its files the encoder does not load; the error names the file and says what to do."""
    folder = copy_build(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}: cannot be read: No such file.*install torafugu again"):
        MiniLM(folder=folder)


@pytest.mark.parametrize("card", [b"", b"{}", b'{"dim": 384, "sha256": {}}'])
def test_damaged_card(tmp_path: Path, card: bytes) -> None:
    """A card that is empty, or that does not say what to expect, is an error, not a check left out."""
    folder = copy_build(tmp_path)
    (folder / "card.json").write_bytes(card)
    with pytest.raises(ModelError, match="install torafugu again"):
        MiniLM(folder=folder)
