"""What a conductor's training is told: one TOML file, `configs/conductor-*.toml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from ..orchestrate.conductor import EFFORTS, ConductorConfig
from .conductor_metrics import AlarmConfig
from .conductor_model import LlamaSize, LoraConfig
from .conductor_rollout import CONDUCTOR
from .grpo import LossNorm, RewardConfig

__all__ = ["ConductorTraining", "GrpoConfig", "TrlConfig", "WarmStartConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartConfig:
    """Supervised training on valid workflows, before reward."""

    steps: int = 0
    """0: the model writes workflows as it is."""
    batch: int = 16
    lr: float = 3e-3
    muon_lr: float | None = None
    """Of the inner matrices by Muon, the rest by AdamW; None: all by AdamW."""
    warmup: int = 100
    save_every: int = 500
    gold_share: float = 0.0
    """Of the steps that are demonstrated with the worker who can do them. A model of 1 M parameters that was shown none
    did not learn by reward to look at the subtask (docs/log.md)."""
    favourites: Mapping[str, float] = field(default_factory=dict)
    """Share of steps by worker, whatever they ask for. All others are by lot."""
    rounds: float = 0.0
    """Share of the demonstrations that are second rounds: a first workflow is executed, and either its result stands or
    another workflow follows."""
    demonstrations: Path | None = None
    """One's own, instead of generated ones: a line {"prompt": ..., "completion": ...} for each."""

    def __post_init__(self) -> None:
        for name in ("batch", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected at least 1")
        shares = (self.gold_share, *self.favourites.values())
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"gold_share {self.gold_share}, favourites {dict(self.favourites)!r}: expected shares")
        if not 0 <= self.rounds <= 1:
            raise ConfigError(f"rounds {self.rounds}: expected a share in 0..1")
        if self.rounds and self.demonstrations is not None:
            raise ConfigError("rounds, demonstrations: expected one of them: those of a file are taken as they are")
        if self.steps < 0 or self.lr <= 0 or self.warmup < 0:
            raise ConfigError(f"steps {self.steps}, lr {self.lr}, warmup {self.warmup}: expected 0 or more, lr above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoConfig:
    """Training on reward. Defaults of the algorithm are the paper's (Conductor, appendix E); sizes are for one CPU."""

    steps: int = 200
    questions: int = 16
    attempts: int = 16
    """At each question: the group."""
    lr: float = 1e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 0.03
    """Share of the steps."""
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    norm: LossNorm = "tokens"
    by_std: bool = True
    """Advantages are divided by the group's standard deviation."""
    by_round: bool = True
    """With rounds of recursion each text is compared with those of its own round, by what it added to the result that
    it was shown, not with all texts by their rewards."""
    std_floor: float = 0.0
    """By this at least: with prices in the reward, groups that differ in nothing else would count as much as others."""
    filter: Literal["reward", "score"] = "reward"
    """What has to differ within a group that is learnt from: rewards; or validity and scores, without prices, by which
    nearly all groups differ. Where nobody was right, prices teach no more than to be cheap."""
    entropy: float = 0.0
    """Bonus for each token's entropy in nats, so that workers that were seldom right at first are still tried."""
    settle: int = 0
    """The first so many steps find out whom to call for what: the whole pool in its own order, one round, and from the
    advantage of a text a worker's mean over the batch is taken off where that worker is named. Reward moves a worker's
    share as such long before it makes a model look at the subtask; so nobody gains by being better on the whole, only
    by being better here than elsewhere (docs/log.md)."""
    rounds: float = 1.0
    """Share of a step's questions that have all the rounds which the effort allows; the others have one. Later rounds
    have a prompt for every text, so they take most of the time."""
    form_batch: int = 0
    """Demonstrations in each step, learnt from except for whom they call; their supervised loss is added with weight 1
    (as PPO-ptx does, arXiv 2203.02155). Reward keeps nothing of the form where all attempts fail alike."""
    focus: float = 0.0
    """Share of the questions that goes to families by what is still to be learnt there
    (`QuestionSource.focus_weights`). The rest is drawn from all."""
    max_grad_norm: float = 1.0
    updates: int = 1
    """Passes over what was sampled in one step."""
    questions_per_job: int = 8
    """What a member of the fleet is given at once. It decides which texts are sampled in one batch."""
    eval_every: int = 20
    save_every: int = 20

    def __post_init__(self) -> None:
        for name in ("questions", "updates", "questions_per_job", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.attempts < 2:
            raise ConfigError(f"attempts {self.attempts}: expected at least 2, to be compared with each other")
        if self.steps < 0 or self.lr <= 0 or self.temperature <= 0:
            raise ConfigError("grpo: expected steps of 0 or more, lr and temperature above 0")
        if self.std_floor < 0 or self.entropy < 0:
            raise ConfigError(f"std_floor {self.std_floor}, entropy {self.entropy}: expected 0 or more")
        if self.settle < 0 or not 0 <= self.rounds <= 1:
            raise ConfigError(f"settle {self.settle}, rounds {self.rounds}: expected 0 steps or more, a share in 0..1")
        if self.form_batch < 0 or not 0 <= self.focus <= 1:
            raise ConfigError(f"form_batch {self.form_batch}, focus {self.focus}: expected 0 or more, a share in 0..1")
        if not (0 < self.clip_low < 1 and self.clip_high > 0 and 0 <= self.warmup < 1):
            raise ConfigError("grpo: expected clip_low and warmup within 0..1, and clip_high above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlConfig:
    """How TRL runs on GPUs, with `trainer = "trl"`; `[grpo]` says what is learned."""

    processes: int = 1
    """One for each GPU. More than one are started by `accelerate launch --num_processes N`."""
    micro_batch: int = 8
    """Completions that one GPU learns from at a time."""
    max_prompt: int = 8192
    """Tokens. Tasks with longer prompts are left out, and counted."""
    prefill: str | None = None
    """What the reply of a model with a chat template begins with, as in the paper. It is not served so: the words are
    those of one who plans anyway."""
    vllm_memory: float | None = None
    """Share of each GPU's memory for vLLM beside the trainer; None: texts are sampled by transformers."""
    zero_stage: Literal[0, 2, 3] = 0
    """Of DeepSpeed; 0: without it."""
    offload: bool = False
    """DeepSpeed keeps the optimiser, and at stage 3 the weights, in the memory of the CPU."""
    bf16: bool = False
    gradient_checkpointing: bool = False
    cpu: bool = False
    """Do without GPUs, to try a config out."""
    report_to: tuple[str, ...] = ()
    """Beside metrics.jsonl: `wandb`, `tensorboard`."""

    def __post_init__(self) -> None:
        for name in ("processes", "micro_batch", "max_prompt"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.vllm_memory is not None and not 0 < self.vllm_memory < 1:
            raise ConfigError(f"vllm_memory {self.vllm_memory}: expected a share within 0..1")
        if self.offload and not self.zero_stage:
            raise ConfigError("offload: DeepSpeed does that: expected zero_stage 2 or 3")
        if self.cpu and (self.bf16 or self.zero_stage or self.vllm_memory is not None):
            raise ConfigError("cpu: expected neither bf16, zero_stage nor vllm_memory with it")
        if unknown := set(self.report_to) - {"wandb", "tensorboard"}:
            raise ConfigError(f"report_to {sorted(unknown)[0]!r}: expected wandb, tensorboard")


def _brief_conductor() -> ConductorConfig:
    return ConductorConfig(
        worker=CONDUCTOR,
        prompt="brief",
        names=True,
        attempts=1,
        on_error="fail",
        recursion=False,
        max_output_tokens=192,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductorTraining:
    """One run."""

    seed: int = 0
    trainer: Literal["own", "trl"] = "own"
    """`own`: the short loop of this package, for CPUs; `trl`: TRL's GRPOTrainer, for GPUs."""
    model: str | None = None
    """A llama to begin with: a folder, or a GGUF file; for `trl` any causal language model, or a name on the hub. None:
    from nothing."""
    revision: str | None = None
    """Commit of a model of the hub."""
    size: LlamaSize = field(default_factory=LlamaSize)
    """Of a model that is made from nothing."""
    lora: LoraConfig | None = None
    """None: all weights are trained."""
    adapter: str | None = None
    """Folder of a PEFT adapter to go on with; None: a new one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights below an adapter, while it is trained."""
    sampler_bits: Literal[4, 8, 32] = 8
    """Of the same weights, while texts are sampled on the CPU; GRPO corrects for the difference."""
    tasks: str = "home-multi"
    """As of `fugu profile --tasks`."""
    n: int = 6000
    """Generated tasks, or of a data set; their splits `train` and `validation` are used."""
    validate: int = 120
    """Tasks of the split `validation` that the held-out numbers are of."""
    families: tuple[str, ...] | None = None
    """Of the tasks that are used; None: all."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How often a family is drawn, for those that are not to be drawn as often as others: 1."""
    pool_sizes: tuple[int, ...] | None = None
    """Each question is offered so many of the workers, drawn anew, in random order. None: all, in the pool's order."""
    conductor: ConductorConfig = field(default_factory=_brief_conductor)
    """How it is asked, and how it will be served. `worker` is ours to set."""
    effort: str = "high"
    rounds_discount: float | None = None
    """Of the credit over rounds of recursion; None: the paper's 0.25."""
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    trl: TrlConfig = field(default_factory=TrlConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise ConfigError(f"effort {self.effort!r}: expected one of {', '.join(EFFORTS)}")
        if self.model is None and self.lora is not None:
            raise ConfigError("lora: an adapter on random weights learns nothing: name the `model` it belongs to")
        if self.adapter is not None and self.lora is None:
            raise ConfigError(f"adapter {self.adapter!r}: expected a table `lora` beside it")
        if self.model is None and self.warm_start.steps == 0:
            raise ConfigError("warm_start.steps 0: a model that is made from nothing has to be shown workflows first")
        if self.warm_start.rounds and not (self.conductor.again and EFFORTS[self.effort].rounds > 1):
            raise ConfigError(
                "warm_start.rounds: there are no second rounds: expected conductor.again of at least 1, and an effort "
                "with more than one round (xhigh, max)"
            )
        if self.pool_sizes is not None and (not self.pool_sizes or min(self.pool_sizes) < 1):
            raise ConfigError(f"pool_sizes {self.pool_sizes!r}: expected numbers of at least 1")
        if not all(0 < weight < math.inf for weight in self.weights.values()):
            raise ConfigError(f"weights {dict(self.weights)!r}: expected finite numbers above 0")
        own = {
            "grpo.form_batch": self.grpo.form_batch,
            "grpo.focus": self.grpo.focus,
            "grpo.settle": self.grpo.settle,
            "grpo.rounds": self.grpo.rounds != 1,
            "warm_start.rounds": self.warm_start.rounds,
        }
        if self.trainer == "trl" and (set_ := [name for name, value in own.items() if value]):
            raise ConfigError(f'{", ".join(set_)}: only the trainer "own" has that: leave it out')
        if self.validate < 1 or self.n < 1:
            raise ConfigError(f"validate {self.validate}, n {self.n}: expected at least 1")
