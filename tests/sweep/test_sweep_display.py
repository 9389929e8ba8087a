"""What a sweep shows, on a terminal and elsewhere, and the time that it says is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sweep_configs import sweep_config

from bgrpo.sweep.sweep_display import SweepDisplay, TrialProgress, sweep_time_left, time_left
from bgrpo.sweep.sweep_plan import Plan


@pytest.fixture
def plan() -> Plan:
    """4 search and 2 confirm trials: one finished in 100 s, one half done after 60 s, the others to come."""
    sweep = sweep_config(confirm_seeds=1)
    made = Plan(sweep)
    first, second = made.trials[:2]
    made.start(first, 0.0)
    made.end(first, "finished", 100.0, 0.4, "")
    made.start(second, 40.0)
    return made


def rows(plan: Plan, now: float = 100.0) -> list[TrialProgress]:
    fractions = {plan.trials[0].id: 1.0, plan.trials[1].id: 0.5}
    shown = []
    for trial in plan.trials:
        fraction = fractions.get(trial.id, 0.0)
        score = 0.4 if fraction else None
        shown.append(TrialProgress(trial, int(10 * fraction), fraction, score, time_left(trial, fraction, now)))
    return shown


def test_the_time_left_of_a_trial_and_of_the_sweep(plan: Plan) -> None:
    shown = rows(plan)
    assert shown[1].left_s == pytest.approx(60)
    assert shown[0].left_s is None and shown[2].left_s is None
    assert sweep_time_left(plan, shown, 2) == pytest.approx((60 + 4 * 100) / 2)
    assert sweep_time_left(plan, [row for row in shown if row.left_s is None], 1) == pytest.approx(500)


def test_before_any_trial_has_ended_the_running_one_tells() -> None:
    sweep = sweep_config(confirm_seeds=1)
    plan = Plan(sweep)
    assert sweep_time_left(plan, [], 1) is None
    plan.start(plan.trials[0], 0.0)
    row = TrialProgress(plan.trials[0], 5, 0.25, None, time_left(plan.trials[0], 0.25, 25.0))
    assert row.left_s == pytest.approx(75)
    assert sweep_time_left(plan, [row], 1) == pytest.approx(75 + 5 * 100)


def test_a_terminal_shows_a_table(plan: Plan) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with SweepDisplay(plan, 2, "beam_rank_score", console) as display:
        display.update(rows(plan))
        display.note("a line [above]")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("trial", "algorithm", "beam-rank-score", "bgrpo-search-00-seed0", "50%", "1:00 min", "a line [above]",
                 "1 of 6 trials ended", "1 running", "3:50 min left"):  # fmt: skip
        assert part in text, part


def test_elsewhere_lines_come_now_and_then(plan: Plan) -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with SweepDisplay(plan, 2, "beam_rank_score", console, clock=lambda: now[0]) as display:
        for second in range(61):
            now[0] = float(second)
            display.update(rows(plan))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line for line in lines if "trials ended" in line] == ["1 of 6 trials ended · 1 running · 3:50 min left"] * 2
    running = plan.trials[1].id
    assert f"  {running} · step 5 · 50% of its budget · score 0.400 · 1:00 min left" in lines
