"""Rows of the result: one per case and engine, plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bgrpo.bench.rollouts.agreement import Agreement
from bgrpo.bench.rollouts.cases import ENGINES, Case, EngineSpec
from bgrpo.bench.rollouts.timing import Turn


def floor_name(dtype: str, plain: bool) -> str:
    """Name of the turns that measured a floor; ``plain``: with ``torch.mm`` only."""
    return f"floor {dtype} torch.mm" if plain else f"floor {dtype}"


def skipped_row(spec: EngineSpec, case: Case, reason: str) -> dict[str, Any]:
    """The row of an engine that was not timed: every figure null, and why."""
    return _empty_row(spec, case) | {"skipped": reason}


def measured_row(
    spec: EngineSpec,
    case: Case,
    turns: Mapping[str, Sequence[Turn]],
    sequences: Mapping[str, int],
    agreement: Agreement,
) -> dict[str, Any]:
    """The row of an engine that was timed. All figures are of medians over the rounds.

    Args:
        spec: the engine.
        case: what it decoded.
        turns: of every engine and floor, by name.
        sequences: completions per turn of every engine, by name.
        agreement: how it compares with our engine in fp32.

    Returns:
        ``ratios`` holds this engine's rate over that of every engine timed, by name; ``floor_gap`` is the time per
        sequence over that of the floor in the same precision, ``torch_mm_floor_gap`` over that of a floor whose
        products are all made by ``torch.mm``.
    """
    own = turns[spec.name]
    seconds = median(turn.seconds for turn in own)
    rates = {name: count / median(turn.seconds for turn in turns[name]) for name, count in sequences.items()}
    rate = rates[spec.name]
    ratios = {name: rate / rates[name] for name in ENGINES if name in rates}
    floor, plain_floor = (_floor_rate(spec.dtype, plain, case, turns) for plain in (False, True))
    return _empty_row(spec, case) | {
        "sequences_per_s": rate,
        "ratio_to_generate": ratios.get("generate"),
        "floor_gap": floor and floor / rate,
        "ratios": ratios,
        "slowest_sequences_per_s": sequences[spec.name] / max(turn.seconds for turn in own),
        "fastest_sequences_per_s": sequences[spec.name] / min(turn.seconds for turn in own),
        "rounds": len(own),
        "sequences_per_round": sequences[spec.name],
        "seconds_per_round": seconds,
        "cpu_seconds_per_round": median(turn.cpu_seconds for turn in own),
        "floor_sequences_per_s": floor,
        "torch_mm_floor_gap": plain_floor and plain_floor / rate,
        "beams_differing": agreement.differing,
        "logprob_error": agreement.logprob_error,
    }


def _floor_rate(dtype: str, plain: bool, case: Case, turns: Mapping[str, Sequence[Turn]]) -> float | None:
    """Sequences per second at the floor; None where it was not measured."""
    measured = turns.get(floor_name(dtype, plain))
    return case.beams / median(turn.seconds for turn in measured) if measured else None


def _empty_row(spec: EngineSpec, case: Case) -> dict[str, Any]:
    """What was asked for; every figure null."""
    return {
        "case": case.name,
        "engine": spec.engine,
        "mode": case.mode,
        "dtype": spec.dtype,
        "model": case.model,
        "prompts": case.prompts,
        "beam_width": case.beam_width,
        "sequences_per_s": None,
        "ratio_to_generate": None,
        "floor_gap": None,
        "peak_bytes": None,
        "prompt_tokens": case.prompt_tokens,
        "new_tokens": case.new_tokens,
        "name": spec.name,
        "ratios": {},
        "slowest_sequences_per_s": None,
        "fastest_sequences_per_s": None,
        "rounds": 0,
        "sequences_per_round": None,
        "seconds_per_round": None,
        "cpu_seconds_per_round": None,
        "floor_sequences_per_s": None,
        "torch_mm_floor_gap": None,
        "beams_differing": None,
        "logprob_error": None,
        "skipped": None,
    }
