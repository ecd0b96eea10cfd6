"""GRPO's arithmetic: rewards, advantages, which groups count, the clipped loss against steps computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torafugu.errors import ConfigError
from torafugu.train.grpo import RewardConfig, filter_groups, group_advantages, policy_loss

# --- rewards ---


@pytest.mark.parametrize(
    ("score", "is_valid", "papers", "codes"), [(None, False, 0, 0), (0, True, 0.5, 0.5), (1, True, 1, 1.5)]
)
def test_the_papers_rewards(score: float | None, is_valid: bool, papers: float, codes: float) -> None:
    """No workflow is worth 0, a wrong one 0.5, a right one 1, or 1.5 as in the paper's code."""
    told = {"score": score, "is_valid": is_valid, "calls": 2, "cost_usd": 0.3}
    assert RewardConfig().reward(**told) == papers
    assert RewardConfig(correct=1.5).reward(**told) == codes


def test_part_of_the_score() -> None:
    """A verdict between wrong and right lies between their rewards."""
    assert RewardConfig(valid=0.2, correct=1.0).reward(score=0.25, is_valid=True, calls=1, cost_usd=None) == 0.4


def test_calls_and_dollars_are_taken_off() -> None:
    """Each call and each dollar costs what the config says; a text that is no workflow made none."""
    config = RewardConfig(per_call=0.01, per_usd=2.0)
    assert config.reward(score=1.0, is_valid=True, calls=3, cost_usd=0.05) == pytest.approx(1 - 0.03 - 0.1)
    assert config.reward(score=None, is_valid=False, calls=3, cost_usd=0.05) == 0


def test_a_workflow_that_nobody_scored() -> None:
    """Where the verdict is missing there is no reward, not a bad one."""
    assert RewardConfig().reward(score=None, is_valid=True, calls=1, cost_usd=0.0) is None


def test_a_price_that_is_not_known() -> None:
    """A price on dollars is refused where a call's cost is unknown, and does no harm where none is set."""
    with pytest.raises(ConfigError, match="give every worker a price"):
        RewardConfig(per_usd=1.0).reward(score=1.0, is_valid=True, calls=1, cost_usd=None)
    assert RewardConfig().reward(score=1.0, is_valid=True, calls=1, cost_usd=None) == 1


@pytest.mark.parametrize(
    "settings",
    [{"valid": -0.1}, {"valid": 1.1}, {"valid": 0.0, "correct": 0.0}, {"per_call": -1.0}, {"per_usd": -0.1}],
)
def test_rewards_make_sense(settings: dict[str, Any]) -> None:
    """Rewards that fall from no workflow to a right one, or pay for calls, are refused."""
    with pytest.raises(ConfigError, match="expected"):
        RewardConfig(**settings)


# --- advantages ---


def test_advantages_by_hand() -> None:
    """Rewards 0, 0.5, 1, 1.5 have mean 0.75 and standard deviation 0.559: the first is 1.342 of it below."""
    expected = np.array([-0.75, -0.25, 0.25, 0.75])
    rewards = [0.0, 0.5, 1.0, 1.5]
    assert group_advantages(rewards) == pytest.approx(expected / math.sqrt(0.3125), abs=1e-5)
    assert group_advantages(rewards, by_std=False) == pytest.approx(expected)


def test_equal_rewards_teach_nothing() -> None:
    """Where all attempts are worth the same, even but for rounding, every advantage is exactly 0."""
    for by_std in (True, False):
        assert group_advantages([0.7, 0.7, 0.7], by_std=by_std).tolist() == [0, 0, 0]
        assert group_advantages([0.1 + 0.2, 0.3], by_std=by_std).tolist() == [0, 0]


def test_floor_of_the_deviation() -> None:
    """A group that differs in prices alone has small advantages with a floor; others keep theirs."""
    rewards = [0.999, 1.001]
    assert group_advantages(rewards) == pytest.approx([-1, 1], abs=2e-3)
    assert group_advantages(rewards, std_floor=0.1) == pytest.approx([-0.01, 0.01], rel=1e-3)
    assert group_advantages([0.0, 1.0], std_floor=0.1) == pytest.approx([-1, 1], abs=1e-5)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=16), st.booleans(), st.floats(0, 1))
def test_advantages_are_fair(rewards: list[float], by_std: bool, floor: float) -> None:
    """Advantages add up to 0 and keep the order of the rewards."""
    advantages = group_advantages(rewards, by_std=by_std, std_floor=floor)
    assert abs(advantages.sum()) < 1e-6 * len(rewards)
    assert (np.diff(advantages[np.argsort(rewards, kind="stable")]) >= 0).all()


# --- which groups count ---


def test_groups_that_are_left_out() -> None:
    """A group with an attempt that nobody scored is dropped whole, one without variance is flat; both are counted."""
    kept = filter_groups([[0, 1, None], [0.5, 0.5, 0.5], [0, 1, 1], [None, None], [1, 1 + 1e-9], [0.5, 0.6]])
    assert (kept.groups, kept.dropped, kept.flat) == ((2, 5), 2, 2)


# --- the loss ---

CLIPS: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3}


def loss_of(ratios: list[list[float]], advantages: list[float], mask: list[list[int]], **settings: Any) -> Any:
    """-> loss, and its gradient by the log-probabilities"""
    torch = pytest.importorskip("torch")
    old = torch.full((len(ratios), len(ratios[0])), -1.5, dtype=torch.float64)
    new = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    loss = policy_loss(
        new,
        old,
        torch.tensor(advantages, dtype=torch.float64)[:, None],
        torch.tensor(mask, dtype=torch.float64),
        **(CLIPS | settings),
    )
    loss.backward()
    return loss.item(), new.grad.tolist()


def test_loss_by_hand() -> None:
    """Two completions of 3 and 1 tokens: a good one is held at 1 + 0.3, a bad one at 1 - 0.2, and only there."""
    ratios, mask = [[1.0, 1.5, 0.5], [0.5, 9.0, 9.0]], [[1, 1, 1], [1, 0, 0]]
    good = 2.0 * (1.0 + 1.3 + 0.5)  # a likelier good token counts to 1.3; one that became rare counts as it is
    bad = -1.0 * 0.8  # a bad token that became rare counts as 0.8
    loss, gradient = loss_of(ratios, [2.0, -1.0], mask, norm="tokens", total=4.0)
    assert loss == pytest.approx(-(good + bad) / 4)
    assert np.array(gradient) == pytest.approx(-np.array([[2.0 * 1.0, 0, 2.0 * 0.5], [0, 0, 0]]) / 4)


def test_bad_tokens_that_became_likelier() -> None:
    """Nothing holds back the gradient of a bad token that became likelier: it is pushed down in full."""
    loss, gradient = loss_of([[1.5]], [-1.0], [[1]], norm="tokens", total=1.0)
    assert loss == pytest.approx(1.5)
    assert gradient == [[pytest.approx(1.5)]]


def test_loss_by_sequences() -> None:
    """Normed by sequences, each completion counts the same, however long it is."""
    ones = [[1.0] * 3] * 2
    mask = [[1, 1, 1], [1, 0, 0]]
    loss, gradient = loss_of(ones, [3.0, -1.0], mask, norm="sequences", total=2.0)
    assert loss == pytest.approx(-(3.0 - 1.0) / 2)
    assert np.array(gradient) == pytest.approx(-np.array([[0.5, 0.5, 0.5], [-0.5, 0, 0]]))
    by_tokens, _ = loss_of(ones, [3.0, -1.0], mask, norm="tokens", total=4.0)
    assert by_tokens == pytest.approx(-(9.0 - 1.0) / 4)


@pytest.mark.parametrize(("norm", "total"), [("tokens", 5.0), ("sequences", 3.0)])
def test_parts_add_up(norm: str, total: float) -> None:
    """Losses and gradients of the parts of a batch add up to those of the whole."""
    ratios, mask = [[0.7, 1.1], [1.4, 1.0], [1.0, 2.0]], [[1, 1], [1, 0], [1, 1]]
    advantages = [1.0, -0.5, 2.0]
    whole, gradient = loss_of(ratios, advantages, mask, norm=norm, total=total)
    parts = [
        loss_of(ratios[i : i + 1], advantages[i : i + 1], mask[i : i + 1], norm=norm, total=total) for i in range(3)
    ]
    assert whole == pytest.approx(sum(loss for loss, _ in parts))
    assert np.array(gradient) == pytest.approx(np.concatenate([part for _, part in parts]))
