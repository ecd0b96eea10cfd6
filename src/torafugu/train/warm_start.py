"""Supervised training on demonstrations: what a conductor reads, what it should write.

Before any reward; and, if a config says so, beside it, of everything but whom to call: where all attempts at a question
fail alike, reward says nothing, and what was known of the form gets lost (docs/log.md).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ..errors import ConfigError
from ..files import write_whole
from ..orchestrate.conductor import ConductorConfig
from .conductor_config import WarmStartConfig
from .conductor_model import ConductorModel, render_bare
from .conductor_rollout import Question
from .demonstrations import Demonstration, make_demonstration, show_plainly

if TYPE_CHECKING:
    import torch

__all__ = [
    "Pair",
    "draw_pairs",
    "find_workers",
    "form_loss",
    "make_form_mask",
    "read_pairs",
    "scale_lr",
    "to_pair",
    "warm_step",
    "write_pairs",
]

_WORKERS = re.compile(r'model_id"?:\s*\[([^\]]*)\]')
_WORKER = re.compile(r'"(?P<name>[^"]+)"|(?P<number>\d+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One example, as texts."""

    prompt: str
    reply: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    completion: str


def draw_pairs(
    questions: Sequence[Question],
    config: ConductorConfig,
    rng: np.random.Generator,
    *,
    effort: str,
    warm: WarmStartConfig,
) -> list[Pair]:
    """A demonstration for each question.

    Raises:
        ConfigError: nobody knows a workflow for a task.
    """
    made = [
        make_demonstration(
            show_plainly(question, rng),
            config,
            rng,
            effort=effort,
            gold_share=warm.gold_share,
            favourites=warm.favourites,
        )
        for question in questions
    ]
    return [to_pair(one) for one in made]


def to_pair(made: Demonstration) -> Pair:
    return Pair(prompt=render_bare(made.messages), reply=made.text)


def read_pairs(path: Path) -> list[Pair]:
    """One's own demonstrations: a line {"prompt": ..., "completion": ...} for each.

    Raises:
        ConfigError: the file is missing or empty, or a line is malformed.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            read = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{path}:{number}: {error}: expected {json.dumps({'prompt': '', 'completion': ''})}"
            ) from None
        pairs.append(Pair(prompt=read.prompt, reply=read.completion))
    if not pairs:
        raise ConfigError(f"{path}: no demonstrations in it")
    return pairs


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """As `read_pairs` reads them; the file is written whole or not at all."""
    lines = (json.dumps({"prompt": pair.prompt, "completion": pair.reply}) for pair in pairs)
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def scale_lr(step: int, steps: int, warmup: int, *, floor: float = 0.05) -> float:
    """Linear warm-up, then a cosine down to `floor`; `step` from 1."""
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def warm_step(
    model: ConductorModel, optimisers: Sequence[object], pairs: Sequence[Pair], step: int, config: WarmStartConfig
) -> float:
    """One step on one batch. -> its loss, in nats per token"""
    import torch

    scale = scale_lr(step, config.steps, config.warmup)
    for optimiser in optimisers:
        assert isinstance(optimiser, torch.optim.Optimizer)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * scale
        optimiser.zero_grad(set_to_none=True)
    loss = model.supervised_loss(_encode(model, pairs))
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for _, p in model.trainable], 1.0)
    for optimiser in optimisers:
        assert isinstance(optimiser, torch.optim.Optimizer)
        optimiser.step()
    return float(loss.detach())


def form_loss(model: ConductorModel, pairs: Sequence[Pair]) -> torch.Tensor:
    """Cross-entropy per token of the demonstrations, less the tokens that say who does a step. -> scalar"""
    return model.supervised_loss(_encode(model, pairs), [make_form_mask(model, pair.reply) for pair in pairs])


def _encode(model: ConductorModel, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    return [(model.encode_text(pair.prompt), model.encode_reply(pair.reply)) for pair in pairs]


def find_workers(reply: str) -> list[tuple[str, int, int]]:
    """Who does each step, as `write_workflow` writes that: (worker, where its name or number begins, where it ends)."""
    return [
        (worker[0].strip('"'), listed.start(1) + worker.start(group), listed.start(1) + worker.end(group))
        for listed in _WORKERS.finditer(reply)
        for worker in _WORKER.finditer(listed[1])
        if (group := worker.lastgroup)
    ]


def make_form_mask(model: ConductorModel, reply: str) -> list[bool]:
    """For each token of `encode_reply`: False where it says who does a step."""
    offsets = model.tokeniser.encode(reply, add_special_tokens=False).offsets
    spans = [(first, last) for _, first, last in find_workers(reply)]
    return [all(end <= first or last <= start for first, last in spans) for start, end in offsets] + [True]
