"""A causal language model and its tokeniser, from a folder or the hub, with an adapter if there is one.

From files alone: no code that lies beside them runs, no pickles are read, and weights that are missing are an error.
torch and transformers are handed in, so that importing this needs neither.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, ModelError
from .huggingface import FILES, NEEDED, NOT_FILES

__all__ = ["GeneratorOptions", "apply_adapter", "check_installed", "choose_device", "find_model", "load_causal"]

_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorOptions:
    """How a local worker's model is loaded and asked: its `extra_body`."""

    revision: str | None = None
    """Commit, tag or branch: required for the hub. Only a commit stays what it is."""
    gguf_file: str | None = None
    """File of that name in the model's folder or repository, unpacked to full precision; needs `gguf`, `accelerate`."""
    adapter: Path | None = None
    """Folder of a PEFT adapter that is applied on top, not merged: the numbers are those that it was trained with."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: as the files have it; float32 for GGUF."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if torch sees one."""
    max_new_tokens: int = 1024
    """Of a reply to who asks for no limit."""
    chat_template: bool | None = None
    """False: the plain format of `render_plainly`. None: that, if the tokeniser has no template."""
    prefill: str = ""
    """How every reply begins: the model goes on from there. Part of the reply's text, and of the input's tokens."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {self.max_new_tokens}: expected at least 1")


def check_installed(options: GeneratorOptions) -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"a local worker needs {', '.join(missing)}: pip install 'torafugu[local]' "
            "(without a GPU, add --extra-index-url https://download.pytorch.org/whl/cpu)"
        )
    extras = (("gguf_file", options.gguf_file, ("gguf", "accelerate")), ("adapter", options.adapter, ("peft",)))
    for key, value, packages in extras:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if value is not None and missing:
            raise ConfigError(f"{key} {str(value)!r} needs {', '.join(missing)}: pip install {' '.join(missing)}")


def choose_device(torch: Any, options: GeneratorOptions) -> str:
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda': torch sees no GPU: expected 'cpu', or a build of torch for your GPU")
    return options.device


def find_model(model: str, options: GeneratorOptions, folder: Path) -> Path:
    """Where the model's files are: a folder if there is one, else the hub's snapshot."""
    path = folder / Path(model).expanduser()
    if not path.is_dir():
        if model.startswith(("/", ".", "~")):
            raise ModelError(f"{path}: no such folder")
        path = _download(model, options, folder)
    elif options.revision is not None:
        raise ConfigError(f"{path}: revision {options.revision!r}: a folder has none; leave it out")
    if options.gguf_file is not None and not (path / options.gguf_file).is_file():
        raise ModelError(f"{path}: no file {options.gguf_file!r} in it")
    if options.gguf_file is None and not any(path.glob("*.safetensors")):
        raise ModelError(f"{path}: no *.safetensors here: expected a model in Hugging Face's format, or gguf_file")
    return path


def _download(model: str, options: GeneratorOptions, folder: Path) -> Path:
    """The hub's snapshot, from its cache if it is there. Obeys HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and HF_ENDPOINT."""
    if not options.revision:
        raise ConfigError(
            f"{model}: no such folder in {str(folder)!r}; if it is a name on the hub: no revision: expected the commit "
            f"to load, from https://huggingface.co/{model}/commits/main; what a branch holds can change"
        )
    import huggingface_hub

    wanted = list(FILES) if options.gguf_file is None else [options.gguf_file]
    unwanted = list(NOT_FILES) if options.gguf_file is None else None
    try:
        snapshot = huggingface_hub.snapshot_download(
            model, revision=options.revision, allow_patterns=wanted, ignore_patterns=unwanted
        )
    except (OSError, ValueError) as error:  # every error of the hub, of the connection, and of a name that is none
        reason = " ".join(str(error).split())
        raise ModelError(
            f"model {model!r} at revision {options.revision!r}: neither in the cache nor to be had from the hub: "
            f"{reason}: check name, revision and connection, or give a folder"
        ) from None
    return Path(snapshot)


def load_causal(torch: Any, transformers: Any, path: Path, options: GeneratorOptions) -> tuple[Any, Any]:
    """Model and tokeniser; from files alone, running no code that lies beside them."""
    import safetensors

    gguf_file = options.gguf_file
    dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, gguf_file=gguf_file)
        _check_kind(config, path)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=gguf_file is None,
            gguf_file=gguf_file,
            dtype=dtype,
            output_loading_info=True,
        )
        tokeniser = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, gguf_file=gguf_file)
    except (*_LOAD_ERRORS, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded: {error}") from None
    if missing := sorted(report["missing_keys"]):  # they would be random numbers
        raise ModelError(f"{path}: {len(missing)} weights are missing, {missing[0]!r} among them: expected all of them")
    return model, tokeniser


def _check_kind(config: Any, path: Path) -> None:
    kinds = config.architectures or ["ForCausalLM"]  # GGUF does not say
    if config.is_encoder_decoder or not any(kind.endswith(("CausalLM", "LMHeadModel", "Generation")) for kind in kinds):
        raise ConfigError(f"{path}: {', '.join(kinds)}: expected a causal language model")


def apply_adapter(model: Any, folder: Path) -> Any:
    import peft

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"adapter {str(folder)!r}: no {name} in it: expected what PEFT saves, without pickles")
    try:
        adapted = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(folder)))
        report = adapted.load_adapter(str(folder), "default", torch_device="cpu")
    except _LOAD_ERRORS as error:
        raise ModelError(f"adapter {str(folder)!r}: cannot be applied: {error}") from None
    if strange := [*report.missing_keys, *report.unexpected_keys]:  # PEFT goes on without them
        raise ModelError(
            f"adapter {str(folder)!r}: it does not fit the model: {len(strange)} weights, {strange[0]!r} among them, "
            "are missing or have no place: expected an adapter of this model"
        )
    return adapted
