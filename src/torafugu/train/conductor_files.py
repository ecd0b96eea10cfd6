"""What a conductor's run leaves in its folder: the model as it is served, what it takes to repeat the run, its card."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .. import __version__
from ..errors import ConfigError
from ..eval.provenance import find_commit
from ..grade.task import Task
from ..types import Json
from .conductor_model import ConductorModel

__all__ = ["digest_tasks", "halve_adapter", "read_rows", "to_json", "write_run_file", "write_served"]

_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers", "peft", "trl", "onnx")


def to_json(value: object) -> Any:
    return msgspec.to_builtins(value, enc_hook=str)


def digest_tasks(tasks: Sequence[Task]) -> str:
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(msgspec.json.encode([task.id, task.prompt, task.gold, task.split]) + b"\n")
    return digest.hexdigest()


def write_run_file(out: Path, bound: Mapping[str, Json]) -> None:
    """`run.json`: all that it takes to repeat the run."""
    row = {
        "command": sys.argv,
        **bound,
        "commit": find_commit(),
        "python": platform.python_version(),
        "packages": {"torafugu": __version__, **{name: _find_version(name) for name in _PACKAGES}},
    }
    (out / "run.json").write_text(json.dumps(row, indent=1) + "\n")


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_served(folder: Path, model: ConductorModel, graph: bytes) -> None:
    """A folder that a worker of dialect `local` is served from; of an adapter, the adapter alone."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generation.json").write_text(json.dumps({"format": "bare"}) + "\n")
    if model.is_adapter:
        model.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's, of headings only
        return
    save_file(model.weights(), folder / "model.safetensors")
    (folder / "graph.onnx").write_bytes(graph)
    (folder / "config.json").write_text(model.config_json())
    model.tokeniser.save(str(folder / "tokenizer.json"))


def halve_adapter(folder: Path) -> None:
    """An adapter's weights in float16: what is served is half as large, and differs by less than its base's packing."""
    from safetensors.numpy import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({name: value.astype(np.float16) for name, value in load_file(path).items()}, path)


def read_rows(metrics: Path, stage: str) -> list[dict[str, Json]]:
    """The lines of one stage, oldest first."""
    if not metrics.exists():
        return []
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def check_folder(out: Path) -> None:
    """Raises ConfigError: there is something else."""
    if out.exists() and any(out.iterdir()) and not (out / "run.json").exists():
        raise ConfigError(f"{out}: not empty, and no run of ours: expected a new folder, or one to go on in")
