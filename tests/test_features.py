"""Feature maps of a head: what they keep of the training questions, what they say of others, and of scarce data."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from torafugu.train.features import FeatureConfig, fit_features, fit_landmarks

PCA = FeatureConfig(kind="pca", components=4)
LANDMARKS = FeatureConfig(kind="landmarks", components=16, landmarks=12, sharpness=0.5)
every_kind = pytest.mark.parametrize("config", [PCA, LANDMARKS], ids=lambda config: config.name)


def draw_states(n: int, seed: int = 0, width: int = 32) -> NDArray[np.float32]:
    """Hidden states of length one, without structure."""
    states = np.random.default_rng(seed).standard_normal((n, width))
    return (states / np.linalg.norm(states, axis=1, keepdims=True)).astype(np.float32)


def test_principal_components_are_whitened() -> None:
    """On the training questions each component has mean 0, variance 1 and no correlation with another; last is a 1."""
    hidden = draw_states(200) * np.linspace(0.2, 2, 32, dtype=np.float32)
    features = fit_features(hidden, PCA, seed=0)(hidden)
    assert features.shape == (200, 5)
    assert np.allclose(features[:, :4].mean(0), 0, atol=1e-5)
    assert np.allclose(np.cov(features[:, :4].T, bias=True), np.eye(4), atol=1e-4)
    assert (features[:, 4] == 1).all()


def test_the_strongest_directions_are_kept() -> None:
    """Questions that differ along two directions are told apart by two components, whatever noise lies beside them."""
    topic = np.arange(90) % 3
    hidden = draw_states(3, seed=1)[topic] + 0.02 * draw_states(90, seed=2)
    features = fit_features(hidden, FeatureConfig(kind="pca", components=2), seed=0)(hidden)[:, :2]
    centres = np.array([features[topic == t].mean(0) for t in range(3)])
    nearest = np.linalg.norm(features[:, None] - centres, axis=2).argmin(1)
    assert (nearest == topic).all()


def test_a_question_has_the_sharpness_as_its_typical_nearness() -> None:
    """The median training question that is no landmark is exp(-sharpness) near to its nearest landmark."""
    hidden = draw_states(600)
    for sharpness in (0.25, 1.0):
        config = FeatureConfig(kind="landmarks", components=16, landmarks=8, sharpness=sharpness)
        nearest = fit_features(hidden, config, seed=0)(hidden)[:, :-1].max(1)
        assert np.median(nearest) == pytest.approx(np.exp(-sharpness), rel=0.02)


def test_far_from_all_landmarks_only_the_constant_speaks() -> None:
    """A question unlike any in training has no feature left but the constant one."""
    base = draw_states(1, seed=3)
    hidden = base + 0.05 * draw_states(200)
    mapping = fit_features(hidden, LANDMARKS, seed=0)
    direction = mapping.projection[:, :1].T  # away along what is seen, not along what is projected out
    far = mapping(base + 5 * direction)
    assert far[0, -1] == 1
    assert far[0, :-1].max() < 1e-6
    assert mapping(hidden)[:, :-1].max(1).min() > 0.05


@pytest.mark.parametrize("n", [13, 16, 20, 30])
def test_with_few_questions_landmarks_still_say_something_of_others(n: int) -> None:
    """When nearly every training question is a landmark itself, other questions of the kind are still near some."""
    hidden, others = draw_states(n), draw_states(50, seed=9)
    nearest = fit_features(hidden, LANDMARKS, seed=0)(others)[:, :-1].max(1)
    assert np.median(nearest) > 0.2
    assert np.median(nearest) < 0.95


@every_kind
def test_never_more_features_than_the_data_has(config: FeatureConfig) -> None:
    """Three different questions give at most three features and the constant, however many were asked for."""
    hidden = np.repeat(draw_states(3), 5, axis=0)
    assert fit_features(hidden, config, seed=0).size <= 4


@every_kind
@pytest.mark.parametrize("n", [1, 7])
def test_one_point_is_not_blown_up(config: FeatureConfig, n: int) -> None:
    """From one question, or from copies of one, every question has features of ordinary size."""
    hidden = np.repeat(draw_states(1), n, axis=0)
    mapping = fit_features(hidden, config, seed=0)
    for features in (mapping(hidden), mapping(draw_states(20, seed=4))):
        assert np.isfinite(features).all()
        assert np.abs(features).max() <= 1
    assert np.isfinite(mapping.gamma)


@every_kind
def test_the_same_data_and_seed_give_the_same_map(config: FeatureConfig) -> None:
    """Fitted twice, all arrays are equal bit for bit, and the data is as it was."""
    hidden = draw_states(60)
    before = hidden.copy()
    first, second = (fit_features(hidden, config, seed=5) for _ in range(2))
    assert (hidden == before).all()
    for name in ("mean", "projection", "landmarks"):
        assert np.array_equal(getattr(first, name), getattr(second, name)) or getattr(first, name) is None
    assert first.gamma == second.gamma


def test_landmarks_are_the_centres_of_clusters() -> None:
    """Three clusters far apart have their means as landmarks, whatever the seed."""
    rng = np.random.default_rng(0)
    cluster = np.arange(60) % 3
    points = np.array([[0, 0], [50, 0], [0, 50]])[cluster] + rng.standard_normal((60, 2))
    means = np.array([points[cluster == c].mean(0) for c in range(3)])
    for seed in range(5):
        found = fit_landmarks(points, 3, seed=seed)
        assert np.allclose(found[np.lexsort(found.T)], means[np.lexsort(means.T)])


def test_no_more_landmarks_than_different_points() -> None:
    """Of four different points among twenty there are four landmarks, the points themselves."""
    points = np.array([[0.0, 0], [0, 1], [1, 0], [3, 3]])[np.arange(20) % 4]
    found = fit_landmarks(points, 9, seed=0)
    assert sorted(map(tuple, found)) == [(0, 0), (0, 1), (1, 0), (3, 3)]


def test_landmarks_hang_on_the_seed_alone() -> None:
    """The same seed draws the same landmarks; another seed, on points without structure, others."""
    points = np.random.default_rng(0).standard_normal((100, 3))
    assert np.array_equal(fit_landmarks(points, 10, seed=1), fit_landmarks(points, 10, seed=1))
    assert not np.array_equal(fit_landmarks(points, 10, seed=1), fit_landmarks(points, 10, seed=2))


def test_a_name_says_which_map() -> None:
    """Candidates are told apart in metrics and cards by the map's name."""
    assert PCA.name == "pca4"
    assert LANDMARKS.name == "landmarks12@0.5"
