"""Singular-value fine-tuning: the layout of the paper, and the arithmetic against the plain formula."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.errors import ModelError
from torafugu.local.svf import (
    QWEN3_0_6B,
    SvfLayout,
    SvfMatrix,
    apply_offsets,
    count_layers,
    count_parameters,
    decompose,
    hash_offsets,
    layer_of,
    layout_of_layers,
    quantise_offsets,
)

Array = npt.NDArray[np.float32]
SHAPES = [(12, 7), (7, 12), (9, 9), (1, 5), (6, 1)]


def make_weight(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def make_offsets(n: int, seed: int = 1, scale: float = 0.3) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-scale, scale, n)


def scale_plainly(weight: Array, offsets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The formula as the paper has it, in float64."""
    u, s, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    scaled = s * (1 + offsets)
    return np.asarray((u * scaled) @ vt * (s.sum() / scaled.sum()))


# --- layout ---------------------------------------------------------------------------------------------------------


def test_qwen3_layout() -> None:
    """Qwen3-0.6B has nine matrices and 9,216 offsets, each range where the paper's code puts it."""
    assert QWEN3_0_6B.size == 9216
    layer = "model.layers.26."
    assert [(m.name, m.rows, m.columns) for m in QWEN3_0_6B.matrices] == [
        ("model.embed_tokens.weight", 151936, 1024),
        (layer + "self_attn.q_proj.weight", 2048, 1024),
        (layer + "self_attn.k_proj.weight", 1024, 1024),
        (layer + "self_attn.v_proj.weight", 1024, 1024),
        (layer + "self_attn.o_proj.weight", 1024, 2048),
        (layer + "mlp.gate_proj.weight", 3072, 1024),
        (layer + "mlp.up_proj.weight", 3072, 1024),
        (layer + "mlp.down_proj.weight", 1024, 3072),
        ("lm_head.weight", 151936, 1024),
    ]
    assert QWEN3_0_6B.ranges == {
        "model.embed_tokens.weight": range(1024),
        layer + "self_attn.q_proj.weight": range(1024, 2048),
        layer + "self_attn.k_proj.weight": range(2048, 3072),
        layer + "self_attn.v_proj.weight": range(3072, 4096),
        layer + "self_attn.o_proj.weight": range(4096, 5120),
        layer + "mlp.gate_proj.weight": range(5120, 6144),
        layer + "mlp.up_proj.weight": range(6144, 7168),
        layer + "mlp.down_proj.weight": range(7168, 8192),
        "lm_head.weight": range(8192, 9216),
    }


@pytest.mark.parametrize(("workers", "roles", "expected"), [(7, 3, 19456), (7, 0, 16384), (10, 3, 22528)])
def test_parameter_count(workers: int, roles: int, expected: int) -> None:
    """N is d * (workers + roles) plus the singular values: 19,456 in the paper."""
    assert count_parameters(QWEN3_0_6B, dim=1024, workers=workers, roles=roles) == expected


def test_layout_follows_the_papers_rule() -> None:
    """Chosen are, in the model's order, the 2-D weights of the layer and of no layer; norms and biases are not."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (50, 8)),
        ("model.layers.0.mlp.up_proj.weight", (16, 8)),
        ("model.layers.1.mlp.up_proj.weight", (16, 8)),
        ("model.layers.1.mlp.up_proj.bias", (16,)),
        ("model.layers.10.mlp.up_proj.weight", (16, 8)),
        ("model.norm.weight", (8,)),
        ("lm_head.weight", (50, 8)),
    ]
    layout = layout_of_layers(shapes, [1], outside_layers=True)
    assert [m.name for m in layout.matrices] == [shapes[0][0], shapes[2][0], shapes[6][0]]
    assert layout.size == 24
    inside = layout_of_layers(shapes, [1], outside_layers=False)
    assert [m.name for m in inside.matrices] == [shapes[2][0]]
    assert count_layers(name for name, _ in shapes) == 11
    with pytest.raises(ModelError, match=r"layers \[2\]"):
        layout_of_layers(shapes, [1, 2], outside_layers=True)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.26.mlp.up_proj.weight", 26),
        ("encoder.layer.4.attention.self.query.weight", 4),
        ("transformer.h.3.attn.c_attn.weight", 3),
        ("layer4.query", None),
        ("model.norm.weight", None),
    ],
)
def test_layer_of(name: str, layer: int | None) -> None:
    """A parameter's layer is read from its name, in the spellings of the common families."""
    assert layer_of(name) == layer


def test_split_gives_each_matrix_its_own() -> None:
    """Splitting hands every matrix exactly the offsets of its range, and refuses a vector of another length."""
    layout = SvfLayout((SvfMatrix(name="a", rows=3, columns=5), SvfMatrix(name="b", rows=4, columns=2)))
    parts = layout.split(np.arange(5.0))
    assert {name: part.tolist() for name, part in parts.items()} == {"a": [0, 1, 2], "b": [3, 4]}
    with pytest.raises(ModelError, match=r"shape \(4,\): expected \(5,\)"):
        layout.split(np.zeros(4))
    with pytest.raises(ModelError, match="2 of 5 are not finite"):
        layout.split(np.array([0, np.nan, 0, np.inf, 0]))


# --- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape: tuple[int, int]) -> None:
    """W' is U diag(s (1 + d)) V^T times sum s / sum(s (1 + d)), whichever side is longer."""
    weight = make_weight(*shape)
    offsets = make_offsets(min(shape))
    scaled = apply_offsets(weight, decompose(weight), offsets)
    np.testing.assert_allclose(scaled, scale_plainly(weight, offsets), atol=2e-6)
    if min(shape) > 1:
        assert np.abs(scaled - weight).max() > 0.01


def test_equals_the_formula_when_ill_conditioned() -> None:
    """A matrix whose singular values span six orders of magnitude is scaled as accurately."""
    u, _, vt = np.linalg.svd(make_weight(40, 20).astype(np.float64), full_matrices=False)
    weight = ((u * np.logspace(0, -6, 20)) @ vt).astype(np.float32)
    offsets = make_offsets(20)
    np.testing.assert_allclose(
        apply_offsets(weight, decompose(weight), offsets), scale_plainly(weight, offsets), atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_no_offsets_change_nothing(shape: tuple[int, int]) -> None:
    """Zero offsets give W back, bit for bit."""
    weight = make_weight(*shape)
    assert np.array_equal(apply_offsets(weight, decompose(weight), np.zeros(min(shape))), weight)


@pytest.mark.parametrize("offset", [-0.9, 0.3, 7.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_uniform_offsets_change_nothing(shape: tuple[int, int], offset: float) -> None:
    """The same offset for every value gives W back: only differences between values matter."""
    weight = make_weight(*shape)
    scaled = apply_offsets(weight, decompose(weight), np.full(min(shape), offset))
    np.testing.assert_allclose(scaled, weight, rtol=0, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SHAPES), st.integers(0, 10_000), st.floats(0, 0.99))
def test_sum_of_singular_values_is_preserved(shape: tuple[int, int], seed: int, scale: float) -> None:
    """Whatever the offsets above -1, the singular values of W' have the sum of those of W."""
    weight = make_weight(*shape, seed=seed)
    scaled = apply_offsets(weight, decompose(weight), make_offsets(min(shape), seed, scale))
    before, after = (np.linalg.svd(w.astype(np.float64), compute_uv=False).sum() for w in (weight, scaled))
    assert after == pytest.approx(before, rel=1e-5)


def test_offsets_go_from_the_largest_value_down() -> None:
    """The first offset belongs to the largest singular value."""
    weight = np.diag([1.0, 3.0, 2.0]).astype(np.float32)
    scaled = apply_offsets(weight, decompose(weight), np.array([1.0, 0, 0]))
    np.testing.assert_allclose(np.diag(scaled), np.array([1, 6, 2]) * 6 / 9, atol=1e-6)


@pytest.mark.parametrize("offset", [-1.0, -1.5, -0.999])
def test_guard(offset: float) -> None:
    """Offsets that leave a sum near zero, or below, are refused before anything is divided by it."""
    spectrum = decompose(make_weight(6, 4))
    with pytest.raises(ModelError, match=r"expected at least 1% of it"):
        spectrum.factors(np.full(4, offset))


@pytest.mark.parametrize("bad", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.zeros(3), np.zeros((0, 3))])
def test_not_to_be_decomposed(bad: npt.NDArray[np.float64]) -> None:
    """What is all zeros, not finite or not a matrix has no spectrum."""
    with pytest.raises(ModelError, match="weight"):
        decompose(bad)


# --- identity and the authors' rounding -----------------------------------------------------------------------------


def test_hash_names_offsets_and_layout() -> None:
    """Different offsets or layouts hash differently; no offsets are "none"; float64 is hashed as float32."""
    layout = SvfLayout((SvfMatrix(name="a", rows=3, columns=5),))
    other = SvfLayout((SvfMatrix(name="b", rows=3, columns=5),))
    offsets = np.array([0.1, 0.2, 0.3])
    hashes = {
        hash_offsets(layout, offsets),
        hash_offsets(layout, offsets[::-1]),
        hash_offsets(other, offsets),
    }
    assert len(hashes) == 3
    assert hash_offsets(layout, offsets.astype(np.float32)) == hash_offsets(layout, offsets)
    assert hash_offsets(layout, np.zeros(3)) == "none"


def test_authors_quantise_offsets() -> None:
    """Formed in bfloat16, 1 + d has steps of 2^-7 above 0 and 2^-8 below; a small offset vanishes."""
    quantised = quantise_offsets(np.array([0.001, 0.0973, -0.0973, 0.5, 0.0, 2**-7, -(2**-8)]))
    np.testing.assert_array_equal(quantised, np.array([0, 12 / 128, -25 / 256, 0.5, 0, 2**-7, -(2**-8)], np.float32))
