"""One step of GRPO: groups of attempts -> gradients -> the optimiser. What the groups are is not known here.

A text is learnt from with the tokens that were sampled, never with what its words would be tokenised to now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..types import Json
from .conductor_config import GrpoConfig
from .conductor_model import ConductorModel
from .conductor_rollout import Attempt, Written
from .grpo import filter_groups, group_advantages, policy_loss
from .warm_start import Pair, find_workers, form_loss

if TYPE_CHECKING:
    import torch

__all__ = ["learn"]


@dataclass(frozen=True, slots=True)
class _Text:
    written: Written
    advantage: float
    workers: tuple[str, ...]
    """Those that were offered."""
    named: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """The workers of its steps, and the places of the tokens that name them."""


def learn(
    model: ConductorModel,
    optimiser: torch.optim.Optimizer,
    groups: Sequence[Sequence[Attempt]],
    config: GrpoConfig,
    *,
    lr: float,
    demonstrations: Sequence[Pair] = (),
    settles: bool = False,
) -> dict[str, Json]:
    """One step, or `config.updates` of them. -> what is logged of it

    `demonstrations`: learnt from beside, except for whom they call; `settles`: the step is one of `config.settle`.
    """
    import torch

    rewards_PG = [[reward for attempt in group for reward in attempt.rewards or (None,)] for group in groups]
    kept = filter_groups(rewards_PG if config.filter == "reward" else [_to_scores(group) for group in groups])
    learned: dict[str, Json] = {
        "lr": lr,
        "groups/kept": len(kept.groups),
        "groups/flat": kept.flat / len(groups),
        "groups/dropped": kept.dropped,
    }
    batches = [batch for p in kept.groups if (batch := _to_batch(groups[p], config))]
    if not batches and not demonstrations:
        return learned
    baselines: dict[str, float] = {}
    if settles:
        batches = [[replace(text, named=_find_named(model, text)) for text in batch] for batch in batches]
        baselines = _to_baselines([text for batch in batches for text in batch])
    total = float(sum(len(t.written.tokens) if config.norm == "tokens" else 1 for batch in batches for t in batch))
    for group in optimiser.param_groups:
        group["lr"] = lr
    for update in range(config.updates):
        optimiser.zero_grad(set_to_none=True)
        losses, drifts = [], []
        for batch in batches:
            for texts in _by_prompt(batch):
                loss, drift = _backward(model, texts, config, total, baselines)
                losses.append(loss)
                drifts.append(drift)
        if demonstrations:
            form = form_loss(model, demonstrations)
            form.backward()
        norm = float(torch.nn.utils.clip_grad_norm_([p for _, p in model.trainable], config.max_grad_norm))
        optimiser.step()
        if update == 0:
            learned["grad_norm"] = norm
            if batches:
                learned |= {"loss": sum(losses), "sampler/drift": float(np.mean(drifts))}
            if demonstrations:
                learned["loss/form"] = float(form.detach())
    return learned


def _to_scores(group: Sequence[Attempt]) -> list[float | None]:
    """The same number for attempts that came to the same in every round, prices apart. What was no workflow differs
    from one that was wrong, too: else nothing would speak against losing the form."""
    outcomes = [
        None if None in attempt.rewards or attempt.episode.score is None else attempt.values for attempt in group
    ]
    kinds = list(dict.fromkeys(outcomes))
    return [None if outcome is None else float(kinds.index(outcome)) for outcome in outcomes]


def _to_batch(group: Sequence[Attempt], config: GrpoConfig) -> list[_Text]:
    """A text is compared with those of its own round, by what it added to the result that it was shown: what the rounds
    before had left to it is none of its merit. Where prices are not to decide, rounds that differ in nothing else are
    left out."""
    rounds: dict[int, list[tuple[Written, float, float]]] = {}
    offered = group[0].question.workers
    for attempt in group:
        texts = zip(attempt.texts, attempt.rewards, attempt.values, attempt.before, strict=True)
        for number, (text, reward, value, shown) in enumerate(texts):
            assert reward is not None, "such groups are dropped"
            assert value is not None, "it is known where the reward is"
            before = (shown or 0.0) if config.by_round else 0.0
            rounds.setdefault(number if config.by_round else 0, []).append((text, reward - before, value - before))
    batch = []
    for found in rounds.values():
        if config.filter == "score" and not group_advantages([value for _, _, value in found]).any():
            continue
        rewards = [reward for _, reward, _ in found]
        advantages = group_advantages(rewards, by_std=config.by_std, std_floor=config.std_floor)
        batch += [
            _Text(text, float(advantage), offered) for (text, _, _), advantage in zip(found, advantages, strict=True)
        ]
    return batch


def _by_prompt(batch: Sequence[_Text]) -> list[list[_Text]]:
    """Texts of one prompt are computed together: those of a first round all have the same."""
    found: dict[bytes, list[_Text]] = {}
    for text in batch:
        found.setdefault(text.written.prompt.tobytes(), []).append(text)
    return list(found.values())


def _find_named(model: ConductorModel, text: _Text) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """By the tokens that were sampled. Nothing where somebody is named who was not offered: that would be no fault."""
    tokens, found = text.written.tokens, find_workers(text.written.text)
    numbers = {str(number): worker for number, worker in enumerate(text.workers)}
    if any(name not in text.workers and name not in numbers for name, _, _ in found):
        return ()
    ends = [len(model.tokeniser.decode(tokens[: n + 1].tolist())) for n in range(len(tokens))]
    spans = list(zip([0, *ends], ends, strict=False))
    return tuple(
        (
            numbers.get(name, name),
            tuple(at for at, (start, end) in enumerate(spans) if start < last and first < end),
        )
        for name, first, last in found
    )


def _to_baselines(texts: Sequence[_Text]) -> dict[str, float]:
    """By worker: the mean advantage of the texts over its steps."""
    found: dict[str, list[float]] = {}
    for text in texts:
        for worker, _ in text.named:
            found.setdefault(worker, []).append(text.advantage)
    return {worker: float(np.mean(advantages)) for worker, advantages in found.items()}


def _backward(
    model: ConductorModel,
    texts: Sequence[_Text],
    config: GrpoConfig,
    total: float,
    baselines: Mapping[str, float],
) -> tuple[float, float]:
    """Adds the gradients. -> loss, and how far the sampler's log-probabilities are from the trainer's, in the mean"""
    import torch

    new, entropies, mask = model.logprobs_and_entropies(
        texts[0].written.prompt.tolist(),
        [text.written.tokens.tolist() for text in texts],
        temperature=config.temperature,
    )
    old = torch.zeros_like(new)
    for row, text in enumerate(texts):
        old[row, : len(text.written.logprobs)] = torch.from_numpy(text.written.logprobs)
    advantages = torch.tensor([text.advantage for text in texts])[:, None].repeat(1, new.shape[1])
    for row, text in enumerate(texts):
        for worker, places in text.named:
            advantages[row, list(places)] -= baselines[worker]
    loss = policy_loss(
        new,
        old,
        advantages,
        mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        norm=config.norm,
        total=total,
    )
    bonus = config.entropy * (entropies * mask).sum() / total
    (loss - bonus).backward()
    return float(loss.detach()), float(((new.detach() - old).abs() * mask).sum() / mask.sum())
