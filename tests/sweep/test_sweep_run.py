"""A whole sweep on Ray Tune: search, a trial that is cut, one that diverges, confirmation, records, report."""

from __future__ import annotations

import json
import os

import pytest
import ray
from sweep_runs import tiny_sweep

from bgrpo.config import TrainConfig
from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.sweep_driver import SweepResult, run_sweep
from bgrpo.sweep.sweep_plan import Trial

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(600),
]
STEPS = 24
GOOD, RUINOUS = 1e-5, 3e-2


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Two arms. One searches a good learning rate and a ruinous one; all trials of the other pass their KL bound."""
    sweep = tiny_sweep(
        tmp_path_factory.mktemp("sweeps"),
        "tiny",
        arms={
            "bgrpo": {"set": {"algorithm": "bgrpo"}},
            "strict": {
                "set": {"algorithm": "grpo", "learner.max_kl": 1e-12},
                "space": {"learner.learning_rate": {"values": [GOOD, 2 * GOOD]}},
            },
        },
        space={"learner.learning_rate": {"values": [GOOD, RUINOUS]}},
        searcher="grid",
        scheduler="asha",
        grace=0.15,
        reduction_factor=2,
        budget={"kind": "steps", "amount": STEPS},
        max_concurrent=2,
        train={"evaluation": {"every": 4}, "checkpoint": {"every": 100}},
    )
    return run_sweep(sweep)


def trials(result: SweepResult) -> dict[str, Trial]:
    return {trial.id: trial for trial in result.folder.read_plan().trials}


def test_the_worse_trial_is_cut_and_a_diverging_arm_does_not_hold_the_other(done: SweepResult) -> None:
    found = trials(done)
    good, ruinous = found["bgrpo-search-00-seed0"], found["bgrpo-search-01-seed0"]
    assert good.state == "finished" and ruinous.state == "stopped"
    assert good.overrides["learner.learning_rate"] == GOOD
    assert "cut by asha" in ruinous.reason
    for name in ("strict-search-00-seed0", "strict-search-01-seed0"):
        assert found[name].state == "failed"
        assert (
            found[name].diverged and "diverged" in found[name].reason and "learner.max_kl=1e-12" in found[name].reason
        )
    assert done.trials == {"finished": 2, "stopped": 1, "failed": 2, "running": 0, "pending": 0}
    assert done.state == "finished"


def test_the_best_point_is_confirmed_on_the_test_problems_which_no_search_trial_touches(done: SweepResult) -> None:
    assert done.selection.keys() == {"bgrpo"}
    assert done.selection["bgrpo"]["trial"] == "bgrpo-search-00-seed0"
    for trial in trials(done).values():
        run = RunFolder(done.folder.trials / trial.id)
        config = run.load_config(TrainConfig)
        assert run.evaluation_path.exists() == (trial.phase == "confirm")
        assert config.seed == trial.seed
        assert trial.resources == {"CPU": 1.0, "GPU": 0.0}
        assert trial.cpu_seconds == pytest.approx(trial.seconds)
        if trial.state == "finished":
            last = run.metrics()[-1]
            assert last["step"] == last["used/steps"] == last["used/gradient_steps"] == STEPS
            assert last["used/completions"] == STEPS * 8 < last["used/tokens"]
            assert trial.value == last["validation/beam_rank_score"]


def test_mlflow_has_a_run_per_trial_under_the_sweeps(done: SweepResult) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{done.folder.path.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bgrpo")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["tiny"].info.status == "FINISHED"
    assert trials(done).keys() == runs.keys() - {"tiny"}
    for trial in trials(done).values():
        run = runs[trial.id]
        assert run.data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
        tags = {key: run.data.tags[key] for key in ("algorithm", "arm", "seed", "phase", "sweep")}
        expected = {
            "algorithm": trial.overrides["algorithm"],
            "arm": trial.algorithm,
            "seed": str(trial.seed),
            "phase": trial.phase,
            "sweep": "tiny",
        }
        assert tags == expected
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[trial.state]


def test_report_and_event_files_are_there(done: SweepResult) -> None:
    assert done.report is not None and done.report.read_text("utf-8").lstrip().lower().startswith("<!doctype html")
    for name in (name for name, trial in trials(done).items() if trial.state == "finished"):
        (events,) = (done.folder.path / "tensorboard" / name).iterdir()
        assert b"validation/beam_rank_score" in events.read_bytes()
    versions = json.loads((done.folder.path / "versions.json").read_text())
    assert versions["versions"]["ray"] == ray.__version__ and versions["machine"]["cores"] == os.cpu_count()
