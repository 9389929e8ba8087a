"""What ``bgrpo convert`` does: policies of this package to files of the task's own format, and back."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bgrpo.display.terminal import progress_bar
from bgrpo.errors import UserError
from bgrpo.files import check_target
from bgrpo.runs.checkpoints import find_damage
from bgrpo.runs.kept_policies import refuse_changed
from bgrpo.tasks.base import Task, ability

FOREIGN = (".pt", ".pth", ".safetensors")
WRITTEN = ".pt"


def convert_policy(
    task: Task, source: Path, out: Path, config: Path | None, runs: Path, overwrite: bool, as_json: bool
) -> int:
    """Convert one policy, or all of a run, and say what was written.

    Args:
        task: whose format it is.
        source: a foreign file; or a policy's folder, a run's folder, or the name of a run in ``runs``.
        out: a folder for a foreign file, or for all of a run; else a file, beside which its configuration goes.
        config: of a foreign file; default: the file of the same name that ends with ``.json``.
        runs: folder of all runs.
        overwrite: what is there may be replaced.
        as_json: print for programs.

    Raises:
        UserError: the source is none of these, or does not fit the format, or something would be replaced.
    """
    if source.suffix.lower() in FOREIGN and not source.is_dir():
        wrote = _import(task, source, config or source.with_suffix(".json"), out, overwrite)
    else:
        if config is not None:
            raise UserError(f"--config {config}: belongs to a file ({', '.join(FOREIGN)}); {source} is none")
        wrote = _export(task, source, out, runs, overwrite)
    if as_json:
        print(json.dumps({"source": str(source), "written": [str(path) for path in wrote]}))
    else:
        for path in wrote:
            print(path)
    return 0


def _import(task: Task, source: Path, config: Path, out: Path, overwrite: bool) -> list[Path]:
    """A foreign file as a policy's folder, or again as a foreign file."""
    read = ability(task, "import_policy", "bgrpo convert")
    if out.suffix.lower() == WRITTEN:
        check_target(out, "--out", overwrite=overwrite)
        check_target(out.with_suffix(".json"), "--out", overwrite=overwrite)
        with tempfile.TemporaryDirectory(prefix="bgrpo-convert-") as folder:
            policy = Path(folder) / "policy"
            read(source, config, policy)
            ability(task, "export_policy", "bgrpo convert")(policy, out, out.with_suffix(".json"))
        return [out, out.with_suffix(".json")]
    if out.exists() and not (overwrite and out.is_dir()):
        raise UserError(f"--out {out}: is there already; give another name for the policy's folder")
    if not out.exists():
        check_target(out, "--out")
    read(source, config, out)
    return [out]


def _export(task: Task, source: Path, out: Path, runs: Path, overwrite: bool) -> list[Path]:
    """A policy as a foreign file with its configuration; or all policies of a run, each in files named by its step."""
    write: Callable[..., Any] = ability(task, "export_policy", "bgrpo convert")
    if (source / "config.json").is_file():
        if out.suffix.lower() != WRITTEN:
            raise UserError(f"--out {out}: a policy's folder becomes a file: give a name that ends with {WRITTEN}")
        refuse_changed(source)
        targets = {source: out}
    else:
        found = dict(_policies_of(_run_folder(source, runs)))
        if not found:
            raise UserError(f"{source}: this run has no complete checkpoint and no policy yet")
        if out.suffix:
            raise UserError(f"--out {out}: a run has several policies: give the name of a folder")
        targets = {policy: out / f"{name}{WRITTEN}" for name, policy in found.items()}
    for target in targets.values():
        for path in (target, target.with_suffix(".json")):
            check_target(path, "--out", overwrite=overwrite)
    with progress_bar("converting") as show:
        for done, (policy, target) in enumerate(targets.items(), start=1):
            write(policy, target, target.with_suffix(".json"))
            show(done, len(targets))
    return [path for target in targets.values() for path in (target, target.with_suffix(".json"))]


def _run_folder(source: Path, runs: Path) -> Path:
    for folder in (source, runs / source):
        if (folder / "run.json").is_file():
            return folder
    raise UserError(
        f"{source}: is no file that ends with {', '.join(FOREIGN)}, no policy's folder, and no run here or in {runs}"
    )


def _policies_of(run: Path) -> Iterator[tuple[str, Path]]:
    """``step-00000050`` … of the complete checkpoints, then ``policy``, with their folders."""
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        if damage := find_damage(checkpoint, ["policy/config.json"]):
            print(f"note: {checkpoint}: is no complete checkpoint ({damage}), and left out", file=sys.stderr)
        else:
            yield checkpoint.name, checkpoint / "policy"
    if (run / "policy" / "config.json").is_file():
        refuse_changed(run / "policy")
        yield "policy", run / "policy"
