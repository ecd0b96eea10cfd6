"""What is imported by whom: nothing heavy before it is needed, and imports point down."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEVER = ("torch", "transformers", "ray", "trl", "pandas", "fastapi", "pydantic", "datasets", "litellm")
"""No part of the program needs these."""
LATER = {
    "genai_prices": "when a pool opens whose prices are not all declared",
    "matplotlib": "when a picture is drawn",
    "onnxruntime": "when the encoder is opened",
    "openai": "when the demo asks its own server",
    "reasoning_gym": "when home tasks are made or graded",
    "scipy": "with scikit-learn",
    "sklearn": "when the support vectors of the evaluation are fitted",
    "sympy": "when a home worker computes",
    "tokenizers": "when the encoder is opened",
}
"""Heavy or optional, and when it is loaded."""
CORE = ("torafugu.server", "torafugu.cli", "torafugu.orchestrate")
WITHOUT_NUMPY = ("torafugu.orchestrate", "torafugu.pool", "torafugu.store", "torafugu.server")
LIST_MODULES = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({module.partition(".")[0] for module in sys.modules}))
"""


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in a fresh interpreter after it imported these."""
    command = [sys.executable, "-c", LIST_MODULES, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", CORE)
def test_nothing_heavy(module: str) -> None:
    """Importing the server, the command line or the loop loads nothing that is heavy or optional."""
    loaded = loaded_by(module)
    assert "torafugu" in loaded
    assert loaded & {*NEVER, *LATER} == set()


def test_library_modules_are_light_too() -> None:
    """Importing every library module loads nothing optional either: each is imported by the function that needs it."""
    modules = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "src" / "torafugu").rglob("*.py")
        if path.stem != "__main__"
    ]
    assert len(modules) > 50
    optional = {"matplotlib", "openai", "reasoning_gym", "scipy", "sklearn", "sympy"}
    assert loaded_by(*modules) & {*NEVER, *optional} == set()


@pytest.mark.parametrize("module", WITHOUT_NUMPY)
def test_serving_without_a_head_needs_no_numpy(module: str) -> None:
    """numpy is loaded with a head, not before: a gateway without one does without."""
    assert "numpy" not in loaded_by(module)


def test_layers() -> None:
    """Imports point down, as the contracts in pyproject.toml say."""
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists() and shutil.which("lint-imports") is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [str(command) if command.exists() else "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout
