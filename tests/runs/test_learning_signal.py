"""A run that cannot learn says so: which steps make no update, when that is said, and what it says to change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import train_config

from bgrpo.groups import Completion
from bgrpo.learning.batch import choose_groups
from bgrpo.learning.step_metrics import rollout_metrics
from bgrpo.runs.learning_signal import STREAK, SignalWatch, conclusions, made_no_update, steps_without_update
from bgrpo.scoring.advantages import KINDS

OF_SAMPLES = sorted(set(KINDS) - {"importance_weighted", "set_estimator"})  # those need groups without replacement


def step(
    used: int = 4, informative: float = 0.5, solved: float = 0.5, reward: float = 0.3, **outcomes: int
) -> dict[str, Any]:
    counts = outcomes or {"correct": 5, "wrong": 15}
    return {
        "groups_used": used,
        "informative_groups": informative,
        "solved_groups": solved,
        "reward_mean": reward,
        **{f"outcome/{name}": count for name, count in counts.items()},
    }


LEARNS = step()
NONE_RIGHT = step(0, 0, 0, 0, wrong=20)
ALL_RIGHT = step(0, 0, 1, 1, correct=20)
CUT_OFF = step(0, 0, 0, 0, truncated=20)


def warnings(steps: list[dict[str, Any]], **sections: Any) -> list[str]:
    watch = SignalWatch(train_config(**sections))
    return [line for number, metrics in enumerate(steps, 1) for line in watch.note(number, metrics)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([LEARNS] * 20, []),
        ([NONE_RIGHT] * (STREAK - 1) + [LEARNS] + [NONE_RIGHT] * (STREAK - 1), []),
        (
            [LEARNS, *[NONE_RIGHT] * 20],
            [f"warning: steps 2 to {STREAK + 1} made no update: no completion was correct; take easier problems"],
        ),
        ([ALL_RIGHT] * STREAK, ["problems that the policy solves now and then"]),
        ([step(truncated=10, wrong=10)] * 9, []),
        (
            [step(truncated=11, wrong=9)] * 9,
            ["step 1: 55% of the completions were cut off at rollout.max_new_tokens=8"],
        ),
        (
            [CUT_OFF] * 9,
            ["step 1: 100% of the completions", f"steps 1 to {STREAK} made no update: most completions were cut off"],
        ),
        ([{}] * 9, []),
        ([{"groups_used": None, "outcome/truncated": None}] * 9, []),
    ],
)
def test_each_warning_comes_once_and_says_what_to_change(steps: list[dict[str, Any]], expected: list[str]) -> None:
    found = warnings(steps)
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


def test_a_reward_function_is_named_where_its_values_are_all_equal() -> None:
    (line,) = warnings([ALL_RIGHT] * 9, reward={"function": "mine:score"})
    assert "look at the scores of mine:score, or take a larger rollout.group_size (now 5)" in line


def test_the_end_of_a_run_counts_its_steps_without_an_update() -> None:
    config = train_config()
    assert conclusions(config, []) == conclusions(config, [LEARNS] * 3) == []
    assert conclusions(config, [LEARNS, NONE_RIGHT, NONE_RIGHT])[0].startswith("2 of 3 steps made no update: no comp")
    lines = conclusions(config, [CUT_OFF] * 3)
    assert lines[0].startswith("warning: of the whole run, 100% of the completions were cut off")
    assert lines[-1].startswith("warning: none of the 3 steps made an update")
    assert steps_without_update([LEARNS, NONE_RIGHT]) == 1


def test_equal_scores_of_what_was_cut_off_are_the_cause_where_it_is_scored() -> None:
    config = train_config(reward={"parts": {"mine": {"function": "mine:score", "score_truncated": True}}})
    lines = conclusions(config, [CUT_OFF] * 3)
    assert "and are scored as they are" in lines[0]
    assert "the rewards within each group were equal; look at the scores of mine, or" in lines[-1]


@given(
    st.sampled_from(OF_SAMPLES),
    st.booleans(),
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=4), min_size=1, max_size=4),
)
def test_a_step_makes_no_update_exactly_when_all_its_advantages_are_zero(
    kind: str, skip: bool, rewards: list[list[float]]
) -> None:
    """Whatever rewards, advantage and treatment of uninformative groups; held against the advantages themselves."""
    from dataclasses import replace

    from learner_cases import scored

    config = train_config(
        algorithm="grpo", advantage={"kind": kind}, rollout={"skip_uninformative": skip, "prompts_per_step": 4}
    )
    groups = []
    for index, values in enumerate(rewards):
        completions = [Completion([2, number + 3], [-0.5, -0.25 * number], True) for number in range(len(values))]
        group = scored(index, [2], completions, ["correct" if value else "wrong" for value in values], 0)
        groups.append(replace(group, rewards=values))
    chosen = choose_groups(groups, config)
    nothing = not any(advantage for group in chosen.learning for advantage in group.advantages)
    assert made_no_update(rollout_metrics(chosen, 0, "sample", config.reward)) == nothing


@pytest.mark.parametrize(
    ("reward", "mean", "truncated", "said"),
    [
        ({"function": "m:f"}, -0.4, 1, True),
        ({"function": "m:f", "wrong_reward": -1.0}, -0.4, 1, False),
        ({"function": "m:f", "wrong_reward": -1.0}, -1.4, 1, True),
        ({"function": "m:f"}, 0.4, 1, False),
        ({"function": "m:f"}, -0.4, 0, False),
        ({"function": "m:f"}, None, 1, False),
        ({"parts": {"a": {"metric": "bleu", "weight": -1.0}}}, -0.4, 1, True),
        ({"parts": {"a": {"metric": "bleu", "weight": -1.0}}, "combine": "normalize_then_sum"}, -0.4, 1, False),
        ({"parts": {"a": {"metric": "bleu", "weight": -1.0, "score_truncated": True}}}, -0.4, 1, False),
        ({}, -0.4, 1, False),
    ],
)
def test_cut_off_completions_that_earn_most_are_told_once(
    reward: dict[str, Any], mean: float | None, truncated: int, said: bool
) -> None:
    steps = [step(scored=9, truncated=truncated) | {"reward_mean": mean}] * 3
    lines = warnings(steps, reward=reward)
    assert [("step 1: completions that were cut off get" in line) for line in lines] == [True] * said
