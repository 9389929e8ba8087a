"""Tables and the picture: what they say, and that they can be made from any state of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from bgrpo.display.run_report import comparison_table, evaluation_tables, plot_report
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation

BEFORE = {
    "greedy": 0.2,
    "beam@3": 0.5,
    "beam@10": 0.9,
    "top1": 0.3,
    "beam_rank_score": 0.6,
    "pass@1": 0.2,
    "pass@10": 0.8,
}


def _evaluation(shares: dict[str, float], problems: int = 40) -> Evaluation:
    values = {name: [float(i < round(share * problems)) for i in range(problems)] for name, share in shares.items()}
    outcomes = {"beam 10": {"correct": 1234, "wrong": 5, "timeout": 1}}
    return Evaluation(["2_2" if i % 2 else "2_3" for i in range(problems)], values, outcomes, "digest")


def _comparison() -> EvaluationComparison:
    after = BEFORE | {"greedy": 0.7, "pass@1": 0.05}
    return EvaluationComparison(_evaluation(BEFORE), _evaluation(after))


def _text(table: Table, styled: bool = False, width: int = 120) -> str:
    console = Console(width=width, record=True, quiet=False, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    return console.export_text(styles=styled)


def _metrics(steps: int, **extra: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "reward_mean": 0.5, "solved_groups": 0.9, "kl": 0.01 * step, "top1_accuracy": 0.4} | extra
        for step in range(1, steps + 1)
    ]


def test_the_comparison_shows_means_intervals_and_the_sign_of_the_difference() -> None:
    comparison = _comparison()
    assert "…" not in _text(comparison_table(comparison), width=80)
    lines = {line.split()[0]: line for line in _text(comparison_table(comparison)).splitlines() if "[" in line}
    assert "20.0%" in lines["greedy"]
    assert "70.0%" in lines["greedy"]
    assert "+50.0%" in lines["greedy"]
    assert "-15.0%" in lines["pass@1"]
    assert "0.600" in lines["beam-rank"]
    low, high = next(row.before[1:] for row in comparison.rows() if row.metric == "greedy")
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in lines["greedy"]


def test_only_differences_that_exclude_zero_are_coloured() -> None:
    lines = _text(comparison_table(_comparison()), styled=True).splitlines()
    green, red = "\x1b[32m", "\x1b[31m"
    assert [green in line for line in lines if "greedy" in line] == [True]
    assert [red in line for line in lines if "pass@1 " in line] == [True]
    assert not any(green in line or red in line for line in lines if "beam@10" in line)


def test_the_evaluation_shows_categories_and_counts_outcomes_apart() -> None:
    tables = evaluation_tables(_evaluation(BEFORE), "policy shipped")
    text = "\n".join(_text(table) for table in tables)
    assert "policy shipped" in text
    for part in ("2_2", "2_3", "1,234", "timeout", "beam@10", "90.0%"):
        assert part in text
    by_category = _text(tables[1])
    assert "beam@10" in by_category
    assert "beam@3" not in by_category, "only the widest search fits"


def test_one_category_needs_no_breakdown() -> None:
    evaluation = Evaluation(["2_2"] * 3, {"greedy": [0.0, 1.0, 1.0]}, {"beam 1": {"correct": 2, "wrong": 1}})
    assert len(evaluation_tables(evaluation, "x")) == 2


def _background_share(path: Path, left: float, right: float) -> float:
    pixels = np.asarray(Image.open(path).convert("L"))
    part = pixels[:, int(left * pixels.shape[1]) : int(right * pixels.shape[1])]
    return float((part > 250).mean())


@pytest.mark.parametrize("steps", [0, 1, 2, 60])
@pytest.mark.parametrize("compared", [False, True])
def test_a_picture_is_made_from_any_number_of_steps(tmp_path: Path, steps: int, compared: bool) -> None:
    out = tmp_path / "report.png"
    plot_report(_metrics(steps), _comparison() if compared else None, "run · bgrpo", out)
    with Image.open(out) as image:
        assert image.size == ((2100, 960) if compared else (1350, 960))
    if compared:
        assert _background_share(out, 0.6, 1.0) < 0.9, "the right half holds bars"
    if steps:
        assert _background_share(out, 0.0, 0.4) < 0.995, "the left half holds curves"


def test_metrics_that_are_missing_or_not_finite_do_not_stop_the_picture(tmp_path: Path) -> None:
    metrics = [*_metrics(30, kl=None), {"step": 31, "validation/greedy": 0.5}, {"step": 32, "reward_mean": None}]
    plot_report(metrics, None, "grpo without reference", tmp_path / "report.png")
    plot_report([{"step": 1, "reward_mean": -0.5}, {"step": 2, "reward_mean": math.pi}], None, "x", tmp_path / "2.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
