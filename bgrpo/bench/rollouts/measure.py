"""One case in one process: the engines are checked against ours, then timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bgrpo.bench.rollouts.agreement import Agreement, compare
from bgrpo.bench.rollouts.cases import ENGINES, Case, DisagreementError, EngineSpec
from bgrpo.bench.rollouts.ctranslate2_engine import HOW_TO_INSTALL, ctranslate2_is_installed
from bgrpo.bench.rollouts.engines import make_engine
from bgrpo.bench.rollouts.floor import FloorProbe, count_operations
from bgrpo.bench.rollouts.interface import Beam, Engine
from bgrpo.bench.rollouts.memory import peak_above_start
from bgrpo.bench.rollouts.rows import floor_name, measured_row, skipped_row
from bgrpo.bench.rollouts.timing import Turn, interleave, timed
from bgrpo.bench.rollouts.workload import Workload, build_workload

TURN_S = 10.0
"""Engines that take one prompt at a time decode as many of the prompts per turn as fit into this, at least one."""

_WARM_UP_PROMPT_TOKENS = 8
_WARM_UP_NEW_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to measure.

    Attributes:
        rounds: most turns of an engine.
        seconds: an engine that would spend more than this leaves out the later rounds.
        longest: an engine that needs more seconds than this for one decode is not timed.
    """

    rounds: int
    seconds: float
    longest: float


@dataclass(frozen=True, slots=True)
class _Contender:
    """An engine that may be timed, once its agreement has no problems.

    Attributes:
        places: the prompts that it decodes per turn.
    """

    spec: EngineSpec
    engine: Engine
    places: range
    agreement: Agreement


def measure_case(
    case: Case, engines: Sequence[str], limits: Limits, on_turn: Callable[[], None]
) -> list[dict[str, Any]]:
    """Check and time the named engines on one case.

    Args:
        case: the request.
        engines: names; those that the case is not for are left out.
        limits: how long.
        on_turn: called once per engine for the check, and once per engine and round.

    Returns:
        One row per engine (:mod:`bgrpo.bench.rollouts.rows`); one that could not be timed says why.

    Raises:
        DisagreementError: nothing was timed, as an engine computes something else.
    """
    workload = build_workload(case)
    specs = case.taking_part(engines)
    reference = make_engine(ENGINES["bgrpo"], workload, case).completions(workload.prompts, case.new_tokens)
    admitted: dict[str, _Contender | str] = {}
    for spec in specs:
        admitted[spec.name] = _admit(spec, case, workload, reference, limits.longest)
        on_turn()
    contenders = {name: one for name, one in admitted.items() if isinstance(one, _Contender)}
    _raise_disagreements(case, contenders.values())
    floors = _floor_turns(case, workload, {contender.spec.dtype for contender in contenders.values()})
    runs = {name: _decode_turn(contender, case, workload) for name, contender in contenders.items()}

    def report(name: str) -> None:
        if name in runs:
            on_turn()

    turns = interleave({**runs, **floors}, limits.rounds, limits.seconds, report)
    sequences = {name: len(contender.places) * case.beam_width for name, contender in contenders.items()}
    rows = []
    for spec in specs:
        outcome = admitted[spec.name]
        if isinstance(outcome, str):
            rows.append(skipped_row(spec, case, outcome))
        else:
            rows.append(measured_row(spec, case, turns, sequences, outcome.agreement))
    return rows


def measure_peak(case: Case, name: str) -> int:
    """Peak bytes of one decode by this process's only engine, above the model and the libraries.

    An engine that takes one prompt at a time decodes one, which is its peak for any number of prompts.
    """
    workload = build_workload(case)
    spec = ENGINES[name]
    engine = make_engine(spec, workload, case)
    longest = max(workload.prompts, key=len)
    engine.decode([longest[:_WARM_UP_PROMPT_TOKENS]], _WARM_UP_NEW_TOKENS)  # loads what is loaded on first use
    prompts = workload.prompts if spec.whole_request else [longest]
    return peak_above_start(lambda: engine.decode(prompts, case.new_tokens))


def _admit(
    spec: EngineSpec, case: Case, workload: Workload, reference: Sequence[Sequence[Beam]], longest: float
) -> _Contender | str:
    """Warm an engine up and compare it with the reference; or the reason why it cannot be timed."""
    if spec.engine.startswith("ctranslate2") and not ctranslate2_is_installed():
        return HOW_TO_INSTALL
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
    return _Contender(spec, engine, places, agreement)


def _raise_disagreements(case: Case, contenders: Iterable[_Contender]) -> None:
    found = [f"{c.spec.label}: {problem}" for c in contenders for problem in c.agreement.problems]
    if found:
        raise DisagreementError(f"{case.name}: the engines do not agree, so nothing was timed: {'; '.join(found)}")


def _decode_turn(contender: _Contender, case: Case, workload: Workload) -> Callable[[], Turn]:
    prompts = [workload.prompts[place] for place in contender.places]
    return lambda: timed(lambda: contender.engine.decode(prompts, case.new_tokens))


def _floor_turns(case: Case, workload: Workload, dtypes: Iterable[str]) -> dict[str, Callable[[], Turn]]:
    """Measurements of the floor of each precision; none where the work is not known beforehand."""
    if case.ends:
        return {}
    operations = count_operations(workload.model, case)
    probes = {
        floor_name(dtype, plain): FloorProbe(operations, dtype, plain)
        for dtype in sorted(dtypes)
        for plain in (False, True)
    }
    return {name: probe.turn for name, probe in probes.items()}
