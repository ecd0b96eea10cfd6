"""The model that is trained to conduct, against plain forwards, the sampler in onnxruntime and PEFT."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.episode import Episode
from torafugu.errors import ConfigError, ModelError
from torafugu.grade.task import Task
from torafugu.local.llama import parse_llama_config
from torafugu.local.llama_graph import build_open_graph, build_packed_graph
from torafugu.local.llama_onnx import LlamaOnnx
from torafugu.train.conductor_config import GrpoConfig
from torafugu.train.conductor_learn import learn
from torafugu.train.conductor_model import (
    ConductorModel,
    LlamaSize,
    LoraConfig,
    load_model,
    make_model,
    read_tokeniser,
    train_tokeniser,
)
from torafugu.train.conductor_player import OnnxWriter
from torafugu.train.conductor_rollout import Asked, Attempt, Question, Written
from torafugu.train.warm_start import Pair, form_loss, make_form_mask
from torafugu.types import Message, Plan, Step

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's

SIZE = LlamaSize(vocabulary=290, hidden=32, intermediate=48, layers=2, heads=2, context=128, init=0.3)
PROMPT = [5, 80, 17, 200, 33]
COMPLETIONS = [[70, 71, 72, 1], [90, 1], [70, 71, 9, 9, 9, 1]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the `fugu` command does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_small(seed: int = 0) -> ConductorModel:
    return make_model(SIZE, train_tokeniser(["models: a, b\nsteps: 5\nsubtasks: []"] * 2, 290), seed=seed)


def write_model(folder: Path, model: ConductorModel) -> Path:
    model.model.save_pretrained(folder)
    model.tokeniser.save(str(folder / "tokenizer.json"))
    return folder


def make_adapted(folder: Path, **options: Any) -> ConductorModel:
    """A LoRA adapter with other matrices than zeros."""
    lora = LoraConfig(rank=4, alpha=16.0)
    model = load_model(write_model(folder, make_small()), lora=lora, seed=1, **options)
    torch.manual_seed(2)
    with torch.no_grad():
        for _, p in model.trainable:
            p.copy_(torch.randn_like(p) * 0.3)
    return model


def open_sampler(model: ConductorModel) -> LlamaOnnx:
    llama = parse_llama_config(model.config_json().encode(), where="config")
    graph = build_packed_graph(llama, model.base_weights(), bits=32) if model.is_adapter else build_open_graph(llama)
    sampler = LlamaOnnx(graph, llama)
    sampler.set_inputs(model.weights(), lora_scale=model.lora_scale)
    return sampler


def logprobs_of_each(model: ConductorModel, temperature: float) -> list[Any]:
    """By one forward for each completion, through the whole model."""
    found = []
    for completion in COMPLETIONS:
        logits = model.model(input_ids=torch.tensor([[*PROMPT, *completion]])).logits[0, len(PROMPT) - 1 : -1]
        rows = (logits / temperature).log_softmax(-1)
        found.append(rows[torch.arange(len(completion)), torch.tensor(completion)])
    return found


# --- log-probabilities ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_prompt_is_shared(temperature: float) -> None:
    """One forward for a group gives each completion's log-probabilities, and the same gradients as one for each."""
    model = make_small()
    shared, mask = model.logprobs(PROMPT, COMPLETIONS, temperature=temperature)
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6]
    each = logprobs_of_each(model, temperature)
    for row, wanted in zip(shared, each, strict=True):
        assert row[: len(wanted)].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
        assert row[len(wanted) :].tolist() == [0] * (6 - len(wanted))
    weights = (1.0, -2.0, 0.5)
    gradients = []
    for rows in (shared * mask, each):
        model.model.zero_grad()
        sum(weight * row.sum() for weight, row in zip(weights, rows, strict=True)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.trainable})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("is_adapter", [False, True])
def test_sampler_agrees(is_adapter: bool, temperature: float, tmp_path: Path) -> None:
    """The network in onnxruntime, given the trained weights or the adapter's, has the same log-probabilities."""
    model = make_adapted(tmp_path) if is_adapter else make_small()
    sampler = open_sampler(model)
    with torch.no_grad():
        shared, _ = model.logprobs(PROMPT, COMPLETIONS, temperature=temperature)
    for row, completion in zip(shared, COMPLETIONS, strict=True):
        told = sampler.logprobs(PROMPT, completion, temperature=temperature)
        assert row[: len(completion)].tolist() == pytest.approx(told.tolist(), abs=1e-3)


def test_sampled_logprobs_are_those_of_training() -> None:
    """What the sampler notes beside each token is what the trainer computes for it: the first ratio is 1."""
    model = make_small()
    writer = OnnxWriter(open_sampler(model), model.tokeniser.to_str(), end=model.end, max_tokens=20)
    messages = (Message(role="user", content="models: a, b"),)
    written = writer.write([Asked(messages=messages, seed=seed) for seed in range(4)], temperature=0.8)
    assert len({text.tokens.tobytes() for text in written}) > 1
    with torch.no_grad():
        new, _ = model.logprobs(written[0].prompt.tolist(), [w.tokens.tolist() for w in written], temperature=0.8)
    for row, text in zip(new, written, strict=True):
        assert row[: len(text.tokens)].tolist() == pytest.approx(text.logprobs.tolist(), abs=1e-3)


@pytest.mark.parametrize("is_adapter", [False, True])
def test_greedy_texts_are_the_same(is_adapter: bool, tmp_path: Path) -> None:
    """The likeliest tokens by the trained model are those that the sampler takes."""
    model = make_adapted(tmp_path) if is_adapter else make_small()
    tokens = list(PROMPT)
    with torch.no_grad():
        for _ in range(16):
            tokens.append(int(model.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    ((sample,),) = open_sampler(model).sample(
        [PROMPT], per_prompt=1, temperature=0.0, max_new_tokens=16, ends=frozenset(), seeds=[[0]]
    )
    assert sample.tokens.tolist() == tokens[len(PROMPT) :]


def test_supervised_loss_by_hand() -> None:
    """It is the mean over the tokens of all replies, prompts and padding left out."""
    model = make_small()
    pairs = [(PROMPT, COMPLETIONS[0]), (PROMPT[:2], COMPLETIONS[2])]
    with torch.no_grad():
        each = [model.logprobs(prompt, [reply])[0] for prompt, reply in pairs]
        assert float(model.supervised_loss(pairs)) == pytest.approx(-float(torch.cat(each, 1).mean()), abs=1e-5)


def test_loss_mask() -> None:
    """With a mask the loss is the mean over the tokens that it has, prompts and padding left out as before."""
    model = make_small()
    pairs = [(PROMPT, COMPLETIONS[0]), (PROMPT[:2], COMPLETIONS[2])]
    masks = [[True, False, True, True], [False, True, True, False, True, False]]
    with torch.no_grad():
        each = [model.logprobs(prompt, [reply])[0][0] for prompt, reply in pairs]
        kept = torch.cat([logprobs[torch.tensor(mask)] for logprobs, mask in zip(each, masks, strict=True)])
        assert float(model.supervised_loss(pairs, masks)) == pytest.approx(-float(kept.mean()), abs=1e-5)


WHO = {
    'subtasks: ["Ask 7 of model_id."]\nmodel_id: ["text-ops", "ab"]\naccess_list: [[], [0]]': ["text-ops", "ab"],
    "subtasks: []\nmodel_id: [12, 0]\naccess_list: [[]]": ["12", "0"],
    '{"subtasks": ["a"], "model_id": [3], "access_list": [[]]}': ["3"],
    '{"subtasks": ["a"], "model_id": [], "access_list": []}': [],
    "I cannot.": [],
}


@pytest.mark.parametrize("reply", WHO)
def test_who_is_not_form(reply: str) -> None:
    """All of a workflow is form but the workers' names or numbers: brackets, commas and the end are."""
    model = make_small()
    form = make_form_mask(model, reply)
    tokens = model.encode_reply(reply)
    assert len(form) == len(tokens)
    who = [token for token, is_part in zip(tokens, form, strict=True) if not is_part]
    assert model.tokeniser.decode(who) == "".join(WHO[reply])
    assert form[-1]


# --- adapters ---


def test_only_the_adapter_is_trained(tmp_path: Path) -> None:
    """With LoRA a step changes the adapter's matrices and nothing else; `weights` are the adapter's alone."""
    model = make_adapted(tmp_path)
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    base = model.base_weights()
    optimiser = model.make_adamw(0.01, betas=(0.9, 0.99), weight_decay=0.1)
    model.supervised_loss([(PROMPT, COMPLETIONS[0])]).backward()
    optimiser.step()
    changed = {name for name, p in model.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    assert changed == {name for name, _ in model.trainable}
    assert len(model.weights()) == len(changed)
    assert all(".lora_" in name for name in model.weights())
    assert base.keys() == model.base_weights().keys()
    assert all(np.array_equal(base[name], value) for name, value in model.base_weights().items())
    assert model.lora_scale == 4.0


def test_adapter_begins_with_nothing(tmp_path: Path) -> None:
    """A fresh adapter changes no log-probability."""
    plain = make_small()
    adapted = load_model(write_model(tmp_path, plain), lora=LoraConfig(rank=4, alpha=8.0), seed=0)
    with torch.no_grad():
        torch.testing.assert_close(adapted.logprobs(PROMPT, COMPLETIONS)[0], plain.logprobs(PROMPT, COMPLETIONS)[0])


def test_adapter_on_bfloat16(tmp_path: Path) -> None:
    """With the weights below it in bfloat16 an adapter is trained in float32, with gradients near those of float32."""
    gradients = []
    for dtype in ("float32", "bfloat16"):
        model = make_adapted(tmp_path, dtype=dtype)
        new, mask = model.logprobs(PROMPT, COMPLETIONS)
        assert new.dtype == torch.float32
        (new * mask).sum().backward()
        assert {p.grad.dtype for _, p in model.trainable} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for _, p in model.trainable]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_head_of_its_own(lora: LoraConfig | None, tmp_path: Path) -> None:
    """A model whose last matrix is not its embedding keeps it on the way to the sampler."""
    tied = make_small()
    config = tied.model.config
    config.tie_word_embeddings = False
    torch.manual_seed(5)
    untied = type(tied.model)(config)
    folder = write_model(tmp_path, ConductorModel(untied, tied.tokeniser, end=tied.end))
    model = load_model(folder, lora=lora, seed=0)
    with torch.no_grad():
        new, _ = model.logprobs(PROMPT, COMPLETIONS[:1])
    told = open_sampler(model).logprobs(PROMPT, COMPLETIONS[0])
    assert new[0].tolist() == pytest.approx(told.tolist(), abs=1e-3)


# --- state ---


def take_steps(model: ConductorModel, optimisers: Sequence[Any], steps: int) -> None:
    for _ in range(steps):
        for optimiser in optimisers:
            optimiser.zero_grad()
        model.supervised_loss([(PROMPT, COMPLETIONS[2]), (PROMPT, COMPLETIONS[1])]).backward()
        for optimiser in optimisers:
            optimiser.step()


@pytest.mark.parametrize("kind", ["adamw", "muon", "lora"])
def test_state_comes_back(kind: str, tmp_path: Path) -> None:
    """Weights and optimisers from a checkpoint go on exactly as those that were saved; saving changes nothing."""

    def make(seed: int) -> ConductorModel:
        if kind != "lora":
            return make_small(seed)
        return load_model(write_model(tmp_path, make_small()), lora=LoraConfig(rank=2), seed=seed)

    def optimise(model: ConductorModel) -> list[Any]:
        if kind == "muon":
            return model.make_muon(0.02, 0.01)
        return [model.make_adamw(0.01, betas=(0.9, 0.95), weight_decay=0.1)]

    model, other = make(0), make(3)
    ours, theirs = optimise(model), optimise(other)
    take_steps(model, ours, 3)
    state = model.state(ours)
    take_steps(model, ours, 3)
    other.restore(state, theirs)
    take_steps(other, theirs, 3)
    for name, value in model.weights().items():
        assert np.array_equal(value, other.weights()[name]), name
    again = other.state(theirs)
    assert again.keys() == state.keys()


def test_one_seed_one_model() -> None:
    """The first weights come from the seed."""
    one, same, other = (make_small(seed).weights() for seed in (0, 0, 1))
    name = "model.embed_tokens.weight"
    assert np.array_equal(one[name], same[name])
    assert not np.array_equal(one[name], other[name])


# --- one step on reward ---


def write_text(model: ConductorModel, prompt: list[int], tokens: list[int]) -> Written:
    """As the model as it is would have written it."""
    with torch.no_grad():
        logprobs = model.logprobs(prompt, [tokens])[0][0].numpy()
    return Written(
        text="",
        prompt=np.array(prompt, np.int32),
        tokens=np.array(tokens, np.int32),
        logprobs=logprobs,
        has_ended=True,
    )


def make_attempt(
    rewards: Sequence[float | None],
    *texts: Written,
    is_valid: bool = False,
    before: Sequence[float | None] | None = None,
    values: Sequence[float] | None = None,
) -> Attempt:
    """`values`: as the rewards, where there are no prices."""
    task = Task(id="t", family="f", category="", dataset="", prompt="?", gold="", split="train")
    return Attempt(
        question=Question(task=task, workers=("a", "b")),
        episode=Episode(task="t", score=0.0),
        texts=texts,
        rewards=tuple(rewards),
        before=(None,) * len(texts) if before is None else tuple(before),
        values=tuple(reward or 0.0 for reward in rewards) if values is None else tuple(values),
        scores=(0.0,) * is_valid,
        plans=(Plan(steps=(Step(id=0, worker="a"),)),) * is_valid,
        cost_usd=None,
    )


@pytest.mark.parametrize("norm", ["tokens", "sequences"])
@pytest.mark.parametrize(("by_round", "first"), [(True, (0.5, 0.0, -0.5)), (False, (0.6, -0.2, -0.4))])
def test_step_by_hand(norm: Any, by_round: bool, first: tuple[float, float, float]) -> None:
    """A step on groups of several prompts and rounds moves the weights by the gradient of the whole batch: each text's
    tokens by its own advantage among the texts of its round, or of all, divided by all tokens or texts that count."""
    model, twin = make_small(), make_small()
    other = [9, 8, 7]
    one, two, three = COMPLETIONS
    groups = [
        [
            make_attempt([1.0, 0.2], write_text(model, PROMPT, one), write_text(model, other, two)),
            make_attempt([0.0], write_text(model, PROMPT, three)),
        ],
        [make_attempt([0.5], write_text(model, other, one)), make_attempt([0.5], write_text(model, other, three))],
        [make_attempt([1.0], write_text(model, other, one)), make_attempt([None], write_text(model, other, two))],
        [make_attempt([0.0], write_text(model, other, two)), make_attempt([1.0], write_text(model, other, one))],
        [make_attempt([0.0], write_text(model, other, two)), make_attempt([])],
    ]
    config = GrpoConfig(by_std=False, by_round=by_round, norm=norm, max_grad_norm=1e9)
    told = learn(model, torch.optim.SGD(model.model.parameters(), lr=9.0), groups, config, lr=0.1)
    a, b, c = first
    parts = [(PROMPT, one, a), (other, two, b), (PROMPT, three, c), (other, two, -0.5), (other, one, 0.5)]
    total = sum(len(tokens) for _, tokens, _ in parts) if norm == "tokens" else len(parts)
    for prompt, tokens, advantage in parts:
        (rows, _) = twin.logprobs(prompt, [tokens])
        (-advantage * (rows.sum() if norm == "tokens" else rows.mean()) / total).backward()
    for (name, new), (_, old) in zip(model.trainable, twin.trainable, strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert (told["groups/kept"], told["groups/dropped"], told["groups/flat"]) == (2, 2, 0.2)
    assert told["lr"] == 0.1
    assert told["sampler/drift"] < 1e-5
    assert told["grad_norm"] == pytest.approx(
        float(torch.cat([p.grad.flatten() for _, p in twin.trainable]).norm()), rel=1e-3
    )


def test_later_rounds_count_what_they_added() -> None:
    """A second text that let a good result stand is no better than one that let a bad one stand; one that mended a bad
    result is. Without rounds apart, rewards count as they are."""
    moved = {}
    other = [9, 8, 7]
    one, two, three = COMPLETIONS
    for by_round in (True, False):
        model = make_small()
        first = write_text(model, PROMPT, one)
        second, third = write_text(model, other, two), write_text(model, other, three)
        kept = make_attempt([1.0, 1.0], first, second, before=[None, 1.0], is_valid=True)
        mended = make_attempt([1.0, 1.0], first, third, before=[None, 0.5], values=[0.5, 1.0], is_valid=True)
        optimiser = torch.optim.SGD(model.model.parameters(), lr=1.0)
        told = learn(model, optimiser, [[kept, mended]], GrpoConfig(by_round=by_round, filter="score"), lr=0.01)
        assert told["groups/kept"] == 1  # what they came to in the end is the same, the way there is not
        with torch.no_grad():
            new = model.logprobs(other, [two, three])[0].sum(1) - torch.tensor(
                [float(attempt.texts[1].logprobs.sum()) for attempt in (kept, mended)]
            )
        moved[by_round] = new.tolist()
    assert moved[False] == pytest.approx([0, 0], abs=1e-5)
    assert moved[True][0] < -1e-3 < 1e-3 < moved[True][1]


WHO_DOES = 'subtasks: ["x", "y"]\nmodel_id: ["%s", "%s"]\naccess_list: [[], [0]]'


def test_baseline_of_workers() -> None:
    """While a run settles, a worker that is better on the whole is not called more for it; one that is better here than
    elsewhere is. Tokens that name nobody are learnt as without."""
    model = make_small()
    prompts = [model.encode_text("models: a, b, here\n"), model.encode_text("models: a, b, there\n")]
    texts = [WHO_DOES % ("a", "a"), WHO_DOES % ("b", "b")]
    groups = [
        [
            make_attempt(
                [reward], replace(write_text(model, prompt, model.encode_reply(text)), text=text), is_valid=True
            )
            for text, reward in zip(texts, rewards, strict=True)
        ]
        for prompt, rewards in zip(prompts, [(1.0, 0.5), (0.75, 0.75 - 1e-3)], strict=True)
    ]
    config = GrpoConfig(by_std=False, max_grad_norm=1e9)
    twin = make_small()
    learn(model, torch.optim.SGD(model.model.parameters(), lr=1.0), groups, config, lr=0.1, settles=True)
    advantages = {0: (0.25, -0.25), 1: (0.0005, -0.0005)}
    baselines = {"a": (0.25 + 0.0005) / 2, "b": -(0.25 + 0.0005) / 2}
    replies = [twin.encode_reply(text) for text in texts]
    total = sum(map(len, replies)) * 2
    for number, prompt in enumerate(prompts):
        for worker, text, reply, advantage in zip("ab", texts, replies, advantages[number], strict=True):
            (row,), _ = twin.logprobs(prompt, [reply])
            is_form = torch.tensor(make_form_mask(twin, text))
            assert (~is_form).sum() == 2
            worth = torch.where(is_form, advantage, advantage - baselines[worker])
            (-(worth * row).sum() / total).backward()
    for (name, new), (_, old) in zip(model.trainable, twin.trainable, strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("filter", ["reward", "score"])
def test_rounds_that_differ_in_prices_only(filter: Any) -> None:
    """By scores, first texts that came to the same are not learnt from, though later ones of their group are."""
    model, other = make_small(), [9, 8, 7]
    one, two, three = COMPLETIONS
    firsts = [write_text(model, PROMPT, tokens) for tokens in (one, two)]
    seconds = [write_text(model, other, tokens) for tokens in (two, three)]
    group = [
        make_attempt([0.5, 0.5], firsts[0], seconds[0], before=[None, 0.5], is_valid=True),
        make_attempt([0.4, 0.9], firsts[1], seconds[1], before=[None, 0.5], values=[0.5, 1.0], is_valid=True),
    ]
    optimiser = torch.optim.SGD(model.model.parameters(), lr=1.0)
    learn(model, optimiser, [group], GrpoConfig(filter=filter), lr=1e-3)
    with torch.no_grad():
        moved = model.logprobs(PROMPT, [one])[0][0].numpy() - firsts[0].logprobs
    alone = make_small()
    later = [
        replace(a, texts=a.texts[1:], rewards=a.rewards[1:], before=a.before[1:], values=a.values[1:]) for a in group
    ]
    learn(alone, torch.optim.SGD(alone.model.parameters(), lr=1.0), [later], GrpoConfig(filter=filter), lr=1e-3)
    with torch.no_grad():
        without = alone.logprobs(PROMPT, [one])[0][0].numpy() - firsts[0].logprobs
    assert np.allclose(moved, without, atol=1e-6) == (filter == "score")


def test_names_that_nobody_has_are_not_excused() -> None:
    """While a run settles, a text that names somebody who was not offered is learnt from as it is, its names, too."""
    model, twin = make_small(), make_small()
    prompt = model.encode_text("models: a, b\n")
    texts = [WHO_DOES % ("a", "a"), WHO_DOES % ("axb", "a")]  # a name of several tokens
    group = [
        make_attempt([reward], replace(write_text(model, prompt, model.encode_reply(text)), text=text))
        for text, reward in zip(texts, (0.5, 0.0), strict=True)
    ]
    config = GrpoConfig(by_std=False, max_grad_norm=1e9)
    learn(model, torch.optim.SGD(model.model.parameters(), lr=1.0), [group], config, lr=0.1, settles=True)
    replies = [twin.encode_reply(text) for text in texts]
    for text, reply, advantage in zip(texts, replies, (0.25, -0.25), strict=True):
        (row,), _ = twin.logprobs(prompt, [reply])
        is_form = torch.tensor(make_form_mask(twin, text))
        worth = torch.where(is_form, advantage, 0.0) if advantage > 0 else torch.full(row.shape, advantage)
        (-(worth * row).sum() / sum(map(len, replies))).backward()
    for (name, new), (_, old) in zip(model.trainable, twin.trainable, strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_nothing_to_learn_from() -> None:
    """Where no group counts, no weight moves, not even by the optimiser's own momentum."""
    model = make_small()
    optimiser = model.make_adamw(0.1, betas=(0.9, 0.99), weight_decay=0.0)
    take_steps(model, [optimiser], 1)
    before = model.weights()
    groups = [[make_attempt([0.5], write_text(model, PROMPT, tokens)) for tokens in COMPLETIONS]]
    told = learn(model, optimiser, groups, GrpoConfig(), lr=0.1)
    assert all(np.array_equal(value, before[name]) for name, value in model.weights().items())
    assert told == {"lr": 0.1, "groups/kept": 0, "groups/flat": 1.0, "groups/dropped": 0}


def test_form_is_learnt_where_reward_says_nothing() -> None:
    """A step whose attempts are all alike learns from its demonstrations, all of them but who is called."""
    model = make_small()
    reply = next(iter(WHO))
    pair = Pair(prompt="models: a, b\n", reply=reply)
    encoded = (model.encode_text(pair.prompt), model.encode_reply(reply))

    def measure() -> float:
        with torch.no_grad():
            return float(form_loss(model, [pair]))

    before = measure()
    with torch.no_grad():
        assert before == float(model.supervised_loss([encoded], [make_form_mask(model, reply)]))
        assert before != pytest.approx(float(model.supervised_loss([encoded])))
    flat = [[make_attempt([0.5], write_text(model, PROMPT, COMPLETIONS[i])) for i in (0, 1)]]
    optimiser = model.make_adamw(0.01, betas=(0.9, 0.99), weight_decay=0.0)
    assert "loss/form" not in learn(model, optimiser, flat, GrpoConfig(), lr=0.01)
    assert measure() == before
    learned = learn(model, optimiser, flat, GrpoConfig(updates=3), lr=0.01, demonstrations=[pair])
    assert learned["loss/form"] == pytest.approx(before)
    assert (learned["groups/kept"], "loss" in learned) == (0, False)
    assert measure() < before


def test_bonus_for_entropy() -> None:
    """With a bonus, a step leaves the texts' tokens less certain than without; the entropy is that of what they were
    drawn from."""
    entropies = []
    for bonus in (0.0, 1.0):
        model = make_small()
        group = [make_attempt([1.0 - i], write_text(model, PROMPT, COMPLETIONS[i])) for i in range(2)]
        learn(model, torch.optim.SGD(model.model.parameters(), lr=1.0), [group], GrpoConfig(entropy=bonus), lr=0.01)
        with torch.no_grad():
            _, found, mask = model.logprobs_and_entropies(PROMPT, COMPLETIONS[:2])
            logits = model.model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
        wanted = torch.distributions.Categorical(logits=logits).entropy()
        assert float(found[0, 0]) == pytest.approx(float(wanted), abs=1e-4)
        entropies.append(float((found * mask).sum() / mask.sum()))
    assert entropies[1] > entropies[0] + 0.01


def test_groups_that_differ_in_prices_only() -> None:
    """By scores, a group of attempts that are all as good counts as flat, whatever they cost; by rewards it is learnt
    from. One that was no workflow differs from one that was wrong."""
    model = make_small()
    texts = [write_text(model, PROMPT, tokens) for tokens in COMPLETIONS[:2]]
    prices = [make_attempt([0.5 - i / 10], text, is_valid=True, values=[0.5]) for i, text in enumerate(texts)]
    form = [make_attempt([0.5 * i], text, is_valid=bool(i)) for i, text in enumerate(texts)]
    unknown = [make_attempt([0.5], texts[0]), make_attempt([None], texts[1])]
    kept = []
    for what in ("reward", "score"):
        optimiser = torch.optim.SGD(model.model.parameters(), lr=1.0)
        told = learn(model, optimiser, [prices, form, unknown], GrpoConfig(filter=what), lr=1e-6)
        kept.append((told["groups/kept"], told["groups/dropped"]))
    assert kept == [(2, 1), (1, 1)]


def test_several_updates_are_held_back() -> None:
    """Passes over the same texts stop at the clip: what became likelier than that is pushed no further."""
    ratios = []
    for updates, clip_high in ((1, 0.2), (60, 0.2), (60, 100.0)):
        model = make_small()
        texts = [write_text(model, PROMPT, tokens) for tokens in COMPLETIONS[:2]]
        group = [make_attempt([1.0 - i], text) for i, text in enumerate(texts)]
        optimiser = torch.optim.SGD(model.model.parameters(), lr=1.0)
        learn(model, optimiser, [group], GrpoConfig(updates=updates, clip_high=clip_high), lr=0.005)
        with torch.no_grad():
            new = model.logprobs(PROMPT, COMPLETIONS[:1])[0][0].numpy()
        ratios.append(float(np.exp(new - texts[0].logprobs).mean()))
    once, held, free = ratios
    assert 1.0 < once < held < 1.6
    assert free > 2.5


# --- tokenisers ---


@functools.cache
def tokeniser_of_tasks() -> Any:
    return train_tokeniser(["models: exact-math, facts\nCalculate 12 * 345. XIV plus the result of step 0"] * 5, 400)


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(st.sampled_from("abzXIV 019\n\"'[]<>éß漢🦊"))))
def test_any_text_comes_back(text: str) -> None:
    """Whatever is written can be read: a text through the tokeniser is itself."""
    tokeniser = tokeniser_of_tasks()
    assert tokeniser.decode(tokeniser.encode(text, add_special_tokens=False).ids) == text


def test_signs_that_are_copied() -> None:
    """Digits, and capitals beside each other, are a token each; a word with one capital need not be cut there."""
    tokeniser = tokeniser_of_tasks()
    assert tokeniser.encode("345", add_special_tokens=False).tokens == list("345")
    assert tokeniser.encode("XIV", add_special_tokens=False).tokens == list("XIV")
    assert tokeniser.encode("Calculate", add_special_tokens=False).tokens == ["Calculate"]


def test_spelled_out_end() -> None:
    """A question that spells out the token that ends a reply ends nothing: it is plain text, as when served."""
    model = make_small()
    tokens = model.encode_text("say <end> and <pad>")
    assert model.end not in tokens
    assert model.tokeniser.decode(tokens) == "say <end> and <pad>"
    assert model.encode_reply("<end>")[-1] == model.end
    assert model.end not in model.encode_reply("<end>")[:-1]
    writer = OnnxWriter(open_sampler(model), model.tokeniser.to_str(), end=model.end, max_tokens=1)
    (written,) = writer.write([Asked(messages=(Message(role="user", content="<end>"),), seed=0)], temperature=1.0)
    assert written.prompt.tolist() == model.encode_text("<end>\n")


def test_vocabulary_too_small() -> None:
    """A vocabulary that has no room for all bytes is refused."""
    with pytest.raises(ConfigError, match="vocabulary 100: expected at least"):
        train_tokeniser(["x"], 100)


# --- loading ---


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    """A folder without a model, or whose tokeniser cannot be read or ends no reply, is an error that names it."""
    with pytest.raises(ModelError, match=r"expected tokenizer\.json"):
        load_model(tmp_path / "none", lora=None, seed=0)
    folder = write_model(tmp_path, make_small())
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        read_tokeniser(folder)
    plain = train_tokeniser(["x"], 300)
    written = json.loads(plain.to_str().replace("<end>", "<stop>"))
    (folder / "tokenizer.json").write_text(json.dumps(written))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(ModelError, match="no token ends a reply"):
        read_tokeniser(folder)


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"hidden": 48, "heads": 2}])
def test_sizes_make_sense(sizes: dict[str, int]) -> None:
    """Heads that the graph in onnxruntime cannot have are refused before anything is trained."""
    with pytest.raises(ConfigError, match="expected"):
        LlamaSize(**sizes)
