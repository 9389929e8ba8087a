"""Steps that a training run has made, and of which its metrics hold no line."""

from __future__ import annotations

from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.metrics_lines import read_steps_of
from bgrpo.runs.run_folder import RunFolder


def missing_steps(folder: RunFolder, made: int | None = None) -> str:
    """What to tell of them; empty where there are none. Every step has a line before its checkpoint is there.

    Args:
        folder: of the run.
        made: steps up to this one; default: that of the newest checkpoint.

    Raises:
        UserError: the metrics cannot be read.
    """
    made = CheckpointStore(folder.checkpoints).newest_step() if made is None else made
    there = {line["step"] for line in read_steps_of(folder.metrics_path)[0]}
    if not (missing := sorted(set(range(1, made + 1)) - there)):
        return ""
    return (
        f"{folder.metrics_path}: lacks {len(missing):,} of {made:,} steps, the first is step {missing[0]}: curves and "
        f"reports do without them; the policy is not touched"
    )
