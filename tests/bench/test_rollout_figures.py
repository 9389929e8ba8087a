"""From turns to figures: order of the turns, rows, table, picture, peak memory, and the machine's description."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from bgrpo.bench import turns as turns_module
from bgrpo.bench.machine import describe_machine
from bgrpo.bench.processes import measuring_environment
from bgrpo.bench.rollouts.agreement import Agreement
from bgrpo.bench.rollouts.cases import ENGINES, STANDARD_CASES
from bgrpo.bench.rollouts.rollout_picture import draw_rollouts
from bgrpo.bench.rollouts.rollout_tables import case_table, notes
from bgrpo.bench.rollouts.timed_case import floor_name, measured_row, skipped_row
from bgrpo.bench.turns import Turn, interleave, timed
from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT

CASE = STANDARD_CASES["19M-8x25"]
REQUIRED = {
    "engine",
    "mode",
    "dtype",
    "model",
    "prompts",
    "beam_width",
    "sequences_per_s",
    "ratio_to_generate",
    "floor_gap",
    "peak_bytes",
}
AGREED = Agreement(differing=0.01, logprob_error=1e-5, problems=[])


def turns(*seconds: float, busy: float = 1.0) -> list[Turn]:
    return [Turn(one, one / busy) for one in seconds]


def measured(busy: float = 1.0) -> dict[str, Any]:
    """Our row: 200 sequences in 10 s, generate 200 in 50 s, the loop 25 in 20 s, floors of 8 and 16 s."""
    sequences = {"bgrpo": 200, "generate": 200, "loop": 25}
    return measured_row(
        ENGINES["bgrpo"],
        CASE,
        {
            "bgrpo": turns(12, 10, 8, busy=busy),
            "generate": turns(50),
            "loop": turns(20, 20),
            floor_name("fp32", plain=False): turns(8, 9, 7),
            floor_name("fp32", plain=True): turns(16),
        },
        sequences,
        AGREED,
    )


def test_figures_of_a_row() -> None:
    row = measured()
    assert row["sequences_per_s"] == 20
    assert row["ratio_to_generate"] == pytest.approx(5)
    assert row["ratios"] == pytest.approx({"bgrpo": 1, "generate": 5, "loop": 16})
    assert row["floor_gap"] == pytest.approx(10 / 8)
    assert row["torch_mm_floor_gap"] == pytest.approx(10 / 16)
    assert (row["slowest_sequences_per_s"], row["fastest_sequences_per_s"]) == pytest.approx((200 / 12, 25))
    assert row["peak_bytes"] is None


def test_rows_have_the_documented_keys_and_are_json() -> None:
    skipped = skipped_row(ENGINES["bgrpo-bf16"], CASE, "too slow")
    for row in (measured(), skipped):
        assert row.keys() >= REQUIRED
        assert json.loads(json.dumps(row)) == row
    assert skipped["engine"] == "bgrpo"
    assert (skipped["dtype"], skipped["mode"], skipped["prompts"], skipped["beam_width"]) == ("bf16", "beam", 8, 25)
    assert skipped["sequences_per_s"] is skipped["floor_gap"] is None


def test_turns_are_taken_in_rounds_that_start_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    costs = {"fast": 1.0, "middle": 4.0, "slow": 100.0}

    def turn_of(name: str) -> Any:
        def turn() -> Turn:
            taken.append(name)
            return Turn(costs[name], costs[name])

        return turn

    reported: list[str] = []
    found = interleave({name: turn_of(name) for name in costs}, 4, 10.0, reported.append)
    assert taken[:5] == ["fast", "middle", "slow", "middle", "fast"]
    assert {name: len(one) for name, one in found.items()} == {"fast": 4, "middle": 2, "slow": 1}
    assert len(reported) == 12, "rounds that are left out are reported too"


def test_timed_reads_both_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    walls, processors = iter([10.0, 13.0]), iter([1.0, 3.5])
    monkeypatch.setattr(turns_module.time, "perf_counter", lambda: next(walls))
    monkeypatch.setattr(turns_module.time, "process_time", lambda: next(processors))
    assert timed(lambda: None) == Turn(3.0, 2.5)


def test_table_and_notes_say_what_was_disturbed_and_left_out() -> None:
    rows = [measured(busy=1.3) | {"peak_bytes": 870_000_000}, skipped_row(ENGINES["loop"], CASE, "too slow")]
    screen = StringIO()
    Console(width=100, file=screen).print(case_table(CASE, rows))
    text = screen.getvalue()
    assert "8 × 25 beams" in text
    for figure in ("20 *", "5.00", "16.00", "1.25", "870", "1.0%", "21%"):
        assert figure in text, figure
    machine = {
        "cpu": "X",
        "cores": 2,
        "threads": 1,
        "instruction_sets": ["avx2"],
        "versions": {"torch": "2", "y": None},
    }
    lines = "\n".join(notes(rows, {**machine, "malloc": ALLOCATOR_ENVIRONMENT}))
    assert "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647" in lines
    assert "waited for the processor" in lines
    assert "not measured: 19M-8x25, loop: too slow" in lines
    assert "waited" not in "\n".join(notes([measured()], {**machine, "malloc": {}}))


def test_picture_has_a_bar_per_engine_and_a_line_per_floor() -> None:
    machine = {"cpu": "X", "threads": 1, "versions": {"torch": "2.13"}}
    other = measured() | {"name": "generate", "engine": "generate", "dtype": "bf16", "floor_sequences_per_s": None}
    rows = [measured(), other, skipped_row(ENGINES["loop"], CASE, "too slow")]
    figure = draw_rollouts({"rows": rows, "machine": machine})
    (axes,) = (axes for axes in figure.axes if axes.patches)
    assert [bar.get_height() for bar in axes.patches] == [20, 20]
    assert [text.get_text() for text in axes.texts] == ["5.0×", "20"]
    (floor,) = axes.collections
    assert {y for _, y in floor.get_segments()[0]} == {200 / 8}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["8 × 25"]
    assert draw_rollouts({"rows": [], "machine": machine}).axes == []


def test_peak_memory_counts_what_a_call_needs_though_as_much_was_free_before() -> None:
    script = (
        "from bgrpo.bench.rollouts.peak_memory import peak_above_start\n"
        "held = [bytearray(100_000) for _ in range(800)]\n"  # from the heap, whose freed pages stay mapped
        "tail = bytearray(1000); del held\n"
        "def call():\n"
        "    taken = [bytearray(b'x') * 100_000 for _ in range(500)]\n"
        "print(peak_above_start(call)); print(peak_above_start(lambda: None))"
    )
    environment = measuring_environment(1)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    needed, nothing = map(int, done.stdout.split())
    assert needed > 499 * 100_000 > 10 * nothing  # the first of 500 may begin in a page that was there


def test_description_of_the_machine_is_json() -> None:
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["cores"] >= machine["usable_cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert machine["versions"]["torch"].startswith("2.")
    assert machine["malloc"].keys() == ALLOCATOR_ENVIRONMENT.keys()
