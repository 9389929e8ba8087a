from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bgrpo.errors import UserError
from bgrpo.scoring.advantages import KINDS, advantages, is_informative

reward_values = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-10, 10))


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    """Ragged groups of rewards and log-probabilities."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    rewards = [draw(st.lists(reward_values, min_size=size, max_size=size)) for size in sizes]
    logprobs = [draw(st.lists(st.floats(-1000, 0), min_size=size, max_size=size)) for size in sizes]
    return rewards, logprobs


@pytest.mark.filterwarnings("error")
@given(batches(), st.sampled_from(KINDS), st.floats(0.01, 10), st.lists(st.none() | st.floats(-1000, 800), min_size=5))
@example(([[0.0]], [[-746.0]]), "set_estimator", 1.0, [None] * 5)  # of a probability below the smallest number
@example(([[10.0]], [[-1.0]]), "set_estimator", 1.0, [-2.0] * 5)  # nothing could be scored
@example(([[10.0]], [[-1.0]]), "importance_weighted", 1.0, [None] * 5)
@example(([[1.0, 0.0]], [[-1.0, -2.0]]), "importance_weighted", 1.0, [-1000.0] * 5)
def test_always_finite_and_shaped_as_the_rewards(
    batch: tuple[list[list[float]], list[list[float]]], kind: str, alpha: float, bounds: list[float | None]
) -> None:
    rewards, logprobs = batch
    some = [[None if reward > 9 else reward for reward in group] for group in rewards]
    values = advantages(some, logprobs, kind, alpha, bounds[: len(rewards)])
    assert [len(group) for group in values] == [len(group) for group in rewards]
    assert all(math.isfinite(value) for group in values for value in group)


@given(
    st.floats(-10, 10),
    st.integers(1, 12),
    st.sampled_from([kind for kind in KINDS if kind not in ("none", "set_estimator")]),
)
def test_equal_rewards_teach_nothing(reward: float, size: int, kind: str) -> None:
    logprobs = [[-float(position) for position in range(size)]]
    assert advantages([[reward] * size], logprobs, kind, 1.0) == [[0.0] * size], "rounding noise is not nothing: Adam"
    assert not is_informative([reward] * size, kind)


@given(batches())
def test_mean_std_and_batch_against_numpy(batch: tuple[list[list[float]], list[list[float]]]) -> None:
    rewards, logprobs = batch
    everything = np.concatenate(rewards)
    batch_std = np.sqrt(((everything - everything.mean()) ** 2).sum() / max(len(everything) - 1, 1))
    for kind in ("mean", "std", "batch"):
        for group, values in zip(rewards, advantages(rewards, logprobs, kind), strict=True):
            centre = math.fsum(group) / len(group)
            spread = math.sqrt(math.fsum((reward - centre) ** 2 for reward in group) / max(len(group) - 1, 1))
            scale = {"mean": 1.0, "std": spread + 1e-4, "batch": batch_std + 1e-4}[kind]
            assert np.allclose(values, [(reward - centre) / scale for reward in group], rtol=1e-6, atol=1e-8)


@given(batches())
def test_leave_one_out_compares_with_the_others(batch: tuple[list[list[float]], list[list[float]]]) -> None:
    rewards, logprobs = batch
    for group, values in zip(rewards, advantages(rewards, logprobs, "leave_one_out"), strict=True):
        if len(group) == 1:
            assert values == [0.0]
            continue
        for position, value in enumerate(values):
            others = group[:position] + group[position + 1 :]
            assert value == pytest.approx(group[position] - math.fsum(others) / len(others), abs=1e-9)


def test_none_is_the_reward() -> None:
    assert advantages([[0.5, -1.0]], [[-1.0, -2.0]], "none") == [[0.5, -1.0]]


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_probability_weighted_is_the_gradient_of_the_expected_reward(alpha: float) -> None:
    rewards = torch.tensor([1.0, 0.0, 0.2, 0.0], dtype=torch.float64)
    logprobs = torch.tensor([-3.0, -1.0, -2.0, -700.0], dtype=torch.float64, requires_grad=True)
    expected = ((alpha * logprobs).softmax(0) * rewards).sum()
    expected.backward()
    values = advantages([rewards.tolist()], [logprobs.tolist()], "probability_weighted", alpha)[0]
    assert np.allclose(values, 4 / alpha * logprobs.grad.numpy(), atol=1e-12)


def test_informative_means_not_all_equal_but_without_a_baseline_not_all_zero() -> None:
    assert is_informative([0.0, 1.0]) and not is_informative([1.0, 1.0])
    assert is_informative([1.0, 1.0], "none") and not is_informative([0.0, 0.0], "none")


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'median': expected one of mean, std"):
        advantages([[1.0]], [[-1.0]], "median")
