"""The result for people: a table per case, and what one must know to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bgrpo.bench.output import DASH, figure_text, make_table
from bgrpo.bench.rollouts.cases import ENGINES, Case

BUSY = 1.15
"""Wall clock over processor time from which a row is marked: something else took the processor."""

_COMPARED = {
    "generate": "×gen",
    "ctranslate2": "×CT2",
    "ctranslate2-batched": "×CT2b",
    "openvino-genai": "×OV",
    "loop": "×loop",
}


def case_table(case: Case, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row per engine: rate, ratios to the peers, gap to the floor, peak memory, difference of the beams."""
    kind = "beams" if case.mode == "beam" else "samples"
    prompt = f"prompts of {case.prompt_tokens}" if case.prompt_tokens else "its own problems"
    length = f"up to {case.new_tokens}" if case.ends else f"{case.new_tokens}"
    title = f"{case.name}: {case.prompts} × {case.beam_width} {kind}, model {case.model}, {prompt}, {length} new tokens"
    peers = [name for name in _COMPARED if any(name in row["ratios"] for row in rows)]
    headings = ["engine", "seq/s", "±", *(_COMPARED[name] for name in peers), "gap", "MB", "other"]
    return make_table(title, headings, ([ENGINES[row["name"]].label, *_cells(row, peers)] for row in rows))


def _cells(row: Mapping[str, Any], peers: Sequence[str]) -> list[str]:
    rate = row["sequences_per_s"]
    if rate is None:
        return [DASH] * (5 + len(peers))
    spread = (row["fastest_sequences_per_s"] - row["slowest_sequences_per_s"]) / 2 / rate
    return [
        format(rate, ",.0f" if rate >= 100 else ".3g") + (" *" if is_busy(row) else ""),
        f"{spread:.0%}",
        *(figure_text(row["ratios"].get(name), ".2f") for name in peers),
        figure_text(row["floor_gap"], ".2f"),
        figure_text(row["peak_bytes"] and row["peak_bytes"] / 1e6, ",.0f"),
        figure_text(row["beams_differing"], ".1%"),
    ]


def notes(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> list[str]:
    """Lines below the tables: the machine, the allocator, how to read the columns, and what disturbed the run."""
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['instruction_sets'])}"
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    malloc = " ".join(f"{name}={value}" for name, value in machine["malloc"].items())
    skipped = [row for row in rows if row["skipped"]]
    lines = [
        f"{cpu}; {machine['threads']} thread(s); {versions}",
        f"allocator of every engine: {malloc}",
        "seq/s: completions per second, median of the rounds, in which the engines take turns; ±: half the range; "
        "×: times as fast as that peer (CT2b: CTranslate2 batched; OV: OpenVINO GenAI; CTranslate2 and loop: one "
        "prompt per call); gap: "
        "time over that of the matrix products alone, at their measured rate in the engine's precision; MB: peak above "
        "model and libraries, in a process of its own; other: share of our fp32 beams that the engine does not have",
        *(f"not measured: {row['case']}, {ENGINES[row['name']].label}: {row['skipped']}" for row in skipped),
    ]
    if any(is_busy(row) for row in rows):
        lines.append(f"* waited for the processor: wall clock more than {BUSY} × processor time; measure again, idle")
    return lines


def is_busy(row: Mapping[str, Any]) -> bool:
    """Whether an engine had to wait for the processor, so that its rate is too low."""
    return not row["skipped"] and bool(row["seconds_per_round"] > BUSY * row["cpu_seconds_per_round"])
