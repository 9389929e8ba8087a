"""Interrupted = uninterrupted, bit for bit, across the end of an epoch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config

from bgrpo.errors import UserError
from bgrpo.learning.learner_state import policy_folder
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore

STEPS, CUT, PROBLEMS = 6, 2, 10  # four prompts a step: the first epoch ends within the third step
SECTIONS: dict[str, Any] = {
    "steps": STEPS,
    "checkpoint": {"every": CUT, "keep": 9},
    "learner": {"num_iterations": 2, "minibatches": 2, "warmup_steps": 3, "schedule": "cosine", "max_grad_norm": 0.1},
}


def resume(store: CheckpointStore, source: ScriptedSource, folder: Path, checkpoint: Path, **changes: Any) -> Any:
    policy = load_policy(str(policy_folder(checkpoint))).model
    config = train_config(**(SECTIONS | changes))
    return make_trainer(config, source, folder, policy=policy, reference=tiny_policy(), store=store, resume=checkpoint)


def whole_run(folder: Path) -> tuple[ScriptedSource, Any]:
    source, store = ScriptedSource(), CheckpointStore(folder / "checkpoints", keep=9)
    trainer = make_trainer(train_config(**SECTIONS), source, folder, store=store)
    trainer.run()
    return source, trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScriptedSource, Any]:
    """The folder of an uninterrupted run, what it published, and its trainer."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *whole_run(folder)


@pytest.fixture
def store(whole: tuple[Path, ScriptedSource, Any], tmp_path: Path) -> CheckpointStore:
    """A copy of its checkpoints, to go on from."""
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    return CheckpointStore(tmp_path / "checkpoints", keep=9)


def latest(store: CheckpointStore) -> Path:
    newest = store.latest()
    assert newest is not None
    return newest


def test_interrupted_equals_uninterrupted_bit_for_bit(
    whole: tuple[Path, ScriptedSource, Any], store: CheckpointStore, tmp_path: Path
) -> None:
    _, uninterrupted, trainer = whole
    source = ScriptedSource()
    second_half = CheckpointStore(tmp_path / "again", keep=9)
    resumed = resume(second_half, source, tmp_path, store.directory / f"step-{CUT:08d}")
    resumed.run()

    assert source.published == [2, 3, 4, 5, 6]
    assert source.asked == uninterrupted.asked[CUT:], "the resumed run must go on with the next unseen prompts"
    for version in source.published:
        assert torch.equal(source.weights[version], uninterrupted.weights[version]), f"version {version} differs"
    expected = trainer.gradients[4 * CUT :]
    assert len(resumed.gradients) == len(expected) == 4 * (STEPS - CUT)
    assert all(torch.equal(a, b) for a, b in zip(resumed.gradients, expected, strict=True))


def test_two_runs_of_one_configuration_are_equal(whole: tuple[Path, ScriptedSource, Any], tmp_path: Path) -> None:
    assert torch.equal(whole_run(tmp_path)[0].weights[STEPS], whole[1].weights[STEPS])


def test_a_finished_run_resumes_to_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    source = ScriptedSource()
    resume(store, source, tmp_path, latest(store)).run()
    assert source.asked == [] and source.published == []


def test_more_steps_continue_a_finished_run(
    whole: tuple[Path, ScriptedSource, Any], store: CheckpointStore, tmp_path: Path
) -> None:
    source = ScriptedSource()
    resume(store, source, tmp_path, latest(store), steps=STEPS + 2).run()
    assert [asked[0] for asked in source.asked] == [6, 7]
    assert torch.equal(source.weights[6], whole[1].weights[6])


def test_a_checkpoint_of_another_prompt_order_is_refused(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"saved with seed=0, but the run has seed=1.*resume with seed=0"):
        resume(store, ScriptedSource(), tmp_path, latest(store), seed=1)
    with pytest.raises(UserError, match=r"rollout\.prompts_per_step=4, but the run has rollout\.prompts_per_step=8"):
        resume(store, ScriptedSource(), tmp_path, latest(store), rollout={"prompts_per_step": 8})


def test_a_checkpoint_of_something_else_is_refused(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoint = latest(store)
    (checkpoint / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json is missing, so this is not a training run's checkpoint"):
        resume(store, ScriptedSource(), tmp_path, checkpoint)


def test_the_reference_is_the_starting_policy_not_the_checkpoint(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the starting policy too"):
        make_trainer(train_config(**SECTIONS), ScriptedSource(), tmp_path, store=store, resume=latest(store))
