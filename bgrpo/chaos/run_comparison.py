"""Whether a disturbed run came to the same result as an undisturbed one of the same configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgrpo.runs.run_folder import RunFolder

TIMED = ("time", "rollouts_per_s", "used/seconds")
TIMED_PREFIX = "seconds/"
TIMED_SUFFIX = "/seconds"
DIFFERENCES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ResultComparison:
    """Two runs side by side."""

    same_policy: bool  #: the final policies are equal, bit for bit.
    #: between two weights of the final policies; None when one is missing, or of another shape.
    largest_difference: float | None
    problems: list[str]  #: what differs, in words; empty when the results are the same.


def compare_runs(undisturbed: RunFolder, disturbed: RunFolder) -> ResultComparison:
    """Compare final policies, and the metrics of every step apart from times.

    The metrics of a step count its groups, their completions by outcome and their rewards: a group that was lost or
    used twice shows there.
    """
    expected, found = final_weights(undisturbed), final_weights(disturbed)
    if expected is None or found is None:
        missing = [run.name for run, file in ((undisturbed, expected), (disturbed, found)) if file is None]
        return ResultComparison(False, None, [f"no final policy of run {name}" for name in missing])
    same, difference = _compare_policies(expected, found)
    problems = compare_metrics(undisturbed.metrics(), disturbed.metrics())
    if not same:
        size = "their shapes differ" if difference is None else f"by up to {difference:g}"
        problems.insert(0, f"the final policies differ: {size}")
    return ResultComparison(same, difference, problems)


def final_weights(run: RunFolder) -> Path | None:
    """The file with the weights of the run's final policy; None when it has not come to one."""
    file = run.policy / "model.safetensors"
    return file if file.is_file() else None


def compare_metrics(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between the steps of two runs, in words; times are not compared."""
    steps, others = [line["step"] for line in expected], [line["step"] for line in found]
    if steps != others:
        lost, added = Counter(steps) - Counter(others), Counter(others) - Counter(steps)
        texts = [f"{what} {sorted(count)[:DIFFERENCES_SHOWN]}" for what, count in (("lost", lost), ("added", added))]
        return [f"the steps differ: {len(steps)} undisturbed, {len(others)} disturbed; {', '.join(texts)}"]
    problems = [
        f"step {before['step']}: {name} is {after.get(name)}, undisturbed {before.get(name)}"
        for before, after in zip(expected, found, strict=True)
        for name in sorted(before.keys() | after.keys())
        if not _is_timed(name) and before.get(name) != after.get(name)
    ]
    more = len(problems) - DIFFERENCES_SHOWN
    return problems if more <= 0 else [*problems[:DIFFERENCES_SHOWN], f"and {more} more differences"]


def _compare_policies(expected: Path, found: Path) -> tuple[bool, float | None]:
    from safetensors.numpy import load_file

    before, after = load_file(expected), load_file(found)
    if {name: tensor.shape for name, tensor in before.items()} != {name: t.shape for name, t in after.items()}:
        return False, None
    same = all(tensor.tobytes() == after[name].tobytes() for name, tensor in before.items())
    return same, max(float(abs(tensor - after[name]).max()) for name, tensor in before.items())


def _is_timed(name: str) -> bool:
    return name in TIMED or name.startswith(TIMED_PREFIX) or name.endswith(TIMED_SUFFIX)
