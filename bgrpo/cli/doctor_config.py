"""``bgrpo doctor --config``: the memory and the time that a training run would need here."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bgrpo.config import TrainConfig, load_config
from bgrpo.display.terminal import table_console

if TYPE_CHECKING:
    from bgrpo.training.run_estimate import PolicyShape
    from bgrpo.training.time_probe import StepTime


def examine_config(config: str | None, overrides: list[str], probe: bool, as_json: bool) -> int:
    """Print what each kind of process needs, what would make it fit, and how long a step takes.

    Returns:
        1 where the run does not fit this machine.
    """
    loaded = load_config(TrainConfig, config, overrides)
    from bgrpo.training.run_estimate import RunEstimate, estimate_run, libraries_bytes, policy_shape, size_text

    shape = policy_shape(loaded)
    estimate: RunEstimate = estimate_run(loaded, shape, libraries_bytes())
    fits = {"ray": estimate.ray <= estimate.available, "local": estimate.local.peak <= estimate.available}
    status = 0 if any(fits.values()) else 1
    if as_json:
        found = _time_of(loaded, shape) if probe and fits["local"] else None
        print(json.dumps(_plain(estimate) | {"fits": fits, "time": None if found is None else asdict(found)}))
        return status
    size, batch, console = estimate.size, estimate.batch, table_console()
    console.print(
        f"policy: {size.weights:,} weights, {size.trained:,} of them learned, vocabulary {size.vocabulary:,}\n"
        f"micro-batch: {batch.groups} groups, {batch.tokens:,} tokens (prompts of {batch.prompt}, every completion "
        f"{loaded.rollout.max_new_tokens} long, nothing but the prompt shared); {batch.cuts} for an optimizer step",
        soft_wrap=True,
    )
    table = Table(box=None)
    for column in ("process", "peak", "made of"):
        table.add_column(column, justify="right" if column == "peak" else "left")
    for process in [*estimate.processes, estimate.local]:
        parts = ", ".join(f"{name} {size_text(part)}" for name, part in process.parts.items() if part)
        count = f"{process.count} × " if process.count > 1 else ""
        table.add_row(f"{count}{process.name}", size_text(process.peak), parts)
    console.print(table)
    for name, command, peak in (
        ("ray", "bgrpo train, all on this machine", estimate.ray),
        ("local", "bgrpo train --local", estimate.local.peak),
    ):
        verdict = "fits" if fits[name] else "does not fit"
        console.print(Text(f"{verdict:12} ", style="green" if fits[name] else "bold red"), end="")
        console.print(f"{command}: {size_text(peak)} of {size_text(estimate.available)} free", soft_wrap=True)
    for remedy in estimate.remedies:
        changes = " ".join(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in remedy.changes.items())
        console.print(
            f"  with {changes}: {size_text(remedy.ray)}; --local: {size_text(remedy.local)}",
            soft_wrap=True,
        )
    if probe and fits["local"]:
        print("trying how long a step takes (up to about a minute) …", file=sys.stderr, flush=True)
        _print_time(_time_of(loaded, shape), loaded, console)
    elif probe:
        console.print("time: not tried, since the probe learns in one process, which does not fit", soft_wrap=True)
    return status


def _time_of(config: TrainConfig, shape: PolicyShape) -> StepTime:
    from bgrpo.training.time_probe import probe_step

    return probe_step(config.model_copy(update={"steps": shape.steps, "epochs": None}), shape.problems)


def _print_time(found: StepTime, config: TrainConfig, console: Console) -> None:
    parts = [f"rollouts {found.rollouts:.2f} s"]
    parts.append("scoring not known" if found.scoring is None else f"scoring {found.scoring:.2f} s")
    parts += [f"weights {found.weights:.2f} s", f"update {found.update:.2f} s"]
    console.print(
        f"a step in one process here: {found.step:.2f} s ({', '.join(parts)})\n"
        f"{found.steps:,} steps: {_duration(found.run)}, without start, validations, checkpoints and final measure",
        soft_wrap=True,
    )
    longest = f"longest that may be, {config.rollout.max_new_tokens}" if found.is_cut else "mean of what was decoded"
    console.print(
        f"from a probe of {found.took:.0f} s: {found.prompts} prompts of {config.rollout.prompts_per_step}, "
        f"completions of {found.completion_tokens:.0f} tokens ({longest})",
        soft_wrap=True,
    )
    if found.scoring is None:
        console.print("scoring: reward servers are not asked, since each answer may cost something", soft_wrap=True)


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _plain(estimate: Any) -> dict[str, Any]:
    return {
        "policy": asdict(estimate.size),
        "batch": asdict(estimate.batch),
        "processes": [asdict(process) for process in estimate.processes],
        "local": asdict(estimate.local),
        "bytes": {"ray": estimate.ray, "local": estimate.local.peak, "available": estimate.available},
        "remedies": [asdict(remedy) for remedy in estimate.remedies],
    }
