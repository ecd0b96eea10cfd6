"""Any Hugging Face causal model or encoder as an `Encoder`, with singular-value fine-tuning: extra `[local]`.

One forward pass over the input, no generation; the last layer's hidden states, after the final norm, at one position or
averaged, scaled to length one. torch and transformers are imported when an encoder is made, never with this module.
The network, its tokeniser and whatever offsets its weights hold at the moment belong to one thread.

SVF scales the matrices that the paper's code scales: every 2-D weight that is in no layer, and those of the layer
before the last. A model whose embedding and output head are one tensor makes that ambiguous: see `Tied`.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ModelError
from ..orchestrate.encoder import Encoding
from ..types import Message
from .encoder import Reading
from .svf import Spectrum, SvfLayout, count_layers, hash_offsets, layout_of_layers, spectrum_of_gram

__all__ = ["HuggingFaceConfig", "HuggingFaceEncoder", "InputForm", "Tied"]

InputForm: TypeAlias = Literal["chat-template", "raw"]
"""The model's own chat format, ending where it would begin to answer; or "role: content" lines. The authors' code does
the first, two reproductions the second."""

Tied: TypeAlias = Literal["authors", "once"]
"""How the offsets of an embedding and an output head that are one tensor are applied. Qwen3-0.6B ties them, and since
the hidden states depend on the embedding, implementations of the same paper are four different routers:

- "authors": both have offsets, 0-1023 and 8192-9215, and both write W' of the untouched matrix into the one tensor, the
  head last. The embedding's offsets are dead; the embedding is scaled by the head's. What the released vector means.
- "once": the tensor has one block of offsets, the embedding's: N is 1,024 smaller, and no offset is dead.
- compounded: the head's write decomposes the tensor that the embedding's has scaled, so both act. Not offered.
- separate: two tensors, each with its offsets; the head's do not reach the hidden states. The states of "once" with
  a dead block more. Not offered.

For untied models, whose head's offsets reach no hidden state, and for encoders, which have no head, both are the same.

Precision: the authors round U, s, V and the offsets to bfloat16, 1 + d to steps of 2^-7 (`svf.quantise_offsets` does
the latter to a vector). Here W' is computed in float32 and rounded once, to the model's dtype."""

DEFAULT_MAX_TOKENS = 4096
CHARS_PER_TOKEN = 16  # of a message longer than this times max_tokens, only the two ends are tokenised
ROWS_AT_ONCE = 16_384  # of a vocabulary's matrix: 64 MB of float32
FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
"""What is downloaded, and hashed. No pickles: those can run code."""
NOT_FILES = ("*/*", "consolidated*")
NEEDED = ("torch", "transformers", "huggingface_hub", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceConfig:
    """Which model is read, and how."""

    model: str
    """A folder, or a name on the hub (`Qwen/Qwen3-0.6B`)."""
    revision: str | None = None
    """Commit, tag or branch: required for the hub. Only a commit stays what it is."""
    reading: Reading = "penultimate"
    """The paper's. Of the non-thinking Qwen3 template that is `</think>`."""
    input: InputForm = "chat-template"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if torch sees one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens: int | None = None
    """Of longer input the first and the last half of so many are read. None: 4096, or what the model takes if less."""
    svf_layer: int | None = None
    """Whose matrices are scaled, from 0. None: that before the last, as in the paper."""
    svf_outside_layers: bool = True
    """Scale embeddings and output head too, as the paper's code does. A candidate then costs seconds on a CPU."""
    tied: Tied = "authors"


class HuggingFaceEncoder:
    """An `Encoder`, and a `BulkEncoder`. Others with other offsets share its network: see `with_offsets`."""

    def __init__(self, config: HuggingFaceConfig, *, offsets: NDArray[np.floating] | None = None) -> None:
        """Loads, and downloads if need be. `offsets`: as `layout` has them; None for zeros.

        Raises:
            ConfigError: torch or transformers are not installed, or the config asks for what the model has not.
            ModelError: the model cannot be had, is damaged, or the offsets do not fit it.
        """
        self._network = _Network(config)
        self._set(np.zeros(self.layout.size, np.float32) if offsets is None else offsets)

    @property
    def layout(self) -> SvfLayout:
        """Which matrices are scaled, and where their offsets are."""
        return self._network.layout

    @property
    def dim(self) -> int:
        return self._network.dim

    def with_offsets(self, offsets: NDArray[np.floating]) -> HuggingFaceEncoder:
        """The same encoder with these offsets instead, on the same network and thread: the weights are rewritten when
        another one's turn comes, so encode all texts with one before the next.

        Raises:
            ModelError: the offsets do not fit. That they leave nothing to scale is found when they are first used.
        """
        other = object.__new__(HuggingFaceEncoder)
        other._network = self._network
        other._set(offsets)
        return other

    async def encode(self, messages: Sequence[Message]) -> Encoding:
        """The conversation, system messages included, as one vector.

        Raises:
            ModelError: the model's chat template refuses the conversation, or the hidden state is not finite.
        """
        return await asyncio.get_running_loop().run_in_executor(self._network.thread, self._encode, tuple(messages))

    def encode_texts(
        self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """(n, dim): each text as `encode` reads a conversation of that one user message. Blocks; one after another, so
        that no padding changes a bit."""
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            message = Message(role="user", content=text)
            rows[i] = self._network.thread.submit(self._encode, (message,)).result().hidden
            if progress is not None:
                progress(i + 1, len(texts))
        return rows

    def close(self) -> None:
        """Ends the encoder thread, also for all that were made by `with_offsets`. Idempotent."""
        self._network.thread.shutdown(cancel_futures=True)

    def _set(self, offsets: NDArray[np.floating]) -> None:
        self._parts = {name: np.array(part) for name, part in self.layout.split(offsets).items()}
        self.name = f"{self._network.name}-{hash_offsets(self.layout, offsets)}"

    def _encode(self, messages: tuple[Message, ...]) -> Encoding:
        self._network.apply(self._parts)
        return self._network.encode(messages)


class _Network:
    """The live model. After construction only `thread` touches it."""

    def __init__(self, config: HuggingFaceConfig) -> None:
        _check_installed()
        folder, identity = _find_folder(config)
        import torch
        import transformers

        self._torch, self._config = torch, config
        self._device = config.device
        if config.device == "auto":
            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        elif config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device 'cuda': torch sees no GPU: expected 'cpu', or a build of torch for your GPU")
        self._model, self._tokeniser, self._is_causal = _load(transformers, folder, getattr(torch, config.dtype))
        self._model.to(self._device).eval()
        text_config = self._model.config.get_text_config()
        self._check_reading()
        self.dim = int(text_config.hidden_size)
        self._max_tokens = self._limit_tokens(getattr(text_config, "max_position_embeddings", None))
        self._weights = self._find_weights()
        layer = config.svf_layer
        if layer is None:
            layer = max(0, count_layers(self._weights) - 2)
        shapes = [(name, tuple(weight.shape)) for name, weight in self._weights.items()]
        self.layout = layout_of_layers(shapes, [layer], outside_layers=config.svf_outside_layers)
        self._untouched: dict[str, Any] = {}
        self._spectra: dict[str, Spectrum] = {}
        self._applied: dict[str, NDArray[np.floating]] = {}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="encoder-torch")
        self.name = (
            f"{Path(config.model).resolve().name}@{identity}/{config.reading}-{config.input}-{self._max_tokens}-{config.dtype}"
            f"/svf-{layer}"
        )

    def encode(self, messages: tuple[Message, ...]) -> Encoding:
        tokens, is_whole = self._tokenise(messages)
        head = (self._max_tokens + 1) // 2
        read = tokens if len(tokens) <= self._max_tokens else tokens[:head] + tokens[head - self._max_tokens :]
        hidden = self._run(read or [self._empty_token()])
        total = len(tokens) if is_whole else None
        return Encoding(hidden=hidden, tokens_read=len(read), tokens_total=total)

    def apply(self, parts: dict[str, NDArray[np.floating]]) -> None:
        """Makes the weights those of the offsets. Of names that share a tensor, the last one writes."""
        writers = {self._weights[name].data_ptr(): name for name in parts}
        for name in writers.values():
            part = parts[name]
            before = self._applied.get(name)
            if np.array_equal(part, before) if before is not None else not part.any():
                continue
            scaled = self._scale(name, part)
            with self._torch.no_grad():
                self._weights[name].copy_(scaled)
            self._applied[name] = part

    # --- input ------------------------------------------------------------------------------------------------------

    def _tokenise(self, messages: tuple[Message, ...]) -> tuple[list[int], bool]:
        """Tokens, and whether all of the text was tokenised. Control tokens that a text spells out are plain text."""
        limit = CHARS_PER_TOKEN * self._max_tokens
        texts = [message.text.encode("utf-8", "replace").decode() for message in messages]  # no lone surrogates
        is_whole = all(len(text) <= limit for text in texts)
        texts = [text if len(text) <= limit else text[: limit // 2] + text[-limit // 2 :] for text in texts]
        turns = [
            {"role": "system" if message.role == "developer" else message.role, "content": text}
            for message, text in zip(messages, texts, strict=True)
            if text
        ]
        tokens = self._fill_template(turns) if self._config.input == "chat-template" else self._join_lines(turns)
        return tokens, is_whole

    def _fill_template(self, turns: list[dict[str, str]]) -> list[int]:
        import jinja2

        try:
            return list(
                self._tokeniser.apply_chat_template(
                    turns or [{"role": "user", "content": ""}],
                    add_generation_prompt=True,
                    enable_thinking=False,  # templates that do not know it ignore it
                    sanitize_control_tokens=True,
                    return_dict=False,
                )
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ModelError(
                f"{self._config.model}: its chat template refuses the roles {roles}: {error}: use input = 'raw'"
            ) from None

    def _join_lines(self, turns: list[dict[str, str]]) -> list[int]:
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        return list(self._tokeniser(text, split_special_tokens=True)["input_ids"])

    def _empty_token(self) -> int:
        """What stands for no input at all, where a tokeniser adds nothing of its own."""
        known = (self._tokeniser.bos_token_id, self._tokeniser.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    # --- forward ----------------------------------------------------------------------------------------------------

    def _run(self, tokens: list[int]) -> NDArray[np.float32]:
        torch = self._torch
        ids = torch.tensor([tokens], device=self._device)
        options = {"use_cache": False} if self._is_causal else {}
        with torch.inference_mode():
            # The base model: logits over a vocabulary would cost more than the last layers.
            output = self._model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            states = output.last_hidden_state[0].float()  # (T, dim)
            hidden = states.mean(0) if self._config.reading == "mean" else states[self._position(len(tokens))]
            row: NDArray[np.float32] = hidden.cpu().numpy().copy()
        length = float(np.linalg.norm(row))
        if not 0 < length < np.inf:
            raise ModelError(
                f"{self.name}: a hidden state of length {length}: try dtype = 'float32' or smaller offsets"
            )
        return row / np.float32(length)

    def _position(self, tokens: int) -> int:
        return {"last": -1, "penultimate": -min(2, tokens), "cls": 0}[self._config.reading]

    # --- weights ----------------------------------------------------------------------------------------------------

    def _find_weights(self) -> dict[str, Any]:
        """The live parameters by name, in the order of `state_dict`. A pooler reads hidden states and makes none."""
        weights, seen = {}, set()
        for name, tensor in self._model.state_dict().items():
            is_second = tensor.data_ptr() in seen
            seen.add(tensor.data_ptr())
            if "pooler." not in name and not (is_second and self._config.tied == "once"):
                weights[name] = tensor  # shares its memory with the parameter
        return weights

    def _scale(self, name: str, offsets: NDArray[np.floating]) -> Any:
        """W' of the untouched weight, in its dtype. As `svf.apply_offsets`, on the model's device."""
        torch, weight = self._torch, self._weights[name]
        key = str(weight.data_ptr())
        if key not in self._untouched:
            self._untouched[key] = weight.clone()
        weight = self._untouched[key]
        is_tall = weight.shape[0] >= weight.shape[1]
        if key not in self._spectra:
            self._spectra[key] = spectrum_of_gram(self._gram(weight if is_tall else weight.T))
        change = torch.from_numpy(self._spectra[key].change(offsets)).to(self._device)
        if not is_tall:
            wide = weight.float()
            return (wide + change @ wide).to(weight.dtype)
        scaled = torch.empty_like(weight)
        for rows, out in zip(weight.split(ROWS_AT_ONCE), scaled.split(ROWS_AT_ONCE), strict=True):
            out.copy_(torch.addmm(rows.float(), rows.float(), change))
        return scaled

    def _gram(self, tall: Any) -> NDArray[np.float64]:
        torch = self._torch
        gram = torch.zeros((tall.shape[1], tall.shape[1]), dtype=torch.float64, device=self._device)
        for rows in tall.split(ROWS_AT_ONCE):
            wide = rows.double()
            gram += wide.T @ wide
        result: NDArray[np.float64] = gram.cpu().numpy()
        return result

    # --- checks -----------------------------------------------------------------------------------------------------

    def _check_reading(self) -> None:
        config = self._config
        if config.reading == "cls" and self._is_causal:
            raise ConfigError(
                f"{config.model}: reading 'cls': in a causal model the first token has seen nothing but itself: "
                "expected penultimate, last or mean"
            )
        if config.input == "chat-template" and not self._tokeniser.chat_template:
            raise ConfigError(f"{config.model}: its tokeniser has no chat template: expected input = 'raw'")

    def _limit_tokens(self, positions: int | None) -> int:
        longest = min(positions or DEFAULT_MAX_TOKENS, int(self._tokeniser.model_max_length))
        if self._config.max_tokens is None:
            return min(DEFAULT_MAX_TOKENS, longest)
        if not 2 <= self._config.max_tokens <= longest:
            raise ConfigError(f"{self._config.model}: max_tokens {self._config.max_tokens}: expected 2 to {longest}")
        return self._config.max_tokens


def _check_installed() -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"a Hugging Face encoder needs {', '.join(missing)}: pip install 'torafugu[local]' "
            "(without a GPU, add --extra-index-url https://download.pytorch.org/whl/cpu)"
        )


def _find_folder(config: HuggingFaceConfig) -> tuple[Path, str]:
    """Where the model's files are, and what tells them from any others: a hash, or the hub's commit."""
    path = Path(config.model).expanduser()
    if path.is_dir():
        if config.revision is not None:
            raise ConfigError(f"{config.model}: revision {config.revision!r}: a folder has none; leave it out")
        return path, _hash_files(path)
    if config.model.startswith(("/", ".", "~")):
        raise ModelError(f"{config.model}: no such folder")
    if not config.revision:
        raise ConfigError(
            f"{config.model}: no revision: expected the commit to load, from "
            f"https://huggingface.co/{config.model}/commits/main; what a branch holds can change"
        )
    snapshot = _download(config.model, config.revision)
    return snapshot, snapshot.name[:12]


def _download(model: str, revision: str) -> Path:
    """The hub's snapshot, from its cache if it is there. Obeys HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and HF_ENDPOINT."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=list(FILES), ignore_patterns=list(NOT_FILES)
        )
    except (OSError, ValueError) as error:  # every error of the hub, of the connection, and of a name that is none
        reason = " ".join(str(error).split())
        raise ModelError(
            f"model {model!r} at revision {revision!r}: neither in the cache nor to be had from the hub: {reason}: "
            "check name, revision and connection, or give a folder"
        ) from None
    return Path(folder)


def _hash_files(folder: Path) -> str:
    names = sorted({path.name for pattern in FILES for path in folder.glob(pattern)})
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(f"{folder}: no *.safetensors here: expected a model in Hugging Face's format, without pickles")
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def _load(transformers: Any, folder: Path, dtype: Any) -> tuple[Any, Any, bool]:
    """The model, its tokeniser, and whether it is causal; from files alone, running no code that lies beside them."""
    import safetensors

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.is_encoder_decoder:
            raise ConfigError(f"{folder}: an encoder-decoder: expected a causal model or an encoder")
        is_causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())
        kind = transformers.AutoModelForCausalLM if is_causal else transformers.AutoModel
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
        tokeniser = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {error}") from None
    # Weights that the files lack would be random numbers.
    if missing := sorted(name for name in report["missing_keys"] if "pooler." not in name):
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing, {missing[0]!r} among them: expected all of them"
        )
    return model, tokeniser, is_causal
