"""The driver sees each step once, whatever the learner does to the file."""

import json
from pathlib import Path

from bgrpo.runs.run_folder import RunFolder
from bgrpo.training.metrics_tail import MetricsTail


def lines(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "time": 1.0, "kl": step / 10, "top1": None}) + "\n" for step in steps)


def test_a_missing_file_has_no_steps(tmp_path: Path) -> None:
    assert list(MetricsTail(tmp_path / "metrics.jsonl").new_steps()) == []


def test_new_steps_come_once_without_time_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    path.write_text(lines(1, 2))
    assert list(tail.new_steps()) == [(1, {"kl": 0.1}, {}), (2, {"kl": 0.2}, {})]
    with path.open("a") as file:
        file.write(lines(3))
    assert [written.step for written in tail.new_steps()] == [3]
    assert list(tail.new_steps()) == []


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    whole = lines(1, 2)
    path.write_text(whole[:-5])
    assert [written.step for written in tail.new_steps()] == [1]
    path.write_text(whole)
    assert [written.step for written in tail.new_steps()] == [2]


def test_steps_that_a_resumed_learner_writes_again_are_passed_over(tmp_path: Path) -> None:
    path, other = tmp_path / "metrics.jsonl", tmp_path / "new"
    tail = MetricsTail(path)
    path.write_text(lines(1, 2, 3, 4))
    assert [written.step for written in tail.new_steps()] == [1, 2, 3, 4]
    other.write_text(lines(1, 2))
    other.replace(path)  # as RunFolder.truncate_after does
    assert list(tail.new_steps()) == []
    with path.open("a") as file:
        file.write(lines(3, 4, 5))
    assert [written.step for written in tail.new_steps()] == [5]


def test_a_resumed_driver_starts_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2, 3))
    assert [written.step for written in MetricsTail(path, last_step=2).new_steps()] == [3]


def test_what_failed_in_the_checks_comes_beside_the_metrics(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics(1, {"step": 1.0, "kl": float("nan"), "outcome/error": 2.0, "details": {"error": "why"}})
    assert list(MetricsTail(folder.metrics_path).new_steps()) == [(1, {"outcome/error": 2.0}, {"error": "why"})]
