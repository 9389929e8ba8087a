"""Validations while a run trains: the widths and samples that were asked for, and the picture of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bgrpo.cli.app import main
from bgrpo.config import TrainConfig, load_config
from bgrpo.display.validation_picture import plot_validations
from bgrpo.errors import UserError

ASKED = [
    "steps=2", "rollout.prompts_per_step=4", "rollout.prompts_per_request=4", "rollout.group_size=4",
    "task.train.count=50", "task.validation.count=4", "task.test.count=4", "learner.threads=1",
    "tracking.enabled=false",
    "evaluation.final=false", "evaluation.every=1", "evaluation.problems=4", "evaluation.validation_beam_widths=[2,12]",
    "evaluation.validation_samples=2", "checkpoint.metric=beam@12",
]  # fmt: skip


def test_a_run_validates_as_asked_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--local", "--config", "quickstart", f"run.dir={tmp_path}", "run.name=run", *ASKED]
    assert main(command) == 0, capsys.readouterr().err
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    measured = [{key for key in step if key.startswith("validation/")} for step in steps]
    names = ["greedy", "top1", "beam_rank_score", "beam@2", "beam@12", "pass@1", "pass@2", "oracle"]
    assert measured == [{f"validation/{name}" for name in names}] * 2
    assert (tmp_path / "run" / "validations.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_panel_for_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bgrpo.display.validation_picture as picture

    figures = []
    monkeypatch.setattr(picture, "write_png", lambda figure, out: figures.append(figure))
    values = {"greedy": 0.5, "beam@10": 0.8, "pass@1": 0.4, "oracle": 0.9, "beam_rank_score": 0.7, "greedy_reward": -2}
    lines = [{"step": 1}, {"step": 2} | {f"validation/{name}": value for name, value in values.items()}]
    plot_validations(lines, "run", tmp_path / "unused.png")
    drawn = {axes.get_title("left"): len(axes.lines) for axes in figures[0].axes}
    assert drawn == {
        "solved by beams": 2, "solved by samples; oracle: by either": 2, "beam-rank score": 1, "rewards": 1,
    }  # fmt: skip


def test_a_checkpoint_metric_must_be_measured() -> None:
    with pytest.raises(UserError, match=r"beam@25.*needs evaluation\.validation_beam_widths"):
        load_config(TrainConfig, None, ["checkpoint.metric=beam@25"])
    load_config(TrainConfig, None, ["checkpoint.metric=beam@25", "evaluation.validation_beam_widths=[25]"])
