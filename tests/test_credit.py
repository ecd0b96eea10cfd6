"""Credit over rounds of planning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torafugu.errors import ConfigError
from torafugu.train.credit import assign_credit


def test_the_papers_example() -> None:
    """With a discount of 0.25, a half-good first round that led to a right answer is credited with 0.625."""
    assert assign_credit([0.5, 1.0]) == [0.625, 1.0]


def test_later_rounds_pass_less_on() -> None:
    """The share falls with the round."""
    assert assign_credit([0.0, 0.0, 1.0], discount=0.5) == [0.0, 0.25, 1.0]


@given(st.lists(st.floats(0, 1), max_size=6), st.floats(0, 1))
def test_bounds(rewards: list[float], discount: float) -> None:
    """Credit lies between a round's own reward and the next one's; without a discount it is the reward."""
    credits = assign_credit(rewards, discount=discount)
    assert len(credits) == len(rewards)
    for k, credit in enumerate(credits[:-1]):
        low, high = sorted((rewards[k], rewards[k + 1]))
        assert low - 1e-12 <= credit <= high + 1e-12
    assert credits[-1:] == rewards[-1:]
    assert assign_credit(rewards, discount=0.0) == rewards


def test_bad_discount() -> None:
    """A discount beyond 0..1 is refused."""
    with pytest.raises(ConfigError, match=r"discount 1\.5"):
        assign_credit([1.0], discount=1.5)
