"""Whatever the files of a sweep's or a run's folder hold: every reader gives a result, or one bounded line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damaged_files import damage
from fabricated_sweep import Arm, Fabrication, fabricate_sweep
from sweep_configs import sweep_config

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.evaluation import intervals
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation
from bgrpo.runs.learning_signal import conclusions
from bgrpo.runs.preparation import load_problems
from bgrpo.runs.run_folder import RunFolder, load_resumed_config
from bgrpo.sweep.report import beam_widths, paired_statistics
from bgrpo.sweep.report.sweep_records import read_steps, read_sweep
from bgrpo.sweep.report.sweep_report import finite, summary_tree
from bgrpo.sweep.report.sweep_summary import summarize
from bgrpo.sweep.sweep_folder import SweepFolder, load_resumed_sweep, settle_interrupted
from bgrpo.sweep.sweep_plan import Plan, retry_failed
from bgrpo.sweep.trial_configs import TrialConfigs
from bgrpo.tasks.base import Problem
from bgrpo.tasks.problem_files import write_problems
from bgrpo.training.metrics_tail import MetricsTail

LONGEST = 1500  # characters of a message


def report_a_sweep(folder: Path) -> None:
    json.dumps(finite(summary_tree(summarize(read_sweep(folder)))), allow_nan=False)


def resume_a_sweep(folder: Path) -> None:
    sweep, found = load_resumed_sweep(str(folder), [])
    configs = TrialConfigs(sweep, found.trials)
    configs.check()
    saved = found.read_plan()
    settle_interrupted(saved.trials, found.trials, sweep.metric)
    retry_failed(saved.trials)
    plan = Plan(sweep, saved.trials)
    assert isinstance(plan.is_done, bool)
    json.dumps(plan.selection())


def report_a_run(folder: Path) -> None:
    run = RunFolder(folder)
    config = run.load_config(TrainConfig)
    if run.evaluation_path.is_file():
        EvaluationComparison.load(run.evaluation_path).rows()
    conclusions(config, read_steps(run.metrics_path, []))


def resume_a_run(folder: Path) -> None:
    load_resumed_config(TrainConfig, str(folder), [])
    load_problems(RunFolder(folder))
    Evaluation.load(folder / "evaluation-before.json").metrics()


def follow_a_run(folder: Path) -> None:
    for step, metrics, _ in MetricsTail(folder / "metrics.jsonl").new_steps():
        assert step > 0 and all(isinstance(value, int | float) for value in metrics.values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a finished sweep and a run."""
    runs = tmp_path_factory.mktemp("runs")
    arms = {"grpo": Arm("grpo"), "bgrpo": Arm("bgrpo", 1.5)}
    sweep = fabricate_sweep(runs / "sweep", Fabrication(arms, seeds=2, problems=4, steps=5, points=1))
    config = sweep_config(
        run={"dir": str(runs), "name": "sweep"},
        confirm_seeds=2,
        arms={name: {"set": {"algorithm": name}} for name in arms},
    )
    SweepFolder(sweep).write_config(config)
    (sweep / "trials" / "grpo-search-00-seed0" / "run.json").write_text('{"status": "running"}')
    plan = json.loads((sweep / "trials.json").read_text("utf-8"))
    plan["trials"][0] |= {"state": "running", "since": 1.0, "ended": None}
    (sweep / "trials.json").write_text(json.dumps(plan), "utf-8")
    run = RunFolder.create(TrainConfig.model_validate({"run": {"dir": str(runs), "name": "run"}}), None)
    trial = sweep / "trials" / "grpo-confirm-seed1000"
    for name in ("metrics.jsonl", "evaluation.json"):
        shutil.copy(trial / name, run.path / name)
    before = json.loads((trial / "evaluation.json").read_text("utf-8"))["before"]
    (run.path / "evaluation-before.json").write_text(json.dumps(before), "utf-8")
    for split in ("train", "validation", "test"):
        write_problems(run.data / f"{split}.jsonl", [Problem(f"{split} {number}", "a", "b") for number in range(4)])
    return runs


READERS: dict[str, tuple[str, list[Callable[[Path], None]]]] = {
    "sweep": ("sweep", [report_a_sweep, resume_a_sweep]),
    "run": ("run", [report_a_run, resume_a_run, follow_a_run]),
}


@pytest.mark.parametrize("cases", [100, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", READERS)
def test_any_damage_ends_in_a_result_or_in_a_line(
    kind: str, cases: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, readers = READERS[kind]
    for module, number in ((beam_widths, "RESAMPLES"), (intervals, "RESAMPLES"), (paired_statistics, "FLIPS")):
        monkeypatch.setattr(module, number, 10)
    for reader in readers:
        reader(whole / name)  # all is well before
    assert kind != "sweep" or read_sweep(whole / name).notes == []
    shutil.copytree(whole, tmp_path / "runs")
    folder = tmp_path / "runs" / name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    refused = 0
    for case in range(cases):
        rng = random.Random(f"{kind} {case}")
        path = rng.choice(files)
        saved = path.read_bytes()
        damage(path, rng)
        for reader in readers:
            try:
                reader(folder)
            except UserError as error:
                refused += 1
                assert len(str(error)) <= LONGEST and str(error).isprintable(), f"case {case}: {str(error)[:3000]!r}"
            except Exception as error:
                raise AssertionError(f"case {case}: {reader.__name__} of a damaged {path.name}") from error
        if path.is_dir():
            path.rmdir()
        elif not path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
        path.write_bytes(saved)
    assert refused > cases // 10, "the damage must be noticed"
