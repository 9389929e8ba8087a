"""What learner 0 keeps of each step: before the step's checkpoint is there, and the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from learner_cases import TOKENIZER, ScriptedSource, make_trainer, tiny_policy, train_config
from sampled_runs import new_run

from bgrpo.learning.learner_state import policy_folder
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.samples import SampleReader, SampleWriter
from bgrpo.tasks.base import Problem

PROBLEMS = [Problem(prompt=f"prompt {number}") for number in range(10)]
STEPS, CUT = 5, 2


def learn(run: RunFolder, resume: Path | None, **rollout: Any) -> CheckpointStore:
    config = train_config(
        steps=STEPS, checkpoint={"every": CUT, "keep": 9}, rollout=rollout, learner={"max_grad_norm": 0.1}
    )
    store = CheckpointStore(run.checkpoints, keep=9)
    samples = SampleWriter(run, PROBLEMS, TOKENIZER, 2)
    samples.truncate_after(0 if resume is None else CheckpointStore.step_of(resume))
    policy = None if resume is None else load_policy(str(policy_folder(resume))).model
    trainer = make_trainer(
        config, ScriptedSource(), run.path / "trl", policy=policy, reference=tiny_policy(), store=store, resume=resume,
        keep_samples=samples.write,
    )  # fmt: skip
    trainer.run()
    return store


@pytest.mark.parametrize("rollout", [{}, {"max_staleness": 1}, {"skip_uninformative": True, "max_extra_draws": 1}])
def test_samples_of_a_resumed_run_equal_an_undisturbed_ones(tmp_path: Path, rollout: dict[str, Any]) -> None:
    run = new_run(tmp_path)
    learn(run, None, **rollout)
    (path,) = run.samples.iterdir()
    whole = path.read_bytes()
    groups = list(SampleReader(run))
    assert [(group.step, group.group) for group in groups] == [(step, n) for step in range(1, 6) for n in range(2)]
    for group in groups:
        assert group.prompt == f"prompt {group.problem}"
        advantages = [completion.advantage for completion in group.completions]
        rewards = [completion.reward for completion in group.completions]
        if None not in advantages:  # advantage.kind is mean
            mean = sum(rewards) / len(rewards)
            assert advantages == pytest.approx([reward - mean for reward in rewards], abs=1e-6)
        else:
            assert len(set(rewards)) == 1 and rollout.get("skip_uninformative")

    learn(run, run.checkpoints / f"step-{CUT:08d}", **rollout)
    assert path.read_bytes() == whole


def test_a_steps_samples_are_there_before_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it saves, a run has no checkpoint whose steps lack samples."""
    run, seen = new_run(tmp_path), []
    save = CheckpointStore.save

    def noted(store: CheckpointStore, step: int, *arguments: Any, **named: Any) -> Path:
        seen.append((step, max(group.step for group in SampleReader(run))))
        return save(store, step, *arguments, **named)

    monkeypatch.setattr(CheckpointStore, "save", noted)
    learn(run, None)
    assert seen == [(2, 2), (4, 4), (5, 5)]
