"""MiniLM in numpy: the same network as the one that is served, and singular values that can be scaled."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.errors import ModelError
from torafugu.local import MiniLM, Reading
from torafugu.local.encoder import FOLDER
from torafugu.local.minilm_numpy import SvfMiniLM, read_initialisers
from torafugu.local.svf import apply_offsets, decompose
from torafugu.orchestrate.encoder import Encoder, Encoding
from torafugu.types import Message

FIXTURE = Path(__file__).parent / "fixtures/minilm_fp32.npz"
TEXTS = (
    "What is 17 + 25?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Übersetze ins Englische: Der schnelle braune Fuchs springt über den faulen Hund.",
    "Steep the tea in hot water, then pour. " * 40,  # two windows
)


@pytest.fixture(scope="module")
def plain() -> Iterator[SvfMiniLM]:
    """With no offsets."""
    encoder = SvfMiniLM()
    yield encoder
    encoder.close()


def draw(encoder: SvfMiniLM, seed: int = 0) -> np.ndarray:
    """Offsets as far out as those of the paper's released vector."""
    return 0.1 * np.random.default_rng(seed).standard_normal(encoder.layout.size)


def encode(encoder: Encoder, *messages: Message) -> Encoding:
    return asyncio.run(encoder.encode(messages))


def say(text: str) -> Message:
    return Message(role="user", content=text)


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["mean", "cls", "last", "penultimate"])
def test_agrees_with_the_served_encoder(plain: SvfMiniLM, reading: Reading) -> None:
    """Without offsets its states have cosine >= 0.999, one token's 0.995, with those of the served encoder."""
    served, encoder = MiniLM(reading=reading), SvfMiniLM(reading=reading)
    cosines = (served.encode_texts(TEXTS) * encoder.encode_texts(TEXTS)).sum(axis=1)
    served.close()
    encoder.close()
    assert cosines.min() >= (0.999 if reading == "mean" else 0.995)


def test_closer_to_fp32_than_eight_bits(plain: SvfMiniLM) -> None:
    """8-bit weights with float32 activations: cosine >= 0.9995 with the fp32 network, and 0.999 for three tokens."""
    with np.load(FIXTURE) as reference:
        texts, wanted = [str(text) for text in reference["texts"]], reference["embeddings"]
    cosines = (plain.encode_texts(texts) * wanted).sum(axis=1)
    assert cosines[0] >= 0.999
    assert cosines[1:].min() >= 0.9995


def test_same_windows_and_counts(plain: SvfMiniLM) -> None:
    """It reads what the served encoder reads: the same windows, the same counts of tokens."""
    served = MiniLM()
    messages = (Message(role="system", content="Be brief."), say("word " * 3000), say("and now?"))
    ours, theirs = encode(plain, *messages), encode(served, *messages)
    served.close()
    assert (ours.tokens_read, ours.tokens_total) == (theirs.tokens_read, theirs.tokens_total)
    assert ours.hidden @ theirs.hidden >= 0.999
    empty = encode(plain)
    assert (empty.tokens_read, empty.tokens_total, empty.hidden.dtype) == (0, 0, np.float32)
    assert np.linalg.norm(empty.hidden) == pytest.approx(1, abs=1e-5)


def test_bulk_equals_single(plain: SvfMiniLM) -> None:
    """Texts encoded together, alone, or from a prefix that was kept have the same states but for rounding."""
    encoder = plain.with_offsets(draw(plain))
    bulk = encoder.encode_texts([*TEXTS, TEXTS[0]])
    single = np.stack([encode(encoder, say(text)).hidden for text in TEXTS])
    again = np.stack([encode(encoder, say(text)).hidden for text in TEXTS])
    np.testing.assert_allclose(bulk[:-1], single, atol=2e-6)
    np.testing.assert_allclose(bulk[-1], bulk[0], atol=2e-6)
    assert np.array_equal(single, again)
    assert plain.encode_texts([]).shape == (0, plain.dim)


# --- offsets --------------------------------------------------------------------------------------------------------


def test_layout(plain: SvfMiniLM) -> None:
    """Of the second-to-last layer the six matrices are scaled: 6 x 384 offsets, in the order of the computation."""
    assert [(m.name, m.rows, m.columns) for m in plain.layout.matrices] == [
        ("layer4.query", 384, 384),
        ("layer4.key", 384, 384),
        ("layer4.value", 384, 384),
        ("layer4.attention.out", 384, 384),
        ("layer4.inner", 1536, 384),
        ("layer4.outer", 384, 1536),
    ]
    assert plain.layout.size == 2304


def test_no_offsets_change_nothing(plain: SvfMiniLM) -> None:
    """Zero offsets give the bits of the untouched network, and uniform ones its states but for rounding."""
    untouched = plain.encode_texts(TEXTS[:2])
    assert np.array_equal(plain.with_offsets(np.zeros(2304)).encode_texts(TEXTS[:2]), untouched)
    np.testing.assert_allclose(plain.with_offsets(np.full(2304, 0.5)).encode_texts(TEXTS[:2]), untouched, atol=1e-6)


def test_every_matrix_matters(plain: SvfMiniLM) -> None:
    """Scaling any one of the matrices moves the states."""
    prefix, offsets = plain.prefix(TEXTS[:2]), draw(plain)
    untouched = plain.encode_prefix(prefix)
    for name, where in plain.layout.ranges.items():
        one = np.zeros_like(offsets)
        one[where.start : where.stop] = offsets[where.start : where.stop]
        moved = np.abs(plain.with_offsets(one).encode_prefix(prefix) - untouched).max()
        assert moved > 1e-4, name


def test_scaled_weights_are_those_of_the_formula(plain: SvfMiniLM) -> None:
    """What the layer computes with is W' of the formula; other layers keep their weights."""
    offsets = draw(plain)
    scaled = plain.with_offsets(offsets)
    weight = plain._weights["layer4.outer"]
    part = plain.layout.split(offsets)["layer4.outer"]
    assert np.array_equal(scaled._weights["layer4.outer"], apply_offsets(weight, decompose(weight), part))
    assert scaled._weights["layer5.outer"] is plain._weights["layer5.outer"]


def test_prefix_serves_every_offsets_vector(plain: SvfMiniLM) -> None:
    """One prefix gives, for any offsets, the states that an encoder made with those offsets computes from the texts."""
    prefix = plain.prefix(TEXTS)
    for seed in (1, 2):
        offsets = draw(plain, seed)
        made = SvfMiniLM(offsets=offsets)
        assert np.array_equal(made.encode_texts(TEXTS), plain.with_offsets(offsets).encode_prefix(prefix))
        made.close()


@pytest.mark.parametrize(("layers", "size"), [((5,), 2304), ((0, 5), 4608), ((5, 3, 5), 4608)])
def test_other_layers(layers: tuple[int, ...], size: int) -> None:
    """Any layers can be scaled, named in any order; without offsets each choice gives the same network."""
    encoder, plain = SvfMiniLM(layers=layers), SvfMiniLM()
    assert encoder.layout.size == size
    np.testing.assert_allclose(encoder.encode_texts(TEXTS[:2]), plain.encode_texts(TEXTS[:2]), atol=2e-6)
    moved = encoder.with_offsets(draw(encoder)).encode_texts(TEXTS[:2])
    assert (moved * plain.encode_texts(TEXTS[:2])).sum(axis=1).max() < 0.9999
    encoder.close()
    plain.close()


def test_name_tells_states_apart(plain: SvfMiniLM) -> None:
    """Names differ by reading, layer and offsets, and are the same for the same offsets."""
    offsets = draw(plain)
    made = SvfMiniLM(offsets=offsets.astype(np.float32))
    others = [SvfMiniLM(layers=[5], offsets=offsets), SvfMiniLM(reading="last"), MiniLM()]
    names = {plain.name, made.name, *(other.name for other in others), plain.with_offsets(draw(plain, 1)).name}
    assert len(names) == 6
    assert plain.with_offsets(offsets).name == made.name
    assert plain.with_offsets(np.zeros(2304)).name == plain.name
    for encoder in (made, *others):
        encoder.close()


def test_bad_offsets_and_choices(plain: SvfMiniLM) -> None:
    """Offsets of another length, that leave nothing, and layers or readings that do not exist are refused."""
    with pytest.raises(ModelError, match=r"shape \(3,\): expected \(2304,\)"):
        plain.with_offsets(np.zeros(3))
    with pytest.raises(ModelError, match="expected at least 1% of it"):
        plain.with_offsets(np.full(2304, -1.0))
    for layers in ((6,), (-1,), ()):
        with pytest.raises(ModelError, match="expected at least one of 0 to 5"):
            SvfMiniLM(layers=layers)
    with pytest.raises(ModelError, match="'max': expected one of mean"):
        SvfMiniLM(reading="max")  # type: ignore[arg-type]  # that is the point


def test_prefix_progress(plain: SvfMiniLM) -> None:
    """Progress counts windows, and a window that occurs twice is computed once."""
    seen: list[tuple[int, int]] = []
    prefix = plain.prefix(["a", TEXTS[3], "a"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert prefix.windows == ((0,), (1, 2), (0,))


def test_candidates_in_one_event_loop(plain: SvfMiniLM) -> None:
    """Encoders with different offsets work side by side, each giving its own states."""
    candidates = [plain.with_offsets(draw(plain, seed)) for seed in range(3)]

    async def ask() -> list[Encoding]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(candidate.encode([say(TEXTS[1])])) for candidate in candidates * 2]
        return [task.result() for task in tasks]

    states = [encoding.hidden for encoding in asyncio.run(ask())]
    for i, candidate in enumerate(candidates):
        assert np.array_equal(states[i], states[i + 3])
        np.testing.assert_allclose(states[i], candidate.encode_texts([TEXTS[1]])[0], atol=2e-6)
    assert np.abs(states[0] - states[1]).max() > 1e-3


# --- the file -------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def make_model(*tensors: bytes) -> bytes:
    """An ONNX model of these initialisers, among fields that are not read."""
    graph = field(2, b"a name") + b"".join(field(5, tensor) for tensor in tensors) + varint(9 << 3 | 5) + b"\0" * 4
    return field(1, 8) + field(7, graph) + varint(12 << 3 | 1) + b"\0" * 8


def make_tensor(name: str, array: np.ndarray, kind: int, *, packed: bool = False) -> bytes:
    sizes = field(1, b"".join(map(varint, array.shape))) if packed else b"".join(field(1, n) for n in array.shape)
    return sizes + field(2, kind) + field(8, name.encode()) + field(9, array.tobytes())


MODEL = make_model(
    make_tensor("a", np.arange(600, dtype="<f4").reshape(300, 2), 1),
    make_tensor("b", np.arange(6, dtype="u1").reshape(1, 2, 3), 2, packed=True),
    make_tensor("c", np.arange(-2, 2, dtype="i1"), 3),
    make_tensor("d", np.array(-7, dtype="<i8"), 7),
)


def test_reads_initialisers() -> None:
    """Tensors of the four types are read with their shapes, also where dimensions are packed or there are none."""
    tensors = read_initialisers(MODEL, "x.onnx")
    assert {name: (array.dtype.str, array.shape) for name, array in tensors.items()} == {
        "a": ("<f4", (300, 2)),
        "b": ("|u1", (1, 2, 3)),
        "c": ("|i1", (4,)),
        "d": ("<i8", ()),
    }
    assert tensors["a"][299, 1] == 599
    assert tensors["c"].tolist() == [-2, -1, 0, 1]
    assert tensors["d"] == -7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no initialisers"),
        (b"not protobuf at all", "x.onnx"),
        (MODEL[:-2], "x.onnx: a field of 8 bytes where 6 are left"),
        (b"\xff" * 12, "a number does not end"),
        (b"\x0b", "wire type 3"),
        (field(7, 3), "a number where bytes were expected"),
        (make_model(make_tensor("a", np.zeros(3, "<f2"), 10)), "tensor 'a' of type 10"),
        (make_model(make_tensor("a", np.zeros(3, "<f4"), 1)[:2] + field(2, 1)), "the file is damaged"),
    ],
)
def test_damaged_model(content: bytes, message: str) -> None:
    """A file that is cut off, or of another format, or with another type of tensor, is an error that says so."""
    with pytest.raises(ModelError, match=message):
        read_initialisers(content, "x.onnx")


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(MODEL) - 1), st.integers(0, 255), st.booleans())
def test_damage_raises_nothing_else(at: int, byte: int, is_cut: bool) -> None:
    """Whatever byte is changed or missing, the result is tensors or a ModelError."""
    damaged = MODEL[:at] if is_cut else MODEL[:at] + bytes([byte]) + MODEL[at + 1 :]
    with contextlib.suppress(ModelError):
        assert read_initialisers(damaged, "x.onnx")


def test_damaged_build(tmp_path: Path) -> None:
    """A changed byte of the shipped network is found at load, as by the served encoder."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "minilm"))
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"model.onnx: sha256 .* damaged"):
        SvfMiniLM(folder=folder)
