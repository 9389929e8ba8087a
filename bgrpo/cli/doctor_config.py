"""``bgrpo doctor --config``: the memory that a training run would need here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from bgrpo.config import TrainConfig, load_config
from bgrpo.display.terminal import table_console


def examine_config(config: str | None, overrides: list[str], as_json: bool) -> int:
    """Print what each kind of process needs, and what would make it fit; 1 where the run does not fit this machine."""
    loaded = load_config(TrainConfig, config, overrides)
    from bgrpo.training.run_estimate import RunEstimate, estimate_run, libraries_bytes, policy_shape, size_text

    estimate: RunEstimate = estimate_run(loaded, policy_shape(loaded), libraries_bytes())
    fits = {"ray": estimate.ray <= estimate.available, "local": estimate.local.peak <= estimate.available}
    if as_json:
        print(json.dumps(_plain(estimate) | {"fits": fits}))
        return 0 if any(fits.values()) else 1
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
    return 0 if any(fits.values()) else 1


def _plain(estimate: Any) -> dict[str, Any]:
    return {
        "policy": asdict(estimate.size),
        "batch": asdict(estimate.batch),
        "processes": [asdict(process) for process in estimate.processes],
        "local": asdict(estimate.local),
        "bytes": {"ray": estimate.ray, "local": estimate.local.peak, "available": estimate.available},
        "remedies": [asdict(remedy) for remedy in estimate.remedies],
    }
