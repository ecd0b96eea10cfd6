"""The language model that is trained to conduct: a llama in torch, all of it or a LoRA adapter on it. Extra `[train]`.

    prompt, completions -> log-probabilities of the completions' tokens, one forward for the whole group
    weights -> what the graph in onnxruntime takes as inputs, which writes the next step's texts

Completions of one group share their prompt: it is computed once, and a mask keeps each completion from seeing the
others. Texts are tokenised as the served model does (`bare` format: the message, a line break, the reply).
Axes: S tokens of the prompt, G completions, T tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ModelError
from ..types import Message

if TYPE_CHECKING:
    import tokenizers
    import torch

__all__ = [
    "ConductorModel",
    "LlamaSize",
    "LoraConfig",
    "check_installed",
    "load_model",
    "make_model",
    "read_tokeniser",
    "render_bare",
    "train_tokeniser",
    "use_threads",
]

END = "<end>"
PAD = "<pad>"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSize:
    """Of a model that is made from nothing."""

    vocabulary: int = 1536
    hidden: int = 128
    intermediate: int = 336
    layers: int = 4
    heads: int = 4
    context: int = 512
    init: float = 0.08
    """Standard deviation of the first weights: about 1 / sqrt(hidden). With the usual 0.02 a model this small had not
    learned to copy a word from the question after 500 steps (docs/log.md)."""

    def __post_init__(self) -> None:
        if self.hidden % (16 * self.heads):  # onnxruntime's attention asks for it
            raise ConfigError(f"hidden {self.hidden}, heads {self.heads}: expected a multiple of 16 for each head")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """A low-rank adapter on all linear layers (arXiv 2106.09685): W x + alpha / rank * B (A x)."""

    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"{self!r}: expected a rank of at least 1 and alpha above 0")


def render_bare(messages: Sequence[Message]) -> str:
    """A conversation as a served model of the `bare` format reads it."""
    from ..local.onnx_generator import render_barely

    return render_barely([{"role": message.role, "content": message.text} for message in messages])


class ConductorModel:
    """A llama with its tokeniser, and how it is trained."""

    def __init__(self, model: Any, tokeniser: tokenizers.Tokenizer, *, end: int) -> None:
        """`model`: of transformers, or of peft around one; `end`: the token that ends a reply."""
        self.model = model
        self.tokeniser = tokeniser
        self.tokeniser.encode_special_tokens = True  # spelled out in a question they are plain text, as when served
        self.end = end

    @property
    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @property
    def is_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")

    def encode_text(self, text: str) -> list[int]:
        return list(self.tokeniser.encode(text, add_special_tokens=False).ids)

    def encode_reply(self, text: str) -> list[int]:
        return [*self.encode_text(text), self.end]

    def logprobs(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (G, T) log-probabilities and mask: 1 where there is a token."""
        logprobs, _, mask = self.logprobs_and_entropies(prompt, completions, temperature=temperature)
        return logprobs, mask

    def logprobs_and_entropies(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> (G, T) log-probabilities of the tokens, entropies (nats) of what they were drawn from, and mask."""
        import torch

        lengths = [len(completion) for completion in completions]
        flat = torch.tensor([*prompt, *(token for completion in completions for token in completion)])
        mask, positions, before = _share_prompt(len(prompt), lengths)
        hidden = self._body()(
            input_ids=flat[None], attention_mask=mask.to(self._body().dtype)[None, None], position_ids=positions[None]
        ).last_hidden_state[0]
        logits = self._head()(hidden[before]).float() / temperature  # (tokens of all completions, vocabulary)
        every = logits.log_softmax(1)
        chosen = every.gather(1, flat[len(prompt) :, None])[:, 0]
        entropies = -(every.exp() * every).sum(1)
        pad = torch.nn.utils.rnn.pad_sequence
        return (
            pad(chosen.split(lengths), batch_first=True),
            pad(entropies.split(lengths), batch_first=True),
            pad([torch.ones(n) for n in lengths], batch_first=True),
        )

    def supervised_loss(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], loss_mask: Sequence[Sequence[bool]] | None = None
    ) -> torch.Tensor:
        """Cross-entropy per token of the replies, of (prompt, reply) pairs. -> scalar

        `loss_mask`: for each reply, which of its tokens are learnt; None: all.
        """
        import torch

        longest = max(len(prompt) + len(reply) for prompt, reply in pairs)
        ids = torch.full((len(pairs), longest), self.end)
        wanted = torch.full((len(pairs), longest), -100)
        for row, (prompt, reply) in enumerate(pairs):
            both = torch.tensor([*prompt, *reply])
            ids[row, : len(both)] = both
            wanted[row, len(prompt) : len(both)] = both[len(prompt) :]
            if loss_mask is not None:
                wanted[row, len(prompt) : len(both)][~torch.tensor(loss_mask[row])] = -100
        hidden = self._body()(input_ids=ids).last_hidden_state[:, :-1]  # padding stands behind: causal masks hide it
        wanted = wanted[:, 1:]
        is_reply = wanted >= 0
        return torch.nn.functional.cross_entropy(self._head()(hidden[is_reply]).float(), wanted[is_reply])

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """What is trained, by Hugging Face's names, or PEFT's; arrays of its own, in float32."""
        if self.is_adapter:
            from peft import get_peft_model_state_dict

            state = get_peft_model_state_dict(self.model)
        else:
            state = self._without_tied(self.model.state_dict())
        return {name: value.detach().float().numpy().copy() for name, value in state.items()}

    @property
    def lora_scale(self) -> float:
        """What an adapter's product is multiplied with; 1 without one."""
        if not self.is_adapter:
            return 1.0
        config = self.model.peft_config["default"]
        return float(config.lora_alpha / config.r)

    def base_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Of the model below an adapter, by Hugging Face's names."""
        state = self._causal().state_dict()
        named = {name.replace(".base_layer", ""): value for name, value in state.items() if ".lora_" not in name}
        return {name: value.float().numpy() for name, value in self._without_tied(named).items()}

    def config_json(self) -> str:
        """Its `config.json`, less where it was loaded from."""
        table = json.loads(self._causal().config.to_json_string(use_diff=False))
        return json.dumps({key: value for key, value in table.items() if key != "_name_or_path"}, indent=1)

    # --- optimisers and checkpoints ---

    def make_adamw(self, lr: float, *, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
        import torch

        groups = [
            {"params": [p for _, p in self.trainable if (p.ndim > 1) == is_matrix], "weight_decay": decay}
            for is_matrix, decay in ((True, weight_decay), (False, 0.0))
        ]
        return _with_base_lr(torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas))

    def make_muon(self, muon_lr: float, lr: float) -> list[torch.optim.Optimizer]:
        """Muon (Jordan et al., 2024) for the inner matrices, AdamW for the rest."""
        import torch

        inner = [p for name, p in self.trainable if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        ids = {id(p) for p in inner}
        rest = [p for _, p in self.trainable if id(p) not in ids]
        muon = torch.optim.Muon(inner, lr=muon_lr, weight_decay=0.01)
        adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
        return [_with_base_lr(muon), _with_base_lr(adamw)]

    def state(self, optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, npt.NDArray[Any] | float]:
        """All that training changes, flat, for a checkpoint."""
        import torch

        flat: dict[str, npt.NDArray[Any] | float] = {
            f"weight/{name}": p.detach().float().numpy().copy() for name, p in self.trainable
        }
        for number, optimiser in enumerate(optimisers):
            for at, entries in optimiser.state_dict()["state"].items():
                for key, value in entries.items():
                    kept = value.float().numpy().copy() if isinstance(value, torch.Tensor) else float(value)
                    flat[f"optimiser/{number}/{at}/{key}"] = kept
        return flat

    def restore(self, state: Mapping[str, Any], optimisers: Sequence[torch.optim.Optimizer]) -> None:
        import torch

        with torch.no_grad():
            for name, p in self.trainable:
                p.copy_(torch.from_numpy(state[f"weight/{name}"]))
        for number, optimiser in enumerate(optimisers):
            entries: dict[int, dict[str, Any]] = {}
            for path, value in state.items():
                kind, _, rest = path.partition("/")
                if kind == "optimiser" and rest.startswith(f"{number}/"):
                    _, at, key = rest.split("/")
                    kept = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                    entries.setdefault(int(at), {})[key] = kept
            whole = optimiser.state_dict()
            optimiser.load_state_dict({"state": entries, "param_groups": whole["param_groups"]})

    def _without_tied(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A head that is the embedding is written once."""
        is_tied = self._causal().config.tie_word_embeddings
        return {name: value for name, value in state.items() if not (is_tied and name == "lm_head.weight")}

    def _causal(self) -> Any:
        return self.model.get_base_model() if self.is_adapter else self.model

    def _body(self) -> Any:
        return self._causal().model

    def _head(self) -> Any:
        return self._causal().lm_head


def _with_base_lr(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The schedule multiplies what stands here."""
    for group in optimiser.param_groups:
        group["base_lr"] = group["lr"]
    return optimiser


def _share_prompt(prompt: int, lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For a prompt and the completions behind it, in one row: who sees whom (L, L) as what is added to the scores, the
    positions (L,), and for each token of a completion the place that predicts it."""
    import torch

    owner = torch.cat(
        [torch.zeros(prompt, dtype=torch.long), *(torch.full((n,), g + 1) for g, n in enumerate(lengths))]
    )
    positions = torch.cat([torch.arange(prompt), *(torch.arange(prompt, prompt + n) for n in lengths)])
    places = torch.arange(len(owner))
    sees = (places[:, None] >= places[None]) & ((owner[None] == 0) | (owner[:, None] == owner[None]))  # (L, L)
    mask = torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))
    before = places[prompt:] - 1
    starts = np.cumsum([0, *lengths[:-1]])
    before[torch.as_tensor(starts)] = prompt - 1
    return mask, positions, before


# --- made, loaded --------------------------------------------------------------------------------------------------


def check_installed(*, lora: bool) -> None:
    """Raises ConfigError: training lacks a package."""
    import importlib.util

    needed = ["torch", "transformers", "onnx", *(["peft"] if lora else [])]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"training a conductor needs {', '.join(missing)}: pip install 'torafugu[train]' "
            "(without a GPU, add --extra-index-url https://download.pytorch.org/whl/cpu)"
        )


def use_threads(threads: int) -> None:
    """Of torch, in this process."""
    import torch

    torch.set_num_threads(threads)


def train_tokeniser(texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
    """Byte-level BPE on the texts: whatever is written can be read. Digits, and capitals beside each other, are tokens
    of their own: a number or a Roman numeral is copied sign by sign, not guessed."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokeniser = Tokenizer(models.BPE())
    tokeniser.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokeniser.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokeniser.train_from_iterator(texts, trainer)
    if tokeniser.get_vocab_size() > vocabulary:
        raise ConfigError(f"vocabulary {vocabulary}: expected at least {tokeniser.get_vocab_size()}")
    return tokeniser


def read_tokeniser(folder: Path) -> tuple[tokenizers.Tokenizer, int]:
    """A folder's tokeniser, and the token that ends a reply.

    Raises:
        ModelError: there is none, or nothing ends a reply.
    """
    from tokenizers import Tokenizer

    try:
        written = (folder / "tokenizer.json").read_text()
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: expected tokenizer.json and config.json in it: {error}") from None
    try:
        tokeniser = Tokenizer.from_str(written)
    except Exception as error:  # noqa: BLE001  # tokenizers raises nothing more exact
        raise ModelError(f"{folder}: tokenizer.json cannot be read: {error}") from None
    end = tokeniser.token_to_id(END)
    if end is None:
        ends = config.get("eos_token_id")
        end = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(end, int):
        raise ModelError(f"{folder}: no token ends a reply: expected eos_token_id in config.json")
    return tokeniser, end


def make_model(size: LlamaSize, tokeniser: tokenizers.Tokenizer, *, seed: int) -> ConductorModel:
    """A llama with random weights."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.context,
        initializer_range=size.init,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokeniser.token_to_id(END),
        pad_token_id=tokeniser.token_to_id(PAD),
        attn_implementation="sdpa",
    )
    end = tokeniser.token_to_id(END)
    assert end is not None, "its trainer has added it"
    return ConductorModel(transformers.LlamaForCausalLM(config), tokeniser, end=end)


def load_model(
    path: Path,
    *,
    lora: LoraConfig | None,
    seed: int,
    adapter: Path | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> ConductorModel:
    """A llama from a folder, or from a GGUF file; with `lora` its weights stay as they are, and an adapter is trained:
    a new one, or `adapter`.

    Raises:
        ModelError: it cannot be loaded.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    if path.suffix == ".gguf":
        model, tokeniser, end = _load_gguf(path)
    else:
        tokeniser, end = read_tokeniser(path)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32, attn_implementation="sdpa"
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{path}: cannot be loaded: {error}") from None
    model = model.to(getattr(torch, dtype))
    if lora is not None:
        import peft

        config = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none", target_modules="all-linear"
        )
        if adapter is None:
            model = peft.get_peft_model(model, config)
        else:
            try:
                model = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(f"{adapter}: no adapter of this model: {error}") from None
        for p in model.parameters():  # small steps vanish in bfloat16
            if p.requires_grad:
                p.data = p.data.float()
    return ConductorModel(model, tokeniser, end=end)


def _load_gguf(path: Path) -> tuple[Any, tokenizers.Tokenizer, int]:
    """Unpacked to full precision."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    from ..local.gguf import open_gguf

    file = open_gguf(path)
    if not file.config.ends:
        raise ModelError(f"{path}: no token ends a reply")
    config = transformers.LlamaConfig(**file.config.table(), attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({name: torch.tensor(value) for name, value in file.weights().items()}, strict=False)
    model.tie_weights()
    return model, Tokenizer.from_str(file.tokeniser().decode()), file.config.ends[0]
