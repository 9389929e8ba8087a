"""``rollout.max_staleness``: planned versions, the rollouts' own log-probs as the old policy, and exact resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import (
    TOKENIZER,
    ScriptedSource,
    flat_gradient,
    flat_weights,
    make_trainer,
    row_by_row_loss,
    tiny_policy,
    train_config,
)
from transformers import PreTrainedModel

from bgrpo.errors import UserError
from bgrpo.groups import Verdict
from bgrpo.learning.batch import LearningGroup, Minibatch
from bgrpo.learning.forward_pass import Scoring
from bgrpo.learning.learner_state import policy_folder
from bgrpo.learning.packing import packed_logps
from bgrpo.learning.prompt_order import indices_of_draw
from bgrpo.learning.rollout_mismatch import RolloutCorrection
from bgrpo.learning.rollout_source import LocalRolloutSource
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.scoring.attempts import Attempt
from bgrpo.scoring.rewards import RewardRule, group_rewards
from bgrpo.tasks.base import Problem

STEPS, CUT = 6, 2
PROBLEMS = [Problem(prompt=" ".join(f"t{2 + (7 * i + j) % 29}" for j in range(1 + i % 5))) for i in range(10)]
AHEAD: dict[str, Any] = {
    "steps": STEPS,
    "rollout": {"max_staleness": 1, "skip_uninformative": True, "max_extra_draws": 2},
    "checkpoint": {"every": CUT, "keep": 9},
    "learner": {"num_iterations": 2, "minibatches": 2, "max_grad_norm": 0.5, "max_kl": 1e6},
}


def even_sum(items: Sequence[Attempt]) -> list[Verdict]:
    """Correct rarely enough for some groups to have no signal, so that further prompts are drawn."""
    right = {True: "correct", False: "wrong"}
    return [Verdict(right[sum(item.text.encode()) % 11 < 1] if item.finished else "truncated") for item in items]


class RecordedSource(LocalRolloutSource):
    """Decodes in this process; notes what it was asked for and which weights it was given."""

    def __init__(self, config: Any) -> None:
        super().__init__(PROBLEMS, TOKENIZER, config, even_sum)
        self.weights: dict[int, torch.Tensor] = {}
        self.asked: list[tuple[int, int, int]] = []

    def publish(self, version: int, model: PreTrainedModel) -> None:
        self.weights[version] = flat_weights(model)
        super().publish(version, model)

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> Any:
        self.asked.append((step, version, draw))
        return super().collect(step, version, indices, draw)


WholeRun = tuple[RecordedSource, CheckpointStore, list[dict[str, float]]]
"""Its source, its checkpoints, and the metrics of its steps."""


def whole_run(folder: Path, **changes: Any) -> WholeRun:
    config = train_config(**(AHEAD | changes))
    source, store, steps = RecordedSource(config), CheckpointStore(folder / "checkpoints", keep=9), []
    make_trainer(config, source, folder, store=store, on_step=steps.append).run()
    return source, store, steps


def resumed_run(folder: Path, checkpoint: Path, /, **changes: Any) -> RecordedSource:
    config = train_config(**(AHEAD | changes))
    source, store = RecordedSource(config), CheckpointStore(folder / "resumed", keep=9)
    policy = load_policy(str(policy_folder(checkpoint))).model
    make_trainer(
        config, source, folder, policy=policy, reference=tiny_policy(), store=store, resume=checkpoint
    ).run()  # fmt: skip
    return source


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """An uninterrupted run, made once."""
    return whole_run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("staleness", [1, 2, 3, 8])
def test_each_step_is_decoded_by_the_planned_version_and_asked_for_that_much_ahead(
    tmp_path: Path, staleness: int
) -> None:
    source, steps = ScriptedSource(), []
    config = train_config(steps=6, rollout={"max_staleness": staleness}, learner={"max_kl": 1e6})
    begun_at: list[int] = []
    source.prefetch = lambda *asked: (begun_at.append(source.published[-1]), source.prefetched.append(asked))  # type: ignore[method-assign]
    make_trainer(config, source, tmp_path, on_step=steps.append).run()
    assert [(step, version) for step, version, _, _ in source.asked] == [(t, max(0, t - staleness)) for t in range(6)]
    assert source.prefetched == [(step, version, indices) for step, version, indices, _ in source.asked[1:]]
    assert begun_at == [version for _, version, _ in source.prefetched], "a step is begun once its weights are there"
    expected = [min(step, staleness) for step in range(6)]
    assert [line["staleness"] for line in steps] == [line["staleness_mean"] for line in steps] == expected


def test_without_staleness_nothing_is_asked_for_ahead(tmp_path: Path) -> None:
    source = ScriptedSource()
    store = CheckpointStore(tmp_path / "checkpoints", keep=9)
    make_trainer(train_config(steps=3, checkpoint={"every": 1}), source, tmp_path, store=store).run()
    assert source.prefetched == []
    assert [(step, version) for step, version, _, _ in source.asked] == [(0, 0), (1, 1), (2, 2)]
    assert not list(store.directory.rglob("rollouts.json"))


@pytest.mark.parametrize("offset", [-1, 1])
def test_rollouts_of_other_weights_than_planned_are_refused(tmp_path: Path, offset: int) -> None:
    """Fresher ones too: what a run computes must not depend on timing."""

    class Moody(ScriptedSource):
        def collect(self, step: int, version: int, indices: list[int], draw: int) -> Any:
            self.version_offset = offset if step == 2 else 0
            return super().collect(step, version, indices, draw)

    with pytest.raises(RuntimeError, match=rf"decoded by version {1 + offset} .* step 2 learns .* version 1"):
        make_trainer(train_config(steps=4, rollout={"max_staleness": 1}), Moody(), tmp_path).run()


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_old_policy_is_the_rollout_s_own_log_probs(tmp_path: Path, minibatches: int) -> None:
    """The scripted log-probs are far from the policy's, so that most ratios are clipped."""
    config = train_config(
        steps=1, rollout={"max_staleness": 1}, learner={"beta": 0.05, "minibatches": minibatches, "micro_groups": 1}
    )
    source = ScriptedSource()
    trainer = make_trainer(config, source, tmp_path, reference=tiny_policy(seed=1))
    trainer.run()
    step, version, indices, draw = source.asked[0]
    groups = [source.group(step, index, draw, version) for index in indices][::minibatches]
    values = []
    for group in groups:
        rewards = group_rewards([Verdict(outcome) for outcome in group.outcomes], RewardRule("rank", 5.0))
        values.append([reward - sum(rewards) / len(rewards) for reward in rewards])
    policy = tiny_policy()
    row_by_row_loss(
        policy, groups, values, beta=0.05, reference=tiny_policy(seed=1),
        old=lambda g, k: torch.tensor(groups[g].completions[k].logprobs),
    ).backward()  # fmt: skip
    expected = flat_gradient(policy)
    assert (trainer.gradients[0] - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(("algorithm", "temperature"), [("bgrpo", 1.0), ("grpo", 0.5), ("grpo", 1.7)])
def test_the_ratio_is_one_where_the_learner_holds_the_rollout_s_weights(
    algorithm: str, temperature: float, tmp_path: Path
) -> None:
    config = train_config(steps=1, algorithm=algorithm, rollout={"max_staleness": 1, "temperature": temperature})
    trainer = make_trainer(config, LocalRolloutSource(PROBLEMS, TOKENIZER, config, even_sum), tmp_path)
    trainer.run()
    ((inputs,),) = trainer._step_inputs
    with torch.no_grad():
        new_BC = packed_logps(tiny_policy(), inputs["packed"], Scoring(temperature))[0]
    ratio_BC = (new_BC - inputs["old_per_token_logps"]).exp()
    assert inputs["packed"].mask_BC.sum() > 50
    assert (ratio_BC - 1).abs().max() < 1e-4
    assert not inputs["old_per_token_logps"][~inputs["packed"].mask_BC].any()


def test_places_of_the_rollouts_log_probs(tmp_path: Path) -> None:
    """Ragged completions, a row beyond them, and an empty cut."""
    trainer = make_trainer(train_config(rollout={"max_staleness": 1}), ScriptedSource(), tmp_path)
    group = LearningGroup([3], [[5, 6, 1], [7, 1]], [[-1.0, -2.0, -3.0], [-4.0, -5.0]], [0.5, -0.5])
    minibatch = Minibatch([[group], []], tokens=5, rows=2, cut_tokens=[5, 9], cut_rows=[3, 2], cut_completions=[2, 4])
    whole, empty = trainer._make_inputs.of_step(
        [minibatch], RolloutCorrection(trainer._run_config.learner.rollout_correction)
    )[0]
    assert whole["old_per_token_logps"].tolist() == [[-1, -2, -3], [-4, -5, 0], [0, 0, 0]]
    assert not empty["old_per_token_logps"].any() and not empty["completion_mask"].any()


@pytest.mark.parametrize("staleness", [1, 3])
def test_interrupted_equals_uninterrupted_bit_for_bit(whole: WholeRun, tmp_path: Path, staleness: int) -> None:
    """With further draws, whose weights a resumed run would not have; a resumed run is interrupted again."""
    rollout = AHEAD["rollout"] | {"max_staleness": staleness}
    uninterrupted, store, steps = whole if staleness == 1 else whole_run(tmp_path, rollout=rollout)
    assert any(draw > 0 for step, _, draw in uninterrupted.asked if step % CUT == 0 and step), "the case is too easy"
    again = tmp_path / str(CUT) / "resumed" / f"step-{2 * CUT:08d}"
    for cut, checkpoint in ((CUT, store.directory / f"step-{CUT:08d}"), (2 * CUT, again)):
        source = resumed_run(tmp_path / str(cut), checkpoint, rollout=rollout)
        asked = {asked for asked in uninterrupted.asked if asked[0] >= cut + staleness}
        assert set(source.asked) == asked, "a checkpoint holds the steps before"
        for version in range(cut, STEPS + 1):
            assert torch.equal(source.weights[version], uninterrupted.weights[version]), f"version {version} differs"
    assert max(step["staleness"] for step in steps) == staleness


def test_a_run_that_is_made_longer_when_its_checkpoint_holds_too_few_steps(tmp_path: Path) -> None:
    """The steps beyond take the weights that there are, and a further checkpoint of that is one to go on from."""
    rollout = AHEAD["rollout"] | {"max_staleness": 3, "max_extra_draws": 0}
    _, store, _ = whole_run(tmp_path, rollout=rollout)
    longer = {"steps": STEPS + 3, "checkpoint": {"every": 1, "keep": 9}, "rollout": rollout}
    first = resumed_run(tmp_path / "longer", store.directory / f"step-{2 * CUT:08d}", **longer)
    assert [asked[:2] for asked in first.asked] == [(6, 4), (7, 4), (8, 5)]
    again = resumed_run(tmp_path / "again", tmp_path / "longer" / "resumed" / f"step-{2 * CUT + 1:08d}", **longer)
    assert torch.equal(first.weights[STEPS + 3], again.weights[STEPS + 3])


def test_a_run_without_checkpoints_learns_the_same(whole: WholeRun, tmp_path: Path) -> None:
    often, rarely = whole[0], whole_run(tmp_path, checkpoint={"every": 50})[0]
    assert torch.equal(often.weights[STEPS], rarely.weights[STEPS])
    assert sorted(often.asked) == sorted(rarely.asked)


def test_more_steps_continue_a_finished_run_with_fresh_rollouts(whole: WholeRun, tmp_path: Path) -> None:
    store = whole[1]
    last = store.directory / f"step-{STEPS:08d}"
    assert not (last / "rollouts.json").exists()
    source = resumed_run(tmp_path, last, steps=STEPS + 2)
    assert {(step, version) for step, version, _ in source.asked} == {(STEPS, STEPS), (STEPS + 1, STEPS)}


@pytest.mark.parametrize(
    "fault",
    ["other problem", "other version", "one missing", "not json", "other fields", "older weights", "more steps"],
)
def test_groups_that_are_not_the_next_step_s_are_refused(whole: WholeRun, tmp_path: Path, fault: str) -> None:
    checkpoint = shutil.copytree(whole[1].directory / f"step-{CUT:08d}", tmp_path / f"step-{CUT:08d}")
    path = checkpoint / "rollouts.json"
    (groups,) = steps = json.loads(path.read_text())
    assert [group["index"] for group in groups[:4]] == indices_of_draw(train_config(**AHEAD), CUT, len(PROBLEMS))
    if fault == "other problem":
        groups[1]["index"] += 1
    elif fault == "other version":
        groups[0]["version"] += 1
    elif fault == "one missing":
        groups.pop()
    elif fault == "other fields":
        groups[2]["completions"][0]["token"] = groups[2]["completions"][0].pop("tokens")
    elif fault == "older weights":
        steps[0] = [group | {"version": group["version"] - 1} for group in groups]
    elif fault == "more steps":
        steps.append(groups)
    path.write_text("[" if fault == "not json" else json.dumps(steps))
    with pytest.raises(UserError, match=rf"{path}: not the rollouts of step {CUT} .*remove this checkpoint"):
        resumed_run(tmp_path, checkpoint)


def test_rollouts_of_an_earlier_layout_are_refused_with_what_to_do(tmp_path: Path) -> None:
    _, store, _ = whole_run(tmp_path)
    checkpoint = store.directory / f"step-{CUT:08d}"
    old = {"index": 0, "prompt_ids": [2], "completions": [], "outcomes": [], "version": 1, "scores": None}
    (checkpoint / "rollouts.json").write_text(json.dumps([old]))
    with pytest.raises(UserError, match=rf"earlier bgrpo.*policy\.path={policy_folder(checkpoint)}"):
        resumed_run(tmp_path, checkpoint)


def test_rollouts_ahead_in_the_layout_of_one_step_are_read(whole: WholeRun, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(whole[1].directory / f"step-{CUT:08d}", tmp_path / f"step-{CUT:08d}")
    (groups,) = json.loads((checkpoint / "rollouts.json").read_text())
    (checkpoint / "rollouts.json").write_text(json.dumps(groups))
    assert torch.equal(resumed_run(tmp_path, checkpoint).weights[STEPS], whole[0].weights[STEPS])


def test_no_more_than_eight_versions_can_be_asked_for() -> None:
    for bound in (-1, 9):
        with pytest.raises(UserError, match=r"rollout\.max_staleness"):
            train_config(rollout={"max_staleness": bound})
