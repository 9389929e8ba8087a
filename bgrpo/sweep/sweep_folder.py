"""The folder of a sweep: what was asked for, the state of its trials, and their run folders."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bgrpo.config import load_config
from bgrpo.errors import UserError, brief
from bgrpo.files import is_file, read_file, seal, seal_yaml, unseal, unseal_yaml, write_atomically
from bgrpo.runs.metrics_lines import read_steps_of
from bgrpo.runs.ownership import Claim, own
from bgrpo.runs.redaction import redact_tree, remember_secrets_in
from bgrpo.runs.run_folder import (
    RunFolder,
    check_name,
    check_place,
    installed_versions,
    refuse_hidden,
    settle_runs,
)
from bgrpo.settings.strict_yaml import dump_yaml
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_plan import SavedPlan, Trial, charge

CONFIG, TRIALS, VERSIONS = "sweep.yaml", "trials.json", "versions.json"
GIT_S = 5.0
# What a resumed sweep may change: where and how it runs, never what it compares.
CHANGEABLE = ("max_concurrent", "tracking", "run")


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """``<run.dir>/<sweep name>/``. One driver writes, see :meth:`exclusive`; any process may read."""

    path: Path
    claim: Claim | None = field(default=None, compare=False)

    @classmethod
    def create(cls, sweep: SweepConfig, config_name: str | None) -> SweepFolder:
        """Make the folder of a new sweep and write what was asked for.

        Raises:
            UserError: the name is taken or no plain folder name, or the folder cannot be written.
        """
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(config_name or "defaults").stem).lstrip(".-_") or "config"
        name = sweep.run.name or f"{stem}-sweep-{datetime.now():%Y%m%d-%H%M%S}"
        check_place(sweep.run.dir, sweep.run.name, "sweep")
        folder = cls(Path(sweep.run.dir) / name)
        try:
            folder.trials.mkdir(parents=True)
            folder.write_config(sweep)
            write_atomically(folder.path / VERSIONS, seal(json.dumps(_describe_machine(), indent=1)) + "\n")
        except FileExistsError:
            raise UserError(
                f"sweep {name!r} exists in {sweep.run.dir}/: go on with it by --resume {name}, or set another run.name"
            ) from None
        except OSError as error:
            raise UserError(
                f"run.dir={sweep.run.dir}: the sweep's folder cannot be written ({error.strerror or error}): free some "
                f"space or set run.dir to a folder that can be written"
            ) from error
        return folder

    @classmethod
    def open(cls, runs: Path | str, name: str) -> SweepFolder:
        """The folder of an existing sweep, by its name in ``runs`` or by its path."""
        for path in (Path(runs) / name, Path(name)):
            if is_file(path / CONFIG):
                return cls(path.resolve())
        known = sorted(path.parent.name for path in Path(runs).glob(f"*/{CONFIG}"))
        raise UserError(
            f"no sweep {name!r} in {runs}/: "
            + (f"there are {', '.join(known[-5:])}" if known else "it holds none; give run.dir=… if it is elsewhere")
        )

    @property
    def name(self) -> str:
        """Name of the sweep: of its folder."""
        return self.path.name

    @property
    def trials(self) -> Path:
        """Folder of the trials' run folders."""
        return self.path / "trials"

    @property
    def logs(self) -> Path:
        """Folder of what each trial printed."""
        return self.path / "logs"

    def write_config(self, sweep: SweepConfig) -> None:
        """Keep the configuration, without passwords."""
        tree = redact_tree(sweep.model_dump(mode="json"))
        tree["run"] |= {"dir": str(self.path.parent), "name": self.name}
        write_atomically(self.path / CONFIG, seal_yaml(dump_yaml(tree)))

    def check_config(self) -> None:
        """See that the configuration is what :meth:`write_config` wrote.

        Raises:
            UserError: it is not, or cannot be read.
        """
        try:
            unseal_yaml(read_file(self.path / CONFIG).decode("utf-8", "replace"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / CONFIG}: {brief(error)}") from error

    def read_plan(self) -> SavedPlan:
        """What :meth:`write_plan` wrote; empty before the first time.

        Raises:
            UserError: damaged, or of a version that kept other things.
        """
        try:
            return TypeAdapter(SavedPlan).validate_json(unseal(read_file(self.path / TRIALS)))
        except FileNotFoundError:
            return SavedPlan()
        except OSError as error:
            raise UserError(f"{self.path / TRIALS}: cannot be read: {brief(error)}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in (".".join(map(str, first["loc"])),) if part)
            told = brief(ValueError(f"{where}{first['msg']}"))
            raise UserError(f"{self.path / TRIALS}: cannot be read as a sweep's trials: {told}") from None
        except ValueError as error:
            raise UserError(f"{self.path / TRIALS}: {brief(error)}") from error

    def write_plan(self, plan: SavedPlan) -> None:
        """Replace the state of the trials, completely or not at all.

        Raises:
            LostRunError: the folder is not, or no longer, this driver's.
        """
        if self.claim is not None:
            self.claim.check()
        write_atomically(self.path / TRIALS, seal(json.dumps(asdict(plan), indent=1)) + "\n")

    @contextmanager
    def exclusive(self) -> Iterator[SweepFolder]:
        """The same folder for its only driver, see :func:`bgrpo.runs.ownership.own`."""
        with own(self.path, f"sweep {self.name}") as claim:
            yield replace(self, claim=claim)


def load_new_sweep(config: str | None, overrides: list[str]) -> SweepConfig:
    """The configuration of a new sweep; ``run.dir`` becomes absolute."""
    sweep = load_config(SweepConfig, config, overrides)
    remember_secrets_in(sweep.model_dump(mode="json"))
    check_name(sweep.run.name)
    return _placed(sweep, dir=str(settle_runs(sweep.run.dir)))


def load_resumed_sweep(name: str, overrides: list[str]) -> tuple[SweepConfig, SweepFolder]:
    """A sweep that goes on, with the user's overrides on top.

    Args:
        name: of the sweep in ``run.dir`` of the overrides (``runs`` by default), or the path of its folder.
        overrides: ``key.path=value`` each.

    Raises:
        UserError: unknown sweep, or an override that would change what it compares.
    """
    place = [override for override in overrides if override.startswith("run.dir=")]
    folder = SweepFolder.open(settle_runs(load_config(SweepConfig, None, place).run.dir), name)
    folder.check_config()
    saved = load_config(SweepConfig, str(folder.path / CONFIG), [])
    sweep = load_config(SweepConfig, str(folder.path / CONFIG), overrides)
    remember_secrets_in(sweep.model_dump(mode="json"))
    before, after = (redact_tree(each.model_dump(mode="json")) for each in (saved, sweep))
    changed = [key for key in SweepConfig.model_fields if before[key] != after[key]]
    refused = [key for key in changed if key not in CHANGEABLE]
    if refused:
        raise UserError(
            f"sweep {folder.name} cannot be resumed with another {', '.join(refused)}: that would change what it "
            f"compares; start a new sweep for that, or resume without it"
        )
    refuse_hidden(f"sweep {folder.name}", sweep.model_dump(mode="json"))
    return _placed(sweep, dir=str(folder.path.parent), name=folder.name), folder


def _placed(sweep: SweepConfig, **place: str) -> SweepConfig:
    """The same sweep in another place; nothing is validated again."""
    return sweep.model_copy(update={"run": sweep.run.model_copy(update=place)})


def newest_metrics(run: Path) -> dict[str, Any]:
    """The newest value of each metric of a run, ``time`` included; empty before its first step.

    Raises:
        UserError: the metrics cannot be read; damaged lines are left out.
    """
    newest: dict[str, Any] = {}
    for line in read_steps_of(RunFolder(run).metrics_path)[0]:
        newest |= {name: value for name, value in line.items() if value is not None}
    return newest


def last_validation(run: Path, metric: str) -> float | None:
    """The last value of a validation metric."""
    value = newest_metrics(run).get(f"validation/{metric}")
    return None if value is None else float(value)


def settle_interrupted(trials: Sequence[Trial], trials_dir: Path, metric: str) -> None:
    """Trials that a killed driver left running: those whose run is complete have finished, the others are pending.

    Their last attempt is charged up to its last step.
    """
    for trial in trials:
        if trial.state == "running":
            run = trials_dir / trial.id
            until = newest_metrics(run).get("time")
            charge(trial, until if until is not None else trial.since or 0.0)
            trial.state = "pending"
            if RunFolder(run).info().get("status") == "finished":
                trial.state, trial.ended, trial.value = "finished", until, last_validation(run, metric)


def _describe_machine() -> dict[str, Any]:
    """Versions of packages, commit of the code where it is a git checkout, and the machine."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=GIT_S, check=False)
        commit = found.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {
        "versions": installed_versions(),
        "commit": commit,
        "machine": {"platform": platform.platform(), "node": platform.node(), "cores": os.cpu_count()},
    }
