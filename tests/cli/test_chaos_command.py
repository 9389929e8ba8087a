"""What ``bgrpo chaos`` makes of its arguments before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgrpo.chaos.disturbed_run import steps_for
from bgrpo.cli.app import main
from bgrpo.cli.chaos import prepare_config
from bgrpo.config import TrainConfig, load_config
from bgrpo.runs.run_folder import CHANGEABLE_ON_RESUME, RunFolder, flatten


def test_only_bounds_are_changed_and_the_users_stay() -> None:
    given = load_config(TrainConfig, "quickstart")
    prepared = prepare_config(given)
    before, after = (flatten(config.model_dump()) for config in (given, prepared))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"learner.max_failures"} and changed <= set(CHANGEABLE_ON_RESUME)
    override = "learner.max_failures=7000"
    assert prepare_config(load_config(TrainConfig, None, [override])).learner.max_failures == 7000


def finished_run(folder: Path) -> RunFolder:
    run = RunFolder.create(load_config(TrainConfig, None, [f"run.dir={folder}", "run.name=calm", "steps=5"]), None)
    run.policy.mkdir()
    (run.policy / "model.safetensors").touch()
    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [("seed=3", "cannot be resumed with seed=3"), ("rollout.group_size=4", "rollout.group_size=4 (the run has 10)")],
)
def test_a_given_run_of_another_configuration_is_refused(
    tmp_path: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(tmp_path)
    assert main(["chaos", "--undisturbed", "calm", f"run.dir={tmp_path}", change]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["calm"]


def test_a_run_that_came_to_no_policy_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished_run(tmp_path).policy / "model.safetensors").unlink()
    assert main(["chaos", "--undisturbed", str(tmp_path / "calm"), f"run.dir={tmp_path}"]) == 2
    assert "has no final policy; resume it first" in capsys.readouterr().err


def test_minutes_become_steps_by_the_pace_after_the_warm_up(tmp_path: Path) -> None:
    pace = RunFolder(tmp_path)
    for step in range(1, 13):
        pace.append_metrics(step, {"seconds/total": 9.0 if step <= 4 or step == 7 else 0.5})
    assert steps_for(3.0, pace) == 180  # 360 such steps, half of the time for recoveries
    assert steps_for(0.01, pace) == 12
