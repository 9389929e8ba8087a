"""A scorer that fails: what a step tells of it, and that nothing is learned where nothing was judged."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learner_cases import ScriptedSource, flat_weights, make_trainer, tiny_policy, train_config

from bgrpo.errors import UserError
from bgrpo.groups import ScoredGroup, Verdict
from bgrpo.runs.checkpoints import CheckpointStore


class FailingSource(ScriptedSource):
    """Every check fails in one step; in the others, one of a group's first completion does."""

    def __init__(self, failing_step: int | None) -> None:
        super().__init__(outcome=lambda rng: rng.choice(["correct", "wrong"]))
        self._failing_step = failing_step

    def group(self, step: int, index: int, draw: int, version: int) -> ScoredGroup:
        group = super().group(step, index, draw, version)
        failed = Verdict("error", detail=f"TypeError: in step {step + 1}")
        late = Verdict(random.Random(index).choice(["timeout", "error"]), detail="late")
        if step == self._failing_step:
            verdicts = [failed, *[late] * len(group.completions)]
        else:
            verdicts = [failed, *(completion.verdict for completion in group.completions[1:])]
        pairs = zip(group.completions, verdicts, strict=False)
        return replace(group, completions=[replace(completion, verdict=verdict) for completion, verdict in pairs])


def test_a_step_tells_its_first_failure(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = []
    make_trainer(train_config(steps=2), FailingSource(None), tmp_path, on_step=steps.append).run()
    assert [step["details"] for step in steps] == [{"error": "TypeError: in step 1"}, {"error": "TypeError: in step 2"}]
    assert [step["outcome/error"] for step in steps] == [4.0, 4.0]


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("every", [1, 100])
def test_a_step_whose_checks_all_fail_ends_the_run_before_its_update(
    staleness: int, every: int, tmp_path: Path
) -> None:
    """With rollouts ahead too: the groups that nobody judged must not lie in a checkpoint that a resumed run reads."""
    source, store, policy = FailingSource(2), CheckpointStore(tmp_path / "checkpoints", keep=9), tiny_policy()
    config = train_config(steps=5, rollout={"max_staleness": staleness}, checkpoint={"every": every})
    trainer = make_trainer(config, source, tmp_path, policy=policy, store=store)
    with pytest.raises(UserError, match=r"^step 3: no check came to a verdict, .*the first: TypeError: in step 3"):
        trainer.run()
    assert source.published == [0, 1, 2]
    assert (flat_weights(policy) == source.weights[2]).all()
    saved = sorted(store.step_of(path) for path in store.directory.iterdir()) if store.directory.exists() else []
    assert saved == ([] if every == 100 else [1] if staleness else [1, 2])
