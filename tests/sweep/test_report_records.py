"""A sweep's folder in every state in which a report may find it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fabricated_sweep import Arm, Fabrication, fabricate_sweep, read_plan, write_plan

from bgrpo.errors import UserError
from bgrpo.files import unseal
from bgrpo.runs.budget import Spent
from bgrpo.sweep.report.sweep_records import AMOUNTS, read_steps, read_sweep
from bgrpo.sweep.report.sweep_summary import summarize

ARMS = {"grpo": Arm("grpo"), "bgrpo": Arm("bgrpo", 1.5)}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return fabricate_sweep(tmp_path / "sweep", Fabrication(ARMS, seeds=2, problems=20, steps=10, points=1))


def test_every_trial_is_read(sweep: Path) -> None:
    record = read_sweep(sweep)
    assert record.arms == ["grpo", "bgrpo"]
    assert [found.trial.seed for found in record.of("bgrpo", "confirm")] == [1000, 1001]
    assert list(record.evaluated("grpo")) == [1000, 1001]
    assert record.notes == []
    used = record.trials[-1].used
    assert used == {"steps": 10, "gradient_steps": 10, "completions": 3200, "tokens": 48000, "seconds": 15}
    assert record.trials[-1].trial.cpu_seconds == 90
    assert len(record.trials[-1].validation("greedy")) == 2


def test_the_amounts_are_those_that_runs_count() -> None:
    assert set(AMOUNTS) == {name.removeprefix("used/") for name in Spent().metrics()}


def test_the_baseline_is_the_one_named_or_grpo_or_the_first(tmp_path: Path) -> None:
    named = {"first": Arm("bgrpo"), "second": Arm("bgrpo"), "third": Arm("grpo")}
    small = {"seeds": 1, "problems": 5, "steps": 1}
    for i, (arms, extra, expected) in enumerate(
        [
            (named, {"baseline": "second"}, "second"),
            (named, {"baseline": None}, "third"),
            ({"first": Arm("bgrpo"), "second": Arm("bgrpo")}, {}, "first"),
        ]
    ):
        what = Fabrication(arms, **small, extra_config=extra)  # type: ignore[arg-type]
        assert read_sweep(fabricate_sweep(tmp_path / str(i), what)).baseline == expected


def test_a_line_still_being_written_is_left_out_and_a_damaged_one_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    notes: list[str] = []
    assert read_steps(path, notes) == []
    path.write_text('{"step": 1, "kl": 0.1}\n{"step": 2, "k', "utf-8")
    assert [step["step"] for step in read_steps(path, notes)] == [1.0]
    assert notes == []
    path.write_text('{"step": 1}\n{"step": 2, "k{"step": 3}\n[4]\n{"step": 3}\n{"step": 3, "kl": 1}\n', "utf-8")
    assert [(step["step"], step.get("kl")) for step in read_steps(path, notes)] == [(1, None), (3, 1)]
    assert notes == [f"{path}: damaged lines left out: 2"]


def test_what_is_missing_or_damaged_is_noted_and_the_rest_still_counts(sweep: Path) -> None:
    trials = sweep / "trials"
    shutil.rmtree(trials / "grpo-confirm-seed1000")
    (trials / "bgrpo-confirm-seed1000" / "evaluation.json").write_text('{"table": {"gre', "utf-8")
    (sweep / "versions.json").write_text("{", "utf-8")
    (sweep / "sweep.yaml").write_text("arms: [", "utf-8")
    record = read_sweep(sweep)
    assert list(record.evaluated("grpo")) == [1001]
    assert list(record.evaluated("bgrpo")) == [1001]
    for named in ("grpo-confirm-seed1000", "bgrpo-confirm-seed1000", "versions.json", "sweep.yaml"):
        assert any(named in note for note in record.notes), named
    assert len(record.notes) == 4


def test_a_sweep_that_has_just_begun(sweep: Path) -> None:
    (sweep / "trials.json").unlink()
    shutil.rmtree(sweep / "trials")
    record = read_sweep(sweep)
    assert (record.trials, record.baseline) == ([], None)
    assert summarize(record).verdict.headline == "No trial is planned yet."


def test_pending_trials_have_no_folder_yet(sweep: Path) -> None:
    plan = read_plan(sweep)
    shutil.rmtree(sweep / "trials")
    for trial in plan["trials"]:
        trial |= {"state": "pending", "started": None, "ended": None, "attempts": 0, "cpu_seconds": 0.0}
    write_plan(sweep, plan)
    record = read_sweep(sweep)
    assert record.notes == []
    assert summarize(record).verdict.headline == "No result yet: no confirm trial has been tested."


def test_trials_that_were_tested_on_other_problems_are_not_compared(sweep: Path) -> None:
    path = sweep / "trials" / "bgrpo-confirm-seed1001" / "evaluation.json"
    tree = json.loads(unseal(path.read_bytes()))
    for side in ("before", "after"):
        tree[side] |= {"digest": "others", "categories": tree[side]["categories"][:10]}
        tree[side]["values"] = {name: values[:10] for name, values in tree[side]["values"].items()}
    path.write_text(json.dumps(tree), "utf-8")
    verdict = summarize(read_sweep(sweep)).verdict
    assert verdict.headline == "No comparison: trials were tested on different problems."
    assert verdict.winner is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ('{"trials": [', "Invalid JSON"),
        ('{"trials": [3]}', "trials.0: "),
        ('{"trials": [{"algorithm": "grpo"}]}', "trials.0.id: "),
        ('["trials"]', "should be"),
        ('{"trials": [{"id": "../../elsewhere"}]}', "trials.0.id: "),
        ('{"trials": [{"algorithm": "grpo", "id": ".."}]}', "trials.0.id: "),
    ],
)
def test_a_damaged_list_of_trials_is_an_error(sweep: Path, damage: str, message: str) -> None:
    (sweep / "trials.json").write_text(damage, "utf-8")
    with pytest.raises(UserError, match=rf"trials\.json: cannot be read as a sweep's trials: .*{message}"):
        read_sweep(sweep)


def test_another_folder_is_not_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a sweep"):
        read_sweep(tmp_path)
