from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import TOKENIZER, make_trainer, row_logps, tiny_policy, train_config

from bgrpo.groups import Verdict
from bgrpo.learning.prompt_order import prompt_indices
from bgrpo.learning.rollout_source import LocalRolloutSource
from bgrpo.scoring.attempts import Attempt
from bgrpo.tasks.base import Outcome, Problem

PROBLEMS = [Problem(prompt=" ".join(f"t{2 + (7 * i + j) % 29}" for j in range(1 + i % 5))) for i in range(10)]


def _verdict(attempt: Attempt, right: bool) -> Verdict:
    return Verdict(("correct" if right else "wrong") if attempt.finished else "truncated")


def starts_with_t5(items: Sequence[Attempt]) -> list[Verdict]:
    return [_verdict(item, item.text.startswith("t5")) for item in items]


@given(st.integers(0, 5), st.integers(1, 60), st.integers(1, 12), st.integers(1, 3))
def test_each_epoch_holds_every_problem_once(seed: int, size: int, count: int, draws: int) -> None:
    """Each draw by itself: first draws make an epoch in size / count steps, whatever is drawn besides."""
    steps = 3 * size // count + 2
    first = [index for step in range(steps) for index in prompt_indices(seed, step, count, size)]
    for draw in range(draws):
        stream = [index for step in range(steps) for index in prompt_indices(seed, step, count, size, draw, draws)]
        shift = draw * size // draws
        assert len(stream) == steps * count and stream[: len(first) - shift] == first[shift:]
        for start in range(size - shift, len(stream) - size, size):
            assert sorted(stream[start : start + size]) == list(range(size))


@given(st.integers(0, 5), st.integers(1, 60), st.integers(1, 12), st.integers(1, 3))
def test_draws_of_a_step_differ_where_there_are_enough_problems(seed: int, size: int, count: int, draws: int) -> None:
    for step in range(size // count):
        drawn = [i for draw in range(draws) for i in prompt_indices(seed, step, count, size, draw, draws)]
        whole = step * count + (draws - 1) * size // draws + count <= size  # no draw goes on into the next epoch
        assert not whole or count > size // draws or len(set(drawn)) == len(drawn) == count * draws


def test_prompt_order_is_a_pure_function_and_changes_with_seed_and_epoch() -> None:
    assert prompt_indices(3, 100, 8, 50) == prompt_indices(3, 100, 8, 50)
    epochs = [tuple(prompt_indices(seed, step, 50, 50)) for seed in range(3) for step in range(3)]
    assert len(set(epochs)) == 9


def test_local_rollouts_are_of_the_published_weights_and_versions() -> None:
    config = train_config()
    source = LocalRolloutSource(PROBLEMS, TOKENIZER, config, starts_with_t5)
    with pytest.raises(RuntimeError, match=r"asked for weights of version 0; held: \[\]"):
        source.collect(0, 0, [1], 0)
    policy = tiny_policy()
    source.publish(0, policy)
    with torch.no_grad():  # an update after publishing does not reach the rollouts
        policy.transformer.wte.weight.add_(1.0)
    groups = source.collect(0, 0, [3, 1, 3], 0)
    assert [scored.index for scored in groups] == [3, 1, 3] and groups[0] == groups[2]
    for scored in groups:
        assert scored.prompt_ids == TOKENIZER(PROBLEMS[scored.index].prompt)["input_ids"]
        assert len({tuple(completion.tokens) for completion in scored.completions}) == 5
        for completion in scored.completions:
            expected = row_logps(tiny_policy(), scored.prompt_ids, completion.tokens)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
        for completion, outcome in zip(scored.completions, scored.outcomes, strict=True):
            first = "correct" if completion.tokens[0] == 5 else "wrong"
            assert outcome == (first if completion.finished else "truncated")
    with pytest.raises(RuntimeError, match=r"asked for weights of version 1; held: \[0\]"):
        source.collect(1, 1, [1], 0)


def test_samples_are_a_function_of_seed_step_index_and_draw() -> None:
    config = train_config(algorithm="grpo")
    source = LocalRolloutSource(PROBLEMS, TOKENIZER, config, starts_with_t5)
    source.publish(0, tiny_policy())

    def tokens(step: int, indices: list[int], draw: int) -> list[list[int]]:
        (scored, *_) = source.collect(step, 0, indices, draw)
        return [completion.tokens for completion in scored.completions]

    assert tokens(2, [4], 0) == tokens(2, [4, 7, 1], 0), "the batch must not matter"
    assert len({str(tokens(step, [4], draw)) for step in range(3) for draw in range(2)}) == 6


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_local_rollouts_in_either_precision(dtype: str) -> None:
    source = LocalRolloutSource(PROBLEMS, TOKENIZER, train_config(rollout={"dtype": dtype}), starts_with_t5)
    source.publish(0, tiny_policy())
    (scored,) = source.collect(0, 0, [2], 0)
    exact = row_logps(tiny_policy(), scored.prompt_ids, scored.completions[0].tokens).sum().item()
    error = abs(scored.completions[0].logprob - exact)
    assert error < 1e-4 if dtype == "fp32" else 1e-4 < error < 0.5


def starts_with_an_even_token(items: Sequence[Attempt]) -> list[Verdict]:
    return [_verdict(item, re.match(r"t\d*[02468]\b", item.text) is not None) for item in items]


@pytest.mark.parametrize("algorithm", ["bgrpo", "grpo", "reinforce"])
def test_a_policy_learns_from_its_own_rollouts(tmp_path: Path, algorithm: str) -> None:
    config = train_config(
        steps=30,
        algorithm=algorithm,
        rollout={"group_size": 8, "prompts_per_step": 5, "max_new_tokens": 4},
        learner={"learning_rate": 3e-3, "beta": 0.001},
    )
    steps: list[dict[str, float]] = []
    source = LocalRolloutSource(PROBLEMS, TOKENIZER, config, starts_with_an_even_token)
    make_trainer(config, source, tmp_path, on_step=steps.append).run()
    correct = [step["outcome/correct"] / sum(step[f"outcome/{o}"] for o in Outcome) for step in steps]
    assert sum(correct[-3:]) / 3 > sum(correct[:3]) / 3 + 0.3
    assert all(step["staleness"] == 0 for step in steps)
