"""The paper's heads: parameter counts, shapes, and each one's arithmetic against a plain computation."""

from __future__ import annotations

import numpy as np
import pytest

from torafugu.errors import ConfigError, ModelError
from torafugu.orchestrate.head_variants import HEAD_VARIANTS, HeadVariant, find_variant, low_rank_of, slices_of

COUNTS = {
    "linear": 10240,
    "low-rank": 20680,
    "sparse": 11266,
    "block-diagonal-2": 5120,
    "block-diagonal-10": 1024,
}
EACH = pytest.mark.parametrize("variant", HEAD_VARIANTS.values(), ids=HEAD_VARIANTS)


def make(variant: HeadVariant, dim: int = 24, outputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(vector, hidden)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(variant.parameter_count(dim, outputs)), rng.standard_normal((4, dim))


def test_counts_of_the_paper() -> None:
    """For ten outputs of 1024 numbers the heads have the parameters of Table 6."""
    assert {name: variant.parameter_count(1024, 10) for name, variant in HEAD_VARIANTS.items()} == COUNTS


@EACH
@pytest.mark.parametrize(("dim", "outputs"), [(24, 5), (1024, 10), (17, 7), (8, 1), (3, 3)])
def test_shapes(variant: HeadVariant, dim: int, outputs: int) -> None:
    """Logits are (n, outputs), and every parameter count is that of the vector it starts from."""
    hidden = np.random.default_rng(0).standard_normal((6, dim))
    start = variant.initial(dim, outputs, np.random.default_rng(1))
    assert start.shape == (variant.parameter_count(dim, outputs),)
    logits = variant.logits(start, hidden, outputs=outputs)
    assert logits.shape == (6, outputs)
    assert np.isfinite(logits).all()


@EACH
def test_rows_are_independent(variant: HeadVariant) -> None:
    """A row's logits are those it has alone."""
    vector, hidden = make(variant)
    together = variant.logits(vector, hidden, outputs=5)
    alone = np.concatenate([variant.logits(vector, row[None], outputs=5) for row in hidden])
    np.testing.assert_allclose(together, alone, atol=1e-12)


@EACH
def test_wrong_vectors(variant: HeadVariant) -> None:
    """A vector of another length, or with a number that is none, is refused."""
    vector, hidden = make(variant)
    with pytest.raises(ModelError, match=rf"{variant.name}.*expected \({len(vector)},\)"):
        variant.logits(vector[:-1], hidden, outputs=5)
    vector[3] = np.nan
    with pytest.raises(ModelError, match="finite"):
        variant.logits(vector, hidden, outputs=5)


@EACH
def test_too_many_outputs(variant: HeadVariant) -> None:
    """No head has more outputs than the hidden state has numbers, or none."""
    for outputs in (0, 25):
        with pytest.raises(ConfigError, match="expected 1 to 24 outputs"):
            variant.parameter_count(24, outputs)


def test_unknown_name() -> None:
    """An unknown head is refused with the names of those that exist."""
    assert find_variant("sparse") is HEAD_VARIANTS["sparse"]
    with pytest.raises(ConfigError, match=r"'dense': expected one of linear, low-rank, sparse, block-diagonal-2, bl"):
        find_variant("dense")


def test_linear() -> None:
    """The linear head is row-major: the first `dim` parameters are the first output's."""
    vector, hidden = make(HEAD_VARIANTS["linear"])
    logits = HEAD_VARIANTS["linear"].logits(vector, hidden, outputs=5)
    np.testing.assert_allclose(logits[:, 0], hidden @ vector[:24], atol=1e-12)
    np.testing.assert_allclose(logits[:, 4], hidden @ vector[-24:], atol=1e-12)


@pytest.mark.parametrize(("outputs", "rank"), [(10, 20), (7, 14), (3, 8)])
def test_rank(outputs: int, rank: int) -> None:
    """The rank is that of the authors' rule: 20 for ten outputs, 14 for seven, never below 8."""
    assert low_rank_of(1024, outputs) == rank


def test_low_rank() -> None:
    """Two factors with an ELU of slope 0.1 between them, times three."""
    variant = HEAD_VARIANTS["low-rank"]
    vector, hidden = make(variant)
    rank = low_rank_of(24, 5)
    u, v = vector[: rank * 24].reshape(rank, 24), vector[rank * 24 :].reshape(5, rank)
    for row, logits in zip(hidden, variant.logits(vector, hidden, outputs=5), strict=True):
        inner = [x if x > 0 else 0.1 * (np.exp(x) - 1) for x in u @ row]
        np.testing.assert_allclose(logits, 3 * (v @ np.array(inner)), atol=1e-10)
    assert np.isfinite(variant.logits(vector, 1000 * hidden, outputs=5)).all()


def test_sparse() -> None:
    """Only the numbers of the best scores are read, as many as the sparsity leaves; the temperature does nothing."""
    variant = HEAD_VARIANTS["sparse"]
    vector, hidden = make(variant)
    weight, scores = vector[:120].reshape(5, 24), vector[120:144]
    for logit, kept in ((0.0, 12), (-50.0, 24), (50.0, 1), (1000.0, 1), (np.log(3), 6)):
        vector[-1] = logit
        read = np.where(scores >= np.sort(scores)[-kept], 1, 0)
        np.testing.assert_allclose(variant.logits(vector, hidden, outputs=5), (hidden * read) @ weight.T, atol=1e-12)
    before = variant.logits(vector, hidden, outputs=5)
    vector[-2] = 99
    assert np.array_equal(variant.logits(vector, hidden, outputs=5), before)


@pytest.mark.parametrize("name", ["block-diagonal-2", "block-diagonal-10"])
def test_block_diagonal(name: str) -> None:
    """Equals a linear head whose matrix is zero outside the blocks."""
    variant, blocks = HEAD_VARIANTS[name], {"block-diagonal-2": 2, "block-diagonal-10": 5}[name]
    vector, hidden = make(variant)
    full, at = np.zeros((5, 24)), 0
    for read, write in slices_of(24, 5, blocks):
        block = full[write, read]
        full[write, read] = vector[at : at + block.size].reshape(block.shape)
        at += block.size
    assert at == len(vector)
    np.testing.assert_allclose(variant.logits(vector, hidden, outputs=5), hidden @ full.T, atol=1e-12)


def test_slices() -> None:
    """Blocks share out outputs evenly and hidden numbers in proportion, the last taking the rest."""
    assert slices_of(1024, 10, 2) == [(slice(0, 512), slice(0, 5)), (slice(512, 1024), slice(5, 10))]
    widths = [read.stop - read.start for read, _ in slices_of(1024, 10, 10)]
    assert widths == [102] * 9 + [106]
    assert slices_of(14, 7, 2) == [(slice(0, 6), slice(0, 3)), (slice(6, 14), slice(3, 7))]


def test_starts_of_the_authors_modules() -> None:
    """Linear weights start within 1 / sqrt(inputs); low-rank factors as Xavier's with gains 1 and 3; scores are normal
    of deviation 2, temperature 10 and sparsity logit 0."""
    starts = {name: variant.initial(1024, 10, np.random.default_rng(0)) for name, variant in HEAD_VARIANTS.items()}

    def reach(part: np.ndarray) -> float:
        return float(np.abs(part).max())

    assert reach(starts["linear"]) == pytest.approx(1 / 32, rel=0.01)
    assert reach(starts["block-diagonal-2"]) == pytest.approx(512**-0.5, rel=0.01)
    assert reach(starts["block-diagonal-10"]) == pytest.approx(102**-0.5, rel=0.02)
    assert reach(starts["low-rank"][:20480]) == pytest.approx((6 / 1044) ** 0.5, rel=0.01)
    assert reach(starts["low-rank"][20480:]) == pytest.approx(3 * (6 / 30) ** 0.5, rel=0.05)
    assert starts["sparse"][10240:-2].std() == pytest.approx(2, rel=0.1)
    assert starts["sparse"][-2:].tolist() == [10, 0]


def test_low_rank_starts_alive() -> None:
    """From zeros a small step hardly moves the low-rank head's logits; from its start it does."""
    variant, rng = HEAD_VARIANTS["low-rank"], np.random.default_rng(0)
    hidden = rng.standard_normal((4, 24))
    step = 0.01 * rng.standard_normal(variant.parameter_count(24, 5))
    start = variant.initial(24, 5, rng)

    def moved(vector: np.ndarray) -> float:
        change = variant.logits(vector + step, hidden, outputs=5) - variant.logits(vector, hidden, outputs=5)
        return float(np.abs(change).max())

    assert moved(start) > 20 * moved(np.zeros_like(step))
