"""Metrics that are damaged, cut or gone are told by whoever shows them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bgrpo.config import TrainConfig, load_config
from bgrpo.display.run_browser.run_page import write_page
from bgrpo.errors import UserError
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.missing_steps import missing_steps
from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.report.sweep_report import write_run_report


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Five steps, a checkpoint of the fourth."""
    config = load_config(TrainConfig, None, [f"run.dir={tmp_path}", "run.name=mine", "evaluation.final=false"])
    made = RunFolder.create(config, None)
    for step in range(1, 6):
        made.append_metrics(step, {"reward_mean": step / 10, "kl": 0.1})
    CheckpointStore(made.checkpoints).save(4, lambda folder: (folder / "state").write_text("x"))
    return made


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda path: None, ""),
    "the step after the checkpoint": (lambda path: cut(path, 4), ""),
    "the last steps": (lambda path: cut(path, 2), "lacks 2 of 4 steps, the first is step 3"),
    "a flipped bit": (lambda path: path.write_bytes(path.read_bytes().replace(b"0.2", b"0.3")), "damaged line"),
    "the last line feeds": (lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b" ")), "lacks 4 of 4"),
    "empty": (lambda path: path.write_bytes(b""), "lacks 4 of 4"),
    "gone": (lambda path: path.unlink(), "lacks 4 of 4"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "Is a pipe, socket or device"),
}


@pytest.mark.parametrize("show", ["report", "page"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_the_metrics_lack_is_told(
    run: RunFolder, tmp_path: Path, damage: str, show: str, caplog: pytest.LogCaptureFixture
) -> None:
    apply, told = DAMAGES[damage]
    apply(run.metrics_path)
    try:
        notes = write_run_report(run)[1] if show == "report" else write_page(run, tmp_path / "page").notes
    except UserError as error:
        notes = [str(error)]
    found = [line for line in (*notes, *caplog.messages) if "metrics.jsonl" in line]
    assert any(told in line for line in found) if told else not found, found


def test_a_resumed_run_looks_up_to_its_checkpoint(run: RunFolder) -> None:
    assert "lacks 1 of 6 steps, the first is step 6" in missing_steps(run, 6) and missing_steps(run, 5) == ""


@pytest.mark.parametrize("instead", ["pipe", "folder"])
def test_what_stands_in_the_place_of_the_evaluation_is_refused(run: RunFolder, instead: str) -> None:
    os.mkfifo(run.evaluation_path) if instead == "pipe" else run.evaluation_path.mkdir()
    with pytest.raises(UserError, match=r"evaluation\.json: cannot be read: Is a"):
        write_run_report(run)


def test_a_finished_run_without_its_evaluation_says_so(run: RunFolder) -> None:
    run.write_config(run.load_config(TrainConfig).model_copy(update={"evaluation": TrainConfig().evaluation}))
    run.update(status="finished")
    assert any("evaluation.json: is missing" in line for line in write_run_report(run)[1])
