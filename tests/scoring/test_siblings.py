"""Advantages of tokens against their siblings: by hand, and as the gradient of a whole tree of completions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgrpo.scoring.advantages import advantages
from bgrpo.scoring.siblings import sibling_advantages
from bgrpo.scoring.without_replacement import inclusion_weights


def test_a_small_tree_by_hand() -> None:
    """All begin with 7; then 1 leads to rewards 1 and 0, and 2 to 0; the last completion failed to be scored."""
    completions = [[7, 1, 3], [7, 1, 4], [7, 2, 3], [7, 2, 4]]
    found = sibling_advantages(completions, [1.0, 0.0, 0.0, None], np.array([0.5, 0.25, 0.25]))
    first, second = 2 / 3 - 0.5, 1 / 3
    expected = [
        [0, 3 * 0.5 * first, 3 * 0.5 * second],
        [0, 3 * 0.25 * first, -3 * 0.25 * (2 / 3)],
        [0, -3 * 0.25 * 0.5, 0],  # the only known one after 2: nothing to compare with
        [0, 0, 0],
    ]
    for values, wanted in zip(found, expected, strict=True):
        assert values == pytest.approx(wanted, abs=1e-12)


groups = st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=8, unique_by=tuple).flatmap(
    lambda stems: st.tuples(
        st.just([[*stem, 9] for stem in stems]),
        st.lists(st.none() | st.sampled_from([0.0, 1.0, -0.5]), min_size=len(stems), max_size=len(stems)),
        st.lists(st.floats(-900, 0), min_size=len(stems), max_size=len(stems)),
    )
)


@settings(max_examples=40)
@given(groups)
def test_the_tokens_of_a_completion_share_out_its_probability_weighted_advantage(
    group: tuple[list[list[int]], list[float | None], list[float]],
) -> None:
    completions, rewards, logps = group
    known = [logp for logp, reward in zip(logps, rewards, strict=True) if reward is not None]
    weights = inclusion_weights(np.array(known), None) if known else np.zeros(0)
    found = sibling_advantages(completions, rewards, weights)
    assert [len(values) for values in found] == [len(tokens) for tokens in completions]
    whole = advantages([rewards], [logps], "probability_weighted")[0] if known else [0.0] * len(rewards)
    assert [sum(values) for values in found] == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("repeated", [False, True], ids=["distinct", "samples"])
def test_of_all_completions_it_is_the_gradient_of_the_expected_reward(repeated: bool) -> None:
    """A policy over three tokens, two deep, its own logits at each place; as samples: each as often as it is likely."""
    draw = torch.Generator().manual_seed(3)
    logits = {place: torch.randn(3, generator=draw, dtype=torch.float64).requires_grad_() for place in (None, 0, 1, 2)}
    if repeated:  # chances are whole parts of 36
        counts = {None: [3, 2, 1], 0: [1, 1, 1], 1: [1, 2, 3], 2: [4, 1, 1]}
        logits = {place: torch.tensor(of, dtype=torch.float64).log().requires_grad_() for place, of in counts.items()}
    completions = [list(pair) for pair in itertools.product(range(3), repeat=2)]
    rewards = torch.randn(9, generator=draw, dtype=torch.float64)

    def logps(tokens: list[int]) -> list[torch.Tensor]:
        return [logits[None].log_softmax(0)[tokens[0]], logits[tokens[0]].log_softmax(0)[tokens[1]]]

    chances = torch.stack([torch.stack(logps(tokens)).sum().exp() for tokens in completions])
    wanted = torch.autograd.grad(chances @ rewards, list(logits.values()), retain_graph=True)
    weights = chances.detach().numpy()
    times = np.rint(weights * 36).astype(int) if repeated else np.ones(9, int)
    drawn = [tokens for tokens, count in zip(completions, times, strict=True) for _ in range(count)]
    of_drawn = np.repeat(rewards.numpy(), times).tolist()
    weights = np.full(len(drawn), 1 / len(drawn)) if repeated else weights
    found = sibling_advantages(drawn, of_drawn, weights)
    surrogate = sum(
        value * logp
        for tokens, values in zip(drawn, found, strict=True)
        for value, logp in zip(values, logps(tokens), strict=True)
    )
    gradients = torch.autograd.grad(surrogate / len(drawn), list(logits.values()))
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_equal_rewards_below_a_parent_are_exactly_nothing() -> None:
    completions = [[1, 1, 9], [1, 2, 9], [1, 3, 9], [2, 9]]
    found = sibling_advantages(completions, [0.1, 0.1, 0.1, 0.7], np.array([0.7, 0.2, 0.05, 0.05]))
    assert [values[1:] for values in found[:3]] == [[0.0, 0.0]] * 3, "rounding noise is not nothing: Adam"
    assert all(values[0] < 0 for values in found[:3]) and found[3][0] > 0
