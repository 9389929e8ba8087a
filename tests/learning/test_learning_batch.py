from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import EOS, ScriptedSource, make_trainer, scored, train_config

from bgrpo.groups import Completion
from bgrpo.learning.batch import (
    LearningGroup,
    best_and_worst,
    choose_groups,
    draw_groups,
    micro_batches_per_minibatch,
    split_update,
)
from bgrpo.runs.checkpoints import CheckpointStore


def learning_groups(count: int) -> list[LearningGroup]:
    rng = random.Random(count)
    return [
        LearningGroup([index] * rng.randint(1, 9), [[index] * rng.randint(1, 5)] * rng.randint(1, 4), [], [0.0])
        for index in range(count)
    ]


@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9))
def test_every_group_is_used_once_by_one_learner_in_whole(
    data: st.DataObject, world_size: int, minibatches: int, per_part: int, micro_groups: int
) -> None:
    prompts = world_size * minibatches * per_part
    learner = {"workers": world_size, "minibatches": minibatches, "micro_groups": micro_groups}
    config = train_config(rollout={"prompts_per_step": prompts}, learner=learner)
    groups = learning_groups(data.draw(st.integers(0, prompts)))
    shares = [split_update(groups, config, rank, world_size) for rank in range(world_size)]
    cuts = micro_batches_per_minibatch(config, world_size)

    used = [group for share in shares for part in share for cut in part.micro_batches for group in cut]
    assert sorted(group.prompt for group in used) == sorted(group.prompt for group in groups)
    for share in shares:
        assert len(share) == minibatches
        for part, other in zip(share, shares[0], strict=True):
            assert len(part.micro_batches) == cuts, "learners must agree on the number of forward passes"
            assert all(len(cut) <= micro_groups for cut in part.micro_batches)
            assert (part.tokens, part.cut_tokens, part.cut_rows) == (other.tokens, other.cut_tokens, other.cut_rows)
    for number in range(minibatches):
        members = {group.prompt[0] for share in shares for cut in share[number].micro_batches for group in cut}
        assert members == set(range(number, len(groups), minibatches)), "the learners' number must not move groups"
        per_cut = [[share[number].micro_batches[cut] for share in shares] for cut in range(cuts)]
        tokens = [sum(len(c) for own in cut for g in own for c in g.completions) for cut in per_cut]
        assert shares[0][number].cut_tokens == tokens and shares[0][number].tokens == sum(tokens)
        rows = [max(sum(len(group.completions) for group in own) for own in cut) for cut in per_cut]
        assert shares[0][number].cut_rows == rows
        completions = [sum(len(group.completions) for own in cut for group in own) for cut in per_cut]
        assert shares[0][number].cut_completions == completions and shares[0][number].rows == sum(completions)


def test_rewards_and_advantages_are_over_the_groups_in_the_update() -> None:
    source = ScriptedSource(outcome=lambda rng: "correct" if rng.random() < 0.15 else "wrong")
    config = train_config(rollout={"skip_uninformative": True, "prompts_per_step": 8})
    source.config = config
    step = choose_groups(draw_groups(source, config, step=0, version=0, problems=100), config)
    informative = [values for values in (group.rewards for group in step.groups) if len(set(values)) > 1]
    assert 0 < len(informative) < 8 and len(step.learning) == len(informative)
    for group, rewards in zip(step.learning, informative, strict=True):
        mean = sum(rewards) / len(rewards)
        assert group.advantages == pytest.approx([reward - mean for reward in rewards])


def test_groups_that_are_all_right_still_teach_without_a_baseline() -> None:
    source = ScriptedSource(outcome=lambda rng: "correct")
    tree = {"algorithm": "reinforce", "rollout": {"skip_uninformative": True}}
    with_baseline, without = train_config(**tree), train_config(**tree, advantage={"kind": "none"})
    source.config = without
    groups = draw_groups(source, without, 0, 0, 10)
    assert len(choose_groups(groups, without).learning) == 4
    assert choose_groups(groups, with_baseline).learning == []


def test_a_run_that_is_asked_to_stop_saves_and_ends(tmp_path: Path) -> None:
    source, store = ScriptedSource(), CheckpointStore(tmp_path / "checkpoints")
    trainer = make_trainer(
        train_config(steps=9), source, tmp_path, store=store, should_stop=lambda: len(source.asked) == 2
    )
    trainer.run()
    latest = store.latest()
    assert latest is not None and store.step_of(latest) == 2
    assert source.published == [0, 1, 2]


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_what_is_kept_of_a_group_is_its_best_and_its_worst(rewards: list[float | None], share: float) -> None:
    kept = best_and_worst(rewards, share)
    known = [reward for reward in rewards if reward is not None]
    assert kept == sorted(set(kept)) and all(rewards[place] is not None for place in kept)
    assert len(kept) <= max(2, share * len(rewards) + 2) and len(kept) >= min(len(known), 2)
    left = [reward for place, reward in enumerate(rewards) if place not in kept and reward is not None]
    if left:
        held = sorted(rewards[place] for place in kept)  # type: ignore[type-var]
        half = len(held) // 2
        assert held[:half] == sorted(known)[:half] and held[half:] == sorted(known)[-half:], "as many of each"
    assert best_and_worst(rewards, 1.0) == list(range(len(rewards)))


def test_the_update_learns_from_the_kept_share_with_the_advantages_of_the_whole_group() -> None:
    whole, part = train_config(), train_config(advantage={"keep": 0.5})
    source = ScriptedSource()
    groups = draw_groups(source, whole, step=0, version=0, problems=100)
    for all_of, kept_of, group in zip(
        choose_groups(groups, whole).learning, choose_groups(groups, part).learning, groups, strict=True
    ):
        places = best_and_worst(group.rewards, 0.5)
        assert 2 <= len(places) < len(group.rewards)
        assert kept_of.completions == [all_of.completions[place] for place in places]
        assert kept_of.advantages == [all_of.advantages[place] for place in places]
        assert kept_of.logprobs == [all_of.logprobs[place] for place in places]


@pytest.mark.parametrize("kind", ["mean", "std", "batch", "leave_one_out", "probability_weighted", "none"])
def test_a_group_that_nothing_could_score_teaches_nothing_whatever_the_advantage(kind: str) -> None:
    config = train_config(advantage={"kind": kind})  # which leaves no group out for equal rewards
    groups = ScriptedSource(5).collect(0, 0, [0, 1], 0)
    unscored = replace(groups[0], rewards=[None] * len(groups[0].completions))
    found = choose_groups([unscored, groups[1]], config)
    alone = choose_groups([groups[1]], config)
    assert found.learning == alone.learning and found.advantages == {1: alone.advantages[0]}


@pytest.mark.parametrize("kind", ["std", "leave_one_out", "pass_at_k", "sibling"])
def test_duplicates_that_count_once_are_as_if_they_had_never_been_drawn(kind: str) -> None:
    answers = [([5, EOS], "correct"), ([6, EOS], "wrong"), ([5, EOS], "correct"), ([7, EOS], "wrong")]

    def chosen(places: list[int], duplicates: str) -> LearningGroup:
        completions = [Completion(answers[i][0], [-0.5, -0.25 * i], True) for i in places]
        group = scored(0, [3], completions, [answers[i][1] for i in places], 0)
        advantage = {"kind": kind, "duplicates": duplicates, "k": 2}
        config = train_config(algorithm="grpo", advantage=advantage, rollout={"skip_uninformative": True})
        return choose_groups([group], config).learning[0]

    once, counted = chosen([0, 1, 2, 3], "once"), chosen([0, 1, 2, 3], "count")
    assert once == chosen([0, 1, 3], "count") and len(counted.completions) == 4
    assert once.advantages[0] != counted.advantages[0]


def test_a_group_of_one_completion_again_and_again_is_not_learned_from_where_that_counts_once() -> None:
    completions = [Completion([5, EOS], [-0.5, -0.25], True)] * 3
    group = scored(0, [3], completions, ["correct", "wrong", "wrong"], 0)  # as a check would that is not exact
    for duplicates, used in (("once", 0), ("count", 1)):
        config = train_config(
            algorithm="grpo", advantage={"duplicates": duplicates}, rollout={"skip_uninformative": True}
        )
        assert len(choose_groups([group], config).learning) == used
