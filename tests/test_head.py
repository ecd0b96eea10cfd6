"""The head: scores of allowed workers only, rows bound to identity, files that load whole or not at all."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from heads import DIM, make_head, make_hidden
from torafugu.errors import ModelError
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity, softmax

WORKERS = ("ant", "bee", "cat", "dog")
seeds = st.integers(0, 2**32 - 1)
masks = st.sets(st.sampled_from(WORKERS), min_size=1)


# --- scores ---


@given(seed=seeds, allowed=masks, scale=st.sampled_from([0.1, 1.0, 1000.0]))
def test_scores_of_allowed_workers_only(seed: int, allowed: set[str], scale: float) -> None:
    """Allowed workers share a probability of 1, best first; a masked worker has no score at all."""
    scores = make_head(WORKERS, seed=seed, scale=scale).scores(make_hidden(seed), allowed)
    assert set(scores) == allowed
    assert sum(scores.values()) == pytest.approx(1, abs=1e-9)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert min(scores.values()) >= 0


@given(seed=seeds, allowed=masks)
def test_masking_only_takes_away(seed: int, allowed: set[str]) -> None:
    """Masking workers leaves the order of the others, and their odds, as they were."""
    head, hidden = make_head(WORKERS, seed=seed), make_hidden(seed)
    everyone, some = head.scores(hidden, WORKERS), head.scores(hidden, allowed)
    assert list(some) == [worker for worker in everyone if worker in allowed]
    best = next(iter(some))
    for worker, probability in some.items():
        assert probability / some[best] == pytest.approx(everyone[worker] / everyone[best], rel=1e-6)


@given(seed=seeds, order=st.permutations(WORKERS))
def test_rows_belong_to_workers(seed: int, order: list[str]) -> None:
    """In whatever order a card lists the workers, each keeps its score: rows are bound to identity, not position."""
    head, hidden = make_head(WORKERS, seed=seed), make_hidden(seed)
    rows = [WORKERS.index(worker) for worker in order]
    card = msgspec.structs.replace(head.card, workers=tuple(head.card.workers[i] for i in rows))
    other = Head.create(head.features, head.weight[rows], card)
    ours, theirs = head.scores(hidden, WORKERS), other.scores(hidden, order)
    assert list(ours) == list(theirs)
    assert ours == pytest.approx(theirs)


def test_order_where_probabilities_vanish() -> None:
    """Far below the best, where probabilities are 0, failover still goes by score and not by row."""
    card = make_head(WORKERS).card
    weight = np.zeros((4, DIM + 1), np.float32)
    weight[:, -1] = [-5000, -3000, -4000, 0]
    features = FeatureMap(np.zeros(DIM, np.float32), np.eye(DIM, dtype=np.float32))
    scores = Head.create(features, weight, card).scores(make_hidden(1), WORKERS)
    assert list(scores) == ["dog", "bee", "cat", "ant"]
    assert list(scores.values()) == [1, 0, 0, 0]


def test_same_input_same_scores() -> None:
    """A head is a pure function: the same hidden state gives the same scores, bit for bit."""
    head, hidden = make_head(WORKERS), make_hidden(3)
    assert head.scores(hidden, WORKERS) == head.scores(hidden.copy(), set(WORKERS))


def test_nobody_allowed() -> None:
    """Scores among workers that the head does not know are refused, with their names."""
    with pytest.raises(ModelError, match="none of its workers is allowed: eel"):
        make_head(WORKERS).scores(make_hidden(1), {"eel"})


def test_hidden_state_that_is_not_numbers() -> None:
    """A hidden state of NaN is refused: it must not silently mean the first worker."""
    with pytest.raises(ModelError, match="not finite"):
        make_head(WORKERS).scores(np.full(DIM, np.nan, np.float32), WORKERS)


def test_softmax() -> None:
    """Softmax over the last axis; minus infinity is no probability, and large numbers do not overflow."""
    got = softmax(np.array([[0, np.log(3.0), -np.inf], [1e4, 1e4, -1e4]]))
    assert got == pytest.approx(np.array([[0.25, 0.75, 0], [0.5, 0.5, 0]]))


# --- features ---


def test_features_by_hand() -> None:
    """z = (h - mean) @ projection, then exp(-gamma * squared distance) to each landmark, and last a constant 1."""
    mean, projection = np.array([1, 0], np.float32), np.array([[1, 0], [0, 2]], np.float32)
    hidden = np.array([[2, 1], [1, 0]], np.float32)  # z: (1, 2), (0, 0)
    assert FeatureMap(mean, projection)(hidden).tolist() == [[1, 2, 1], [0, 0, 1]]
    landmarks = np.array([[1, 2], [0, 2], [1, 0]], np.float32)  # squared distances: 0, 1, 4 and 5, 4, 1
    mapping = FeatureMap(mean, projection, landmarks, gamma=0.5)
    assert mapping.size == 4
    expected = [[1, np.exp(-0.5), np.exp(-2), 1], [np.exp(-2.5), np.exp(-2), np.exp(-0.5), 1]]
    assert mapping(hidden) == pytest.approx(np.array(expected), rel=1e-6)
    assert mapping(hidden).dtype == np.float32


def test_far_from_landmarks_the_constant_decides() -> None:
    """Far away from every landmark only the constant speaks: whoever is best overall gets the unfamiliar question."""
    head = make_head(WORKERS, landmarks=5, gamma=1.0)
    far = np.full(DIM, 100, np.float32)
    scores = head.scores(far, WORKERS)
    constants = softmax(head.weight[:, -1].astype(np.float64))
    assert scores == pytest.approx(dict(zip(WORKERS, constants, strict=True)))
    assert scores != pytest.approx(head.scores(make_hidden(1), WORKERS))


# --- files ---


@pytest.mark.parametrize("landmarks", [0, 5])
def test_roundtrip(tmp_path: Path, landmarks: int) -> None:
    """A head that is saved and loaded is the same head, bit for bit: weights, card, scores; saving it anew too."""
    head = make_head(WORKERS, landmarks=landmarks, gamma=0.1)  # 0.1 has no exact binary form
    head.save(tmp_path)
    loaded = Head.load(tmp_path)
    assert loaded.card == head.card
    assert loaded.id == head.id == hashlib.sha256((tmp_path / "head.safetensors").read_bytes()).hexdigest()[:12]
    assert loaded.weight.tobytes() == head.weight.tobytes()
    assert loaded.features.gamma == head.features.gamma
    for seed in range(20):
        assert loaded.scores(make_hidden(seed), WORKERS) == head.scores(make_hidden(seed), WORKERS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"head.safetensors", "card.json"}


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flip(raw: bytes) -> bytes:
    return raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "no card": ("card.json", lambda _: None, "no trained head here: card.json is missing"),
    "no weights": ("head.safetensors", lambda _: None, "no trained head here: head.safetensors is missing"),
    "truncated weights": ("head.safetensors", cut, "damaged, or not the card's"),
    "flipped byte": ("head.safetensors", flip, "damaged, or not the card's"),
    "empty weights": ("head.safetensors", lambda _: b"", "damaged, or not the card's"),
    "a pickle instead": ("head.safetensors", lambda _: pickle.dumps(np.ones(3)), "damaged, or not the card's"),
    "truncated card": ("card.json", cut, "damaged head"),
    "card of bytes": ("card.json", lambda _: b"\x80\x04", "damaged head"),
    "card that is not text": ("card.json", lambda raw: raw.replace(b"texts", b"\xfftexts"), "damaged head"),
    "card without workers": ("card.json", lambda raw: change(raw, workers=None), "damaged head"),
    "other kind": ("card.json", lambda _: b'{"schema": 1, "kind": "conductor"}', "a 'conductor' of schema 1: expected"),
    "other schema": ("card.json", lambda raw: change(raw, schema=2), "a 'selector' of schema 2: expected 'selector'"),
    "card of another head": ("card.json", lambda raw: change(raw, weights_sha256="ab"), "not the card's"),
}  # fmt: skip


def change(raw: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(raw) | fields).encode()


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files(tmp_path: Path, name: str, damage: Callable[[bytes], bytes | None], message: str) -> None:
    """A head with a missing, damaged or foreign file does not load; the error names the folder and what is wrong."""
    make_head(WORKERS).save(tmp_path)
    content = damage((tmp_path / name).read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        Head.load(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_every_byte_of_the_weights_counts(tmp_path: Path) -> None:
    """Whichever byte of the weights is changed, in header or numbers, the head is refused."""
    make_head(WORKERS).save(tmp_path)
    path = tmp_path / "head.safetensors"
    raw = path.read_bytes()
    for i in range(0, len(raw), 7):
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 0x10]) + raw[i + 1 :])
        with pytest.raises(ModelError):
            Head.load(tmp_path)


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "a row too few": ({"head.weight": np.ones((3, DIM + 1))}, r"'head.weight' of shape \(3, 9\).*expected \(4, 9\)"),
    "a column too few": ({"head.weight": np.ones((4, DIM))}, r"expected \(4, 9\)"),
    "flat weights": ({"head.weight": np.ones(4 * (DIM + 1))}, r"expected \(4, 9\)"),
    "mean of another width": ({"features.mean": np.ones(DIM - 1)}, r"'features.projection'.*expected \(7, None\)"),
    "flat projection": ({"features.projection": np.ones(DIM)}, "features.projection"),
    "landmarks of another width": ({"features.landmarks": np.ones((5, DIM - 1))}, r"expected \(None, 8\)"),
    "no gamma": ({"features.gamma": np.ones(0)}, r"'features.gamma' of shape \(0,\)"),
    "no mean": ({"features.mean": None}, "no tensor 'features.mean'"),
    "NaN": ({"head.weight": np.full((4, DIM + 1), np.nan)}, "finite numbers only"),
    "whole numbers": ({"head.weight": np.ones((4, DIM + 1), np.int64)}, "int64: expected"),
}


@pytest.mark.parametrize(("tensors", "message"), UNFIT.values(), ids=UNFIT)
def test_weights_that_do_not_fit(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    """Weights whose shapes, types or numbers make no head are refused even when the card vouches for them."""
    make_head(WORKERS).save(tmp_path)
    path = tmp_path / "head.safetensors"
    held = dict(load(path.read_bytes()))
    for name, tensor in tensors.items():
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor.astype(np.float32) if tensor.dtype == np.float64 else tensor
    raw = save(held)
    path.write_bytes(raw)
    card = tmp_path / "card.json"
    card.write_bytes(change(card.read_bytes(), weights_sha256=hashlib.sha256(raw).hexdigest()))
    with pytest.raises(ModelError, match=message):
        Head.load(tmp_path)


def test_create_checks_too() -> None:
    """Training cannot make a head that would not load: wrong shapes and worker ids that stand twice are refused."""
    head = make_head(WORKERS)
    with pytest.raises(ModelError, match=r"expected \(4, 9\)"):
        Head.create(head.features, head.weight[:3], head.card)
    twice = msgspec.structs.replace(head.card, workers=(WorkerIdentity("ant", "m"),) * 4)
    with pytest.raises(ModelError, match="names 4 workers, 1 of them different"):
        Head.create(head.features, head.weight, twice)


def test_nothing_in_the_files_executes(tmp_path: Path) -> None:
    """The card is JSON and the weights are safetensors: numbers and text, nothing that a loader would run."""
    make_head(WORKERS).save(tmp_path)
    assert msgspec.json.decode((tmp_path / "card.json").read_bytes(), type=Card).kind == "selector"
    assert set(load((tmp_path / "head.safetensors").read_bytes())) == {
        "head.weight",
        "features.mean",
        "features.projection",
        "features.gamma",
    }
