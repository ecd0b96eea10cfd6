"""What TRL is given to sample from: prompts, in the order of the steps, and which question each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, ModelError
from ..grade.task import Task
from ..pool.spec import PoolSpec
from .conductor_config import ConductorTraining
from .conductor_model import read_tokeniser, render_bare
from .conductor_rollout import Question
from .demonstrations import render_question
from .questions import QuestionSource

__all__ = ["Form", "Questions", "load_tokeniser"]

_DRAW = 2
"""Stage, in seeds; as in `conductor`."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a conversation becomes a prompt."""

    has_template: bool
    begin: str
    """What the tokeniser puts before every text by itself, and the template too: it must not stand there twice."""
    prefill: str


def load_tokeniser(config: ConductorTraining) -> tuple[Any, Form]:
    import transformers

    assert config.model is not None, "_check"
    folder = Path(config.model)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        bare, end = read_tokeniser(folder)  # ours; transformers would guess another splitting from the model's kind
        ended = bare.id_to_token(end)
        tokeniser = transformers.PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=ended, pad_token=ended)
    else:
        try:
            tokeniser = transformers.AutoTokenizer.from_pretrained(config.model, revision=config.revision)
        except (OSError, ValueError) as error:
            raise ModelError(f"{config.model}: its tokeniser cannot be loaded: {error}") from None
    has_template = bool(tokeniser.chat_template)
    if config.trl.prefill is not None and not has_template:
        raise ConfigError(f"trl.prefill: {config.model} has no chat template: expected none")
    begins = tokeniser("")["input_ids"][:1] == [tokeniser.bos_token_id]
    return tokeniser, Form(has_template, tokeniser.bos_token if begins else "", config.trl.prefill or "")


class Questions:
    """Rows for TRL: all steps' questions in order, and those that are held out."""

    def __init__(
        self,
        tasks: Sequence[Task],
        pool: PoolSpec,
        config: ConductorTraining,
        tokeniser: Any,
        form: Form,
    ) -> None:
        self._config, self._tokeniser, self._form = config, tokeniser, form
        self._workers = tuple(worker.id for worker in pool.worker)
        self.too_long = 0
        fitting = []
        for task in tasks:
            if task.split not in ("train", "validation"):
                continue
            prompt = self._render(Question(task=task, workers=self._workers))
            if len(tokeniser(prompt)["input_ids"]) > config.trl.max_prompt:
                self.too_long += 1
            else:
                fitting.append(task)
        source = QuestionSource(
            fitting, self._workers, sizes=config.pool_sizes, held_out=config.validate, weights=config.weights
        )
        self.held_out = source.held_out
        self.steps = [
            question
            for step in range(1, config.grpo.steps + 1)
            for question in source.draw(config.grpo.questions, np.random.default_rng([config.seed, _DRAW, step]))
        ]

    def _render(self, question: Question) -> str:
        messages = render_question(question, self._config.conductor, effort=self._config.effort)
        if not self._form.has_template:
            return render_bare(messages)
        turns = [{"role": message.role, "content": message.text} for message in messages]
        text: str = self._tokeniser.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text.removeprefix(self._form.begin) + self._form.prefill

    def rows(self, questions: Sequence[Question], *, are_held_out: bool) -> list[dict[str, Any]]:
        return [
            {"prompt": self._render(question), "row": row, "is_held_out": are_held_out}
            for row, question in enumerate(questions)
        ]
