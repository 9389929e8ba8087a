"""Tables and the picture: what they say, and that they can be made from any state of a run."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learner_cases import train_config
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from bgrpo.display import run_report
from bgrpo.display.run_report import comparison_table, evaluation_tables, metric_label, plot_report
from bgrpo.display.terminal import PlainConsole
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation

BEFORE = {
    "greedy": 0.2,
    "beam@1": 0.2,
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
    assert not any("beam@1 " in line for line in lines), "greedy again"


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


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """:func:`plot_report` without writing a file: the figure itself, laid out."""

    def draw(metrics: list[dict[str, Any]], comparison: EvaluationComparison | None = None, **sections: Any) -> Figure:
        figures: list[Figure] = []
        monkeypatch.setattr(run_report, "write_png", lambda figure, out: figures.append(figure))
        plot_report(train_config(**sections), metrics, comparison, "run", Path("nowhere.png"))
        (figure,) = figures
        figure.draw_without_rendering()
        return figure

    return draw


def _panels(figure: Figure) -> dict[str, Axes]:
    """Visible axes by their titles."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}


@pytest.mark.parametrize("steps", [0, 1, 2, 60])
def test_curves_show_every_step_and_their_running_mean(drawing: Callable[..., Figure], steps: int) -> None:
    figure = drawing(_metrics(steps))
    if not steps:
        assert [text.get_text() for part in figure.subfigs for text in part.texts] == ["no training step yet"]
        return
    panels = _panels(figure)
    assert len(panels) == 4
    raw, *mean = panels["KL to the starting policy (nats per token)"].lines
    assert raw.get_xydata() == pytest.approx(np.array([[step, 0.01 * step] for step in range(1, steps + 1)]))
    assert raw.get_marker() == ("o" if steps == 1 else ""), "one step alone is a point"
    assert len(mean) == (steps == 60)
    if mean:
        assert mean[0].get_ydata()[-1] == pytest.approx((0.58 + 0.59 + 0.60) / 3)


@pytest.mark.parametrize("steps", [0, 60])
def test_bars_show_the_means_before_and_after(drawing: Callable[..., Figure], steps: int) -> None:
    axes = _panels(drawing(_metrics(steps), _comparison()))["40 held-out problems, 95 % intervals"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    bars = {str(bars.get_label()): bars for bars in axes.containers if isinstance(bars, BarContainer)}
    shown = {name: value for name, value in BEFORE.items() if name != "beam@1"}
    for label, expected in (("before", shown), ("after", shown | {"greedy": 0.7, "pass@1": 0.05})):
        widths = dict(zip(names, [bar.get_width() for bar in bars[label]], strict=True))
        assert widths == pytest.approx({metric_label(name): value for name, value in expected.items()})


def test_metrics_that_are_missing_or_not_finite_do_not_stop_the_picture(drawing: Callable[..., Figure]) -> None:
    metrics = [*_metrics(30, kl=None), {"step": 31, "validation/greedy": 0.5}, {"step": 32, "reward_mean": None}]
    panels = _panels(drawing(metrics))
    assert panels.keys() == {"mean reward", "groups with a correct completion", "rank-1 completion correct"}
    assert panels["mean reward"].lines[0].get_xdata()[-1] == 30
    values = [{"step": step, "reward_mean": value} for step, value in enumerate((-0.5, math.pi, math.nan), 1)]
    low, high = _panels(drawing(values))["mean reward"].get_ylim()
    assert low < -0.5 and high > math.pi


def test_a_function_s_graded_rewards_are_not_drawn_as_right_or_wrong(drawing: Callable[..., Figure]) -> None:
    metrics = _metrics(3, informative_groups=0.4)
    right_or_wrong = {"groups with a correct completion", "rank-1 completion correct"}
    assert right_or_wrong < _panels(drawing(metrics)).keys()
    graded = _panels(drawing(metrics, reward={"function": "mine:score"})).keys()
    assert "groups whose rewards differ" in graded and not right_or_wrong & graded


def test_of_named_parts_the_score_is_drawn_and_the_legend_hides_no_line(drawing: Callable[..., Figure]) -> None:
    """Rewards of normalised parts have a mean of 0 in every step: their curve is rounding noise."""
    names = ["a", "b", "c", "d", "name_of_" + "x" * 32]
    shares = {f"part/{name}/share": place / 10 for place, name in enumerate(names)}
    metrics = _metrics(30, reward_mean=1e-16, score_mean=0.4, **shares)
    reward = {"parts": {name: {"metric": "bleu"} for name in names}, "combine": "normalize_then_sum"}
    panels = _panels(drawing(metrics, reward=reward))
    assert "mean reward" not in panels
    assert set(panels["mean score (weighted sum of the parts)"].lines[0].get_ydata()) == {0.4}
    axes = panels["parts' shares of the variance in groups"]
    legend = axes.get_legend()
    assert legend is not None and not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert (
        axes.get_window_extent().width
        > 0.8 * panels["mean score (weighted sum of the parts)"].get_window_extent().width
    )


@pytest.mark.parametrize("bars", [True, False])
def test_warnings_are_told_to_their_end_within_the_picture(drawing: Callable[..., Figure], bars: bool) -> None:
    figure = drawing(_metrics(3, **{"outcome/truncated": 3.0}), _comparison() if bars else None)
    assert " ".join(figure.get_supxlabel().split()).endswith("or start from a policy that ends its answers")
    (label,) = [text for text in figure.texts if text.get_text() == figure.get_supxlabel()]
    box = label.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_the_picture_says_what_kept_a_run_from_learning(drawing: Callable[..., Figure]) -> None:
    assert drawing(_metrics(3)).get_supxlabel() == ""
    assert "none of the 3 steps made an update" in drawing(_metrics(3, groups_used=0)).get_supxlabel()


def test_the_picture_is_wider_with_a_comparison(tmp_path: Path) -> None:
    for comparison, size in ((None, (1350, 960)), (_comparison(), (2100, 960))):
        plot_report(train_config(), _metrics(3), comparison, "run", tmp_path / "report.png")
        with Image.open(tmp_path / "report.png") as image:
            assert image.size == size


def test_intervals_stand_in_brackets_on_every_console() -> None:
    written = io.StringIO()
    values = Evaluation(["x"] * 2, {"greedy": [0.0, 1.0], "greedy_reward": [-1.5, 0.5]}, {}, "d")
    PlainConsole(file=written, width=100).print(comparison_table(EvaluationComparison(values, values)))
    text = written.getvalue()
    assert "50.0% [0.0, 100.0]" in text and "-0.500 [-1.500, 0.500]" in text and "\\" not in text


def test_what_rounds_to_zero_has_no_sign() -> None:
    written = io.StringIO()
    before = Evaluation(["x"] * 2, {"greedy": [1e-5, 0.0], "greedy_reward": [1e-4, 0.0]}, {}, "d")
    after = Evaluation(["x"] * 2, {"greedy": [0.0, 0.0], "greedy_reward": [-1e-4, 0.0]}, {}, "d")
    PlainConsole(file=written, width=100).print(comparison_table(EvaluationComparison(before, after)))
    assert "+0.000" in written.getvalue() and not re.search(r"-0\.0+\b", written.getvalue())


def test_failed_checks_stand_below_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they say: it is no markup, and does not crowd out the curves."""
    drawn: list[Figure] = []
    monkeypatch.setattr(run_report, "write_png", lambda figure, out: drawn.append(figure))
    steps = _metrics(2, **{"outcome/error": 3.0, "outcome/wrong": 2.0})
    steps[1]["details"] = {"error": f"ValueError: $x_$ \\frac {'long ' * 200}"}
    plot_report(train_config(), steps, None, "run", Path("nowhere.png"))
    drawn[0].draw_without_rendering()
    text = drawn[0].get_supxlabel()
    assert text.startswith("error in 6 of 10 checks, the first: ValueError: $x_$") and text.endswith("…")
    assert len(text.splitlines()) == 2


def test_searches_with_different_outcomes_share_a_table() -> None:
    outcomes = {"beam 1": {"scored": 3, "error": 0}, "sample 2": {"correct": 4, "wrong": 2, "error": 1}}
    evaluation = Evaluation(["", ""], {"greedy_reward": [1.0, 0.0]}, outcomes, "digest")
    rows = [line.split() for line in _text(evaluation_tables(evaluation, "x")[-1]).splitlines()]
    assert ["│", "beam", "1", "│", "3", "│", "0", "│", "0", "│", "0", "│"] in rows
    assert ["│", "sample", "2", "│", "0", "│", "1", "│", "4", "│", "2", "│"] in rows
