"""One case in one process: the engines are checked against ours, then timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from bgrpo.bench.rollouts.agreement import Agreement, Groups, compare
from bgrpo.bench.rollouts.cases import CASES, ENGINES, Case, EngineSpec
from bgrpo.bench.rollouts.decode_floor import DTYPES, FloorProbe, count_operations
from bgrpo.bench.rollouts.decode_workload import Workload, build_workload
from bgrpo.bench.rollouts.engines import Engine, make_engine, missing_package
from bgrpo.bench.rollouts.peak_memory import peak_above_start
from bgrpo.bench.turns import DisagreementError, Turn, interleave, timed
from bgrpo.decoding.onednn import onednn_multiplies

TURN_S = 10.0
"""Engines that take one prompt at a time decode as many of the prompts per turn as fit into this, at least one."""

_WARM_UP_PROMPT_TOKENS = 8
_WARM_UP_NEW_TOKENS = 2


@dataclass(frozen=True, slots=True)
class _Contender:
    """An engine that may be timed once its agreement has no problems; ``places``: the prompts it decodes per turn."""

    engine: Engine
    places: range
    agreement: Agreement


def measure_case(
    case: str, engines: Sequence[str], rounds: int, seconds: float, longest: float, on_turn: Callable[[], None]
) -> list[dict[str, Any]]:
    """Check and time the named engines on one case.

    Args:
        case: its name.
        engines: names; those that the case is not for are left out.
        rounds: most turns of an engine.
        seconds: an engine that would spend more than this leaves out the later rounds.
        longest: an engine that needs more seconds than this for one decode is not timed.
        on_turn: called once per engine for the check, and once per engine and round.

    Returns:
        One row per engine, see :func:`measured_row`; one that could not be timed says why in ``skipped``.

    Raises:
        DisagreementError: nothing was timed, as an engine computes something else.
    """
    chosen = CASES[case]
    workload = build_workload(chosen)
    specs = chosen.taking_part(engines)
    reference = make_engine(ENGINES["bgrpo"], workload, chosen).completions(workload.prompts, chosen.new_tokens)
    admitted: dict[str, _Contender | str] = {}
    for spec in specs:
        admitted[spec.name] = _admit(spec, chosen, workload, reference, longest)
        on_turn()
    contenders = {name: one for name, one in admitted.items() if isinstance(one, _Contender)}
    wrong = [f"{ENGINES[name].label}: {what}" for name, one in contenders.items() for what in one.agreement.problems]
    if wrong:
        raise DisagreementError(f"{case}: the engines do not agree, so nothing was timed: {'; '.join(wrong)}")
    runs: dict[str, Callable[[], Turn]] = {}
    for name, one in contenders.items():
        prompts = [workload.prompts[place] for place in one.places]
        runs[name] = partial(timed, partial(one.engine.decode, prompts, chosen.new_tokens))
    floors = _floors(chosen, workload, {ENGINES[name].dtype for name in contenders})
    turns = interleave(runs | floors, rounds, seconds, lambda name: on_turn() if name in runs else None)
    sequences = {name: len(one.places) * chosen.beam_width for name, one in contenders.items()}
    return [
        skipped_row(spec, chosen, outcome)
        if isinstance(outcome := admitted[spec.name], str)
        else measured_row(spec, chosen, turns, sequences, outcome.agreement)
        for spec in specs
    ]


def measure_peak(case: str, engine: str, on_turn: Callable[[], None]) -> int:
    """Peak bytes of one decode by this process's only engine, above the model and the libraries.

    An engine that takes one prompt at a time decodes one, which is its peak for any number of prompts.
    """
    chosen, spec = CASES[case], ENGINES[engine]
    workload = build_workload(chosen)
    decode = make_engine(spec, workload, chosen).decode
    longest = max(workload.prompts, key=len)
    decode([longest[:_WARM_UP_PROMPT_TOKENS]], _WARM_UP_NEW_TOKENS)  # loads what is loaded on first use
    peak = peak_above_start(partial(decode, workload.prompts if spec.whole_request else [longest], chosen.new_tokens))
    on_turn()
    return peak


def _admit(spec: EngineSpec, case: Case, workload: Workload, reference: Groups, longest: float) -> _Contender | str:
    """Warm an engine up and compare it with the reference; or the reason why it cannot be timed."""
    if missing := missing_package(spec.engine):
        return missing
    engine = make_engine(spec, workload, case)
    one_prompt = timed(lambda: engine.decode(workload.prompts[:1], case.new_tokens)).seconds
    expected = one_prompt * (case.prompts if spec.whole_request else 1)
    if expected > longest:
        return f"one decode would take about {expected:.0f} s; the limit is {longest:.0f} s"
    fitting = case.prompts if spec.whole_request else min(case.prompts, max(1, int(TURN_S / one_prompt)))
    places = range(0, case.prompts, -(-case.prompts // fitting))  # spread evenly over all
    prompts = [workload.prompts[place] for place in places]
    found = engine.completions(prompts, case.new_tokens)
    agreement = compare(spec, case, workload.model, prompts, [reference[place] for place in places], found)
    return _Contender(engine, places, agreement)


def _floors(case: Case, workload: Workload, dtypes: set[str]) -> dict[str, Callable[[], Turn]]:
    """Measurements of the floor of each precision; none where the work is not known beforehand.

    With ``torch.mm`` only where it has fast products of the precision.
    """
    if case.ends:
        return {}
    operations = count_operations(workload.model, case)
    return {
        floor_name(dtype, plain): FloorProbe(operations, dtype, plain).turn
        for dtype in sorted(dtypes)
        for plain in ((False, True) if onednn_multiplies(DTYPES[dtype]) else (False,))
    }


def floor_name(dtype: str, plain: bool) -> str:
    """Name of the turns that measured a floor; ``plain``: with ``torch.mm`` only."""
    return f"floor {dtype} torch.mm" if plain else f"floor {dtype}"


def measured_row(
    spec: EngineSpec,
    case: Case,
    turns: Mapping[str, Sequence[Turn]],
    sequences: Mapping[str, int],
    agreement: Agreement,
) -> dict[str, Any]:
    """The row of an engine that was timed, plain values for JSON. All figures are of medians over the rounds.

    ``ratios`` holds this engine's rate over that of every engine timed, by name; ``floor_gap`` is the time per sequence
    over that of the floor in the same precision, ``torch_mm_floor_gap`` over that of one made by ``torch.mm`` only.

    Args:
        spec: the engine.
        case: what it decoded.
        turns: of every engine and floor, by name.
        sequences: completions per turn of every engine, by name.
        agreement: how it compares with our engine in fp32.
    """
    medians = {name: median(turn.seconds for turn in of) for name, of in turns.items()}
    rates = {name: sequences[name] / medians[name] for name in ENGINES if name in sequences}
    rate, own, count = rates[spec.name], turns[spec.name], sequences[spec.name]
    floor, plain_floor = (
        case.beams / medians[name] if (name := floor_name(spec.dtype, plain)) in medians else None
        for plain in (False, True)
    )
    ratios = {name: rate / other for name, other in rates.items()}
    return skipped_row(spec, case, None) | {
        "sequences_per_s": rate,
        "ratio_to_generate": ratios.get("generate"),
        "floor_gap": floor and floor / rate,
        "ratios": ratios,
        "slowest_sequences_per_s": count / max(turn.seconds for turn in own),
        "fastest_sequences_per_s": count / min(turn.seconds for turn in own),
        "rounds": len(own),
        "sequences_per_round": count,
        "seconds_per_round": medians[spec.name],
        "cpu_seconds_per_round": median(turn.cpu_seconds for turn in own),
        "floor_sequences_per_s": floor,
        "torch_mm_floor_gap": plain_floor and plain_floor / rate,
        "beams_differing": agreement.differing,
        "logprob_error": agreement.logprob_error,
    }


def skipped_row(spec: EngineSpec, case: Case, reason: str | None) -> dict[str, Any]:
    """The row of an engine that was not timed: what was asked for, every figure null, and why."""
    unknown = (
        "sequences_per_s ratio_to_generate floor_gap peak_bytes slowest_sequences_per_s fastest_sequences_per_s "
        "sequences_per_round seconds_per_round cpu_seconds_per_round floor_sequences_per_s torch_mm_floor_gap "
        "beams_differing logprob_error"
    )
    return dict.fromkeys(unknown.split()) | {
        "case": case.name,
        "engine": spec.engine,
        "mode": case.mode,
        "dtype": spec.dtype,
        "model": case.model,
        "prompts": case.prompts,
        "beam_width": case.beam_width,
        "prompt_tokens": case.prompt_tokens,
        "new_tokens": case.new_tokens,
        "name": spec.name,
        "ratios": {},
        "rounds": 0,
        "skipped": reason,
    }
