"""The folder of a sweep: made once, driven by one process, gone on with only as it was begun."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_configs import sweep_config

from bgrpo.config import build_config, dump_config
from bgrpo.errors import LostRunError, UserError
from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.report.sweep_records import read_sweep
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_folder import (
    CONFIG,
    VERSIONS,
    SweepFolder,
    last_validation,
    load_new_sweep,
    load_resumed_sweep,
    settle_interrupted,
)
from bgrpo.sweep.sweep_plan import SavedPlan, Trial
from bgrpo.sweep.trial_configs import TrialConfigs


def sweep_in(runs: Path, **tree: Any) -> SweepConfig:
    return sweep_config(run={"dir": str(runs), "name": "mine"}, **tree)


def test_a_sweep_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path, max_concurrent=2)
    folder = SweepFolder.create(sweep, "quick")
    loaded, found = load_resumed_sweep("mine", [f"run.dir={tmp_path}", "max_concurrent=1"])
    assert found == SweepFolder(tmp_path / "mine") == folder
    assert loaded == build_config(SweepConfig, sweep.model_dump(mode="json") | {"max_concurrent": 1}, "test")
    assert load_resumed_sweep(str(folder.path), [])[0] == sweep


@pytest.mark.parametrize("override", ["confirm_seeds=9", "budget.amount=7", "metric=greedy", "train.rollout.actors=1"])
def test_what_would_change_the_comparison_is_refused(override: str, tmp_path: Path) -> None:
    SweepFolder.create(sweep_in(tmp_path), None)
    with pytest.raises(
        UserError, match=f"cannot be resumed with another {override.partition('=')[0].partition('.')[0]}"
    ):
        load_resumed_sweep("mine", [f"run.dir={tmp_path}", override])


def test_names_that_are_taken_unknown_or_no_names(tmp_path: Path) -> None:
    SweepFolder.create(sweep_in(tmp_path), None)
    with pytest.raises(UserError, match=r"sweep 'mine' exists .* --resume mine"):
        SweepFolder.create(sweep_in(tmp_path), None)
    with pytest.raises(UserError, match=r"no sweep 'yours' in .*: there are mine"):
        SweepFolder.open(tmp_path, "yours")
    with pytest.raises(UserError, match="it holds none"):
        SweepFolder.open(tmp_path / "elsewhere", "yours")
    with pytest.raises(UserError, match="expected letters, digits"):
        SweepFolder.create(sweep_config(run={"dir": str(tmp_path), "name": "a/b"}), None)
    assert SweepFolder.create(sweep_config(run={"dir": str(tmp_path)}), "configs/quick.yaml").name.startswith(
        "quick-sweep-"
    )


def test_no_change_of_what_was_asked_for_goes_unnoticed(tmp_path: Path) -> None:
    """Every 7th flipped bit and every 5th cut: refused by a resume and told by the report, or without a meaning."""
    folder = SweepFolder.create(sweep_in(tmp_path), "quick")
    folder.write_plan(SavedPlan())
    known = read_sweep(folder.path)
    assert not known.notes and known.config["arms"] and known.versions["machine"]
    for name in (CONFIG, VERSIONS):
        path = folder.path / name
        content = path.read_bytes()
        flipped = [
            content[:place] + bytes([content[place] ^ 1 << place % 7]) + content[place + 1 :]
            for place in range(0, len(content), 7)
        ]
        for damaged in [*flipped, *(content[:place] for place in range(1, len(content), 5))]:
            path.write_bytes(damaged)
            found = read_sweep(folder.path)
            told = [note for note in found.notes if str(path) in note]
            versions = {key: value for key, value in found.versions.items() if key in known.versions}
            assert told or (found.config, versions) == (known.config, known.versions), damaged
            if name == CONFIG and told:
                with pytest.raises(UserError, match=re.escape(str(path))):
                    load_resumed_sweep(str(folder.path), [])
        path.write_bytes(content)
    load_resumed_sweep(str(folder.path), [])


def test_passwords_are_not_stored_and_must_be_given_again(tmp_path: Path) -> None:
    uri = "postgresql://me:secret@host/db"
    folder = SweepFolder.create(sweep_in(tmp_path, tracking={"uri": uri}), None)
    assert "secret" not in (folder.path / "sweep.yaml").read_text()
    with pytest.raises(UserError, match="was stored without its password"):
        load_resumed_sweep(str(folder.path), [])
    sweep, _ = load_resumed_sweep(str(folder.path), [f"tracking.uri={uri}"])
    assert sweep.tracking.uri == uri


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    folder = SweepFolder.create(sweep_in(tmp_path), None)
    code = f"""
import time
from pathlib import Path
from bgrpo.sweep.sweep_folder import SweepFolder
with SweepFolder(Path({str(folder.path)!r})).exclusive():
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"sweep mine belongs to process {other.pid} on "), folder.exclusive():
        pass
    other.kill()
    other.wait(10)
    with folder.exclusive() as mine:  # a killed driver leaves no lock
        mine.write_plan(SavedPlan())
        assert mine.claim is not None and mine.claim.owner.number == 2
        shutil.rmtree(folder.path)
        with pytest.raises(LostRunError, match="removed or replaced"):
            mine.write_plan(SavedPlan())


def test_a_plan_of_a_sweep_that_just_began_is_empty_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    folder = SweepFolder.create(sweep_in(tmp_path), None)
    assert folder.read_plan().trials == []
    (folder.path / "trials.json").write_text("{")
    with pytest.raises(UserError, match=r"trials\.json: cannot be read"):
        folder.read_plan()


def test_trials_that_a_killed_driver_left(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    folder = SweepFolder.create(sweep, None)
    configs = TrialConfigs(sweep, folder.trials)
    trials = [
        Trial(name, "grpo", "search", 0, 0, {"algorithm": "grpo"}, state="running", since=100.0, resources={"CPU": 2.0})
        for name in ("complete", "halfway", "unborn")
    ]
    for trial, status in zip(trials, ("finished", "running"), strict=False):
        run = RunFolder.create(configs.of(trial), None)
        for step in (1, 2):
            run.append_metrics(step, {"time": 100.0 + step, "validation/beam_rank_score": step / 10})
        run.update(status=status)
    settle_interrupted(trials, folder.trials, "beam_rank_score")
    assert [(trial.state, trial.value, trial.seconds, trial.cpu_seconds) for trial in trials] == [
        ("finished", 0.2, 2.0, 4.0),
        ("pending", None, 2.0, 4.0),
        ("pending", None, 0.0, 0.0),
    ]
    assert last_validation(folder.trials / "halfway", "greedy") is None


def test_a_new_sweep_lies_where_runs_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dump_config(sweep_config(), tmp_path / "mine.yaml")
    assert load_new_sweep("mine.yaml", []).run.dir == str(tmp_path / "runs")
