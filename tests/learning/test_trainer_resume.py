"""Interrupted = uninterrupted, bit for bit, across the end of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config

from bgrpo.errors import UserError
from bgrpo.learning.checkpoint import policy_folder
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


def whole_run(folder: Path) -> tuple[ScriptedSource, Any, CheckpointStore]:
    source, store = ScriptedSource(), CheckpointStore(folder / "checkpoints", keep=9)
    trainer = make_trainer(train_config(**SECTIONS), source, folder, store=store)
    trainer.run()
    return source, trainer, store


def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole, trainer, store = whole_run(tmp_path)
    source = ScriptedSource()
    second_half = CheckpointStore(tmp_path / "again", keep=9)
    resumed = resume(second_half, source, tmp_path, store.directory / f"step-{CUT:08d}")
    resumed.run()

    assert source.published == [2, 3, 4, 5, 6]
    assert source.asked == whole.asked[CUT:], "the resumed run must go on with the next unseen prompts"
    for version in source.published:
        assert torch.equal(source.weights[version], whole.weights[version]), f"version {version} differs"
    expected = trainer.gradients[4 * CUT :]
    assert len(resumed.gradients) == len(expected) == 4 * (STEPS - CUT)
    assert all(torch.equal(a, b) for a, b in zip(resumed.gradients, expected, strict=True))


def test_two_runs_of_one_configuration_are_equal(tmp_path: Path) -> None:
    first, second = whole_run(tmp_path / "a")[0], whole_run(tmp_path / "b")[0]
    assert torch.equal(first.weights[STEPS], second.weights[STEPS])


def test_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    store = whole_run(tmp_path)[2]
    source, latest = ScriptedSource(), store.latest()
    assert latest is not None
    resume(store, source, tmp_path, latest).run()
    assert source.asked == [] and source.published == []


def test_more_steps_continue_a_finished_run(tmp_path: Path) -> None:
    whole, _, store = whole_run(tmp_path)
    source, latest = ScriptedSource(), store.latest()
    assert latest is not None
    resume(store, source, tmp_path, latest, steps=STEPS + 2).run()
    assert [asked[0] for asked in source.asked] == [6, 7]
    assert torch.equal(source.weights[6], whole.weights[6])


def test_a_checkpoint_of_another_prompt_order_is_refused(tmp_path: Path) -> None:
    store = whole_run(tmp_path)[2]
    latest = store.latest()
    assert latest is not None
    with pytest.raises(UserError, match=r"saved with seed=0, but the run has seed=1.*resume with seed=0"):
        resume(store, ScriptedSource(), tmp_path, latest, seed=1)
    with pytest.raises(UserError, match=r"rollout\.prompts_per_step=4, but the run has rollout\.prompts_per_step=8"):
        resume(store, ScriptedSource(), tmp_path, latest, rollout={"prompts_per_step": 8})


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    store = whole_run(tmp_path)[2]
    latest = store.latest()
    assert latest is not None
    (latest / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json is missing, so this is not a training run's checkpoint"):
        resume(store, ScriptedSource(), tmp_path, latest)


def test_the_reference_is_the_starting_policy_not_the_checkpoint(tmp_path: Path) -> None:
    store = whole_run(tmp_path)[2]
    latest = store.latest()
    assert latest is not None
    with pytest.raises(UserError, match="needs the starting policy too"):
        make_trainer(train_config(**SECTIONS), ScriptedSource(), tmp_path, store=store, resume=latest)
