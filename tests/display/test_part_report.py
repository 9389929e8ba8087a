"""The table of a reward's parts, and the panel of their shares."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from bgrpo.config import TrainConfig, build_config
from bgrpo.display.part_report import SHARES_TITLE, part_table, parts_with_shares
from bgrpo.display.run_report import plot_report

PARTS = {"quality": {"metric": "bleu", "weight": 0.5}, "short": {"metric": "completion_words"}}
WATCHED = {"overlap": {"metric": "rouge_l", "weight": 0}}


def config(**parts: Any) -> TrainConfig:
    return build_config(TrainConfig, {"reward": {"parts": parts}}, "test")


def steps(count: int) -> list[dict[str, Any]]:
    lines = []
    for step in range(1, count + 1):
        line: dict[str, Any] = {
            "step": step,
            "reward_mean": step / 10,
            "kl": 0.1,
            "entropy": 0.2,
            "informative_groups": 1,
        }
        for name, share in (("quality", 0.75), ("short", 0.25), ("overlap", 0.0)):
            of_part = {"mean": step / 10, "spread": 0.5, "share": share, "none": 0.1, "failed": 0.0, "seconds": 2.0}
            line |= {f"part/{name}/{key}": value for key, value in of_part.items()}
        lines.append(line)
    return lines


def text(made: TrainConfig, lines: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    table = part_table(made.reward, lines)
    assert table is not None
    Console(file=out, width=100).print(table)
    return out.getvalue()


def test_the_table_shows_the_first_tenth_and_the_last() -> None:
    shown = text(config(**PARTS, **WATCHED), steps(40))
    rows = {row.split()[0]: row.split()[1:] for row in shown.splitlines() if row.split()}
    assert rows["quality"] == ["0.5", "0.250", "3.850", "0.500", "75%", "10%", "0%", "2"]
    assert rows["overlap"][0] == "0" and rows["short"][4] == "25%"
    assert "means of the last 4 steps" in shown
    assert "the last step;" in text(config(**PARTS), steps(3))


def test_what_rounds_to_zero_has_no_sign() -> None:
    shown = text(config(**PARTS), [{"step": 1, "part/quality/share": -0.004, "part/quality/mean": -0.0001}])
    assert shown.split("quality")[1].split()[:5] == ["0.5", "0.000", "0.000", "–", "0%"]
    assert "-20%" in text(config(**PARTS), [{"step": 1, "part/quality/share": -0.2}])


def test_what_is_not_known_is_a_dash() -> None:
    shown = text(config(**PARTS), [{"step": 1, "part/quality/mean": None}])
    assert shown.count("–") == 14


@pytest.mark.parametrize(("parts", "lines"), [({}, steps(3)), (PARTS, [])])
def test_there_is_none_without_parts_or_steps(parts: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    assert part_table(config(**parts).reward, lines) is None


def test_the_picture_has_a_panel_with_a_line_for_each_part_that_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("bgrpo.display.run_report.write_png", lambda figure, out: drawn.append(figure))
    for parts in (PARTS | WATCHED, {"quality": PARTS["quality"]}):
        plot_report(config(**parts), steps(30), None, "run", tmp_path / "x.png")
    panels = [{axes.get_title(loc="left"): axes for axes in figure.subfigs[0].axes} for figure in drawn]
    assert len(panels[0]) == 4 and SHARES_TITLE in panels[0] and SHARES_TITLE not in panels[1]
    lines = panels[0][SHARES_TITLE].get_lines()
    assert [line.get_label() for line in lines] == ["quality", "short"]
    assert set(lines[0].get_ydata()) == {0.75}
    assert parts_with_shares(config(**PARTS).reward, [{"step": 1}]) == []
