"""The folder of one run: what was asked for, what happened so far, and what came out."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from bgrpo.config import PretrainConfig, TrainConfig, load_config
from bgrpo.errors import LostRunError, UserError, brief
from bgrpo.files import is_file, open_to_append, parse_object, read_file, seal, unseal, write_atomically
from bgrpo.policies.source import absolute_policy
from bgrpo.runs.metrics_lines import read_steps_of
from bgrpo.runs.ownership import Claim, check_free, has_owner, newest_owner, own
from bgrpo.runs.redaction import REDACTED, redact_tree, remember_secrets_in
from bgrpo.settings.spelling import nearest
from bgrpo.settings.strict_yaml import dump_yaml

RunConfig = TypeVar("RunConfig", bound=TrainConfig | PretrainConfig)

# What a resumed run may change: how far it goes, and where and how it runs, never what it computes.
CHANGEABLE_ON_RESUME = (
    "steps",
    "epochs",
    "budget",
    "run",
    "out",
    "checkpoint",
    "tracking",
    "evaluation.every",
    "rollout.actors",
    "rollout.min_actors",
    "rollout.max_actors",
    "rollout.scale_up_s",
    "rollout.scale_down_s",
    "rollout.stand_ins",
    "rollout.placement_s",
    "rollout.node_resource",
    "rollout.cpus_per_actor",
    "rollout.gpus_per_actor",
    "rollout.timeout_s",
    "rollout.keep_samples",
    "rollout.log_groups",
    "learner.cpus_per_worker",
    "learner.gpus_per_worker",
    "learner.max_failures",
    "learner.node_resource",
    "verifier.processes",
    "verifier.node_resource",
    "watchdog",
    "cpus_per_worker",
    "gpus_per_worker",
    "max_failures",
    "keep",
)
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entry point of a submitted job
GIVEN = "given"
_RESULT = "result"
"""Of ``run.json``: what decides the result, so that ``config.yaml`` does not change unnoticed."""

_COMPARED = ("policy.path", "learner.reference.path")
"""May have moved: what is there is compared, see :func:`bgrpo.runs.preparation.check_same_input`."""

RECORDED_PACKAGES = ("bgrpo", "torch", "transformers", "trl", "ray", "mlflow")

ROOM = 16 * 2**20
"""Bytes that a file system must have free for a run to begin: its folder without checkpoints."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NOT_NAMES = ("mlflow.db", "mlartifacts")  # MLflow's own, beside the runs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``<run.dir>/<name>/``. Only the path: cheap to send to other processes that see the same folder.

    Any process may read. A run's own processes write, each with the ``claim`` of the run's owner, see :meth:`owned`.
    """

    path: Path
    claim: Claim | None = field(default=None, compare=False)

    @classmethod
    def create(cls, config: TrainConfig | PretrainConfig, config_name: str | None) -> RunFolder:
        """Make the folder of a new run and write ``config.yaml`` and ``run.json``.

        Args:
            config: the run's configuration; ``run.dir`` and ``run.name`` say where.
            config_name: what the user gave as ``--config``; part of the default name.

        Raises:
            UserError: the name is taken or no plain folder name, or the folder cannot be written.
        """
        check_place(config.run.dir, config.run.name)
        runs, path, made = Path(config.run.dir), None, False
        try:
            runs.mkdir(parents=True, exist_ok=True)
            path = _make_named(runs, config.run.name) if config.run.name else _make_unnamed(runs, config, config_name)
            run = cls(path.resolve())
            for folder in (run.data, run.checkpoints):
                folder.mkdir()
            versions = installed_versions()
            run.update(status="running", config=config_name, started=_now(), versions=versions, steps=config.steps)
            run.write_config(config)
            made = True
        except OSError as error:
            raise UserError(
                f"run.dir={config.run.dir}: the run's folder cannot be written ({error.strerror or error}): "
                f"free some space or set run.dir to a folder that can be written"
            ) from error
        finally:
            if path is not None and not made:  # what was begun would stand in the way of the next attempt
                shutil.rmtree(path, ignore_errors=True)
        return run

    @classmethod
    def open(cls, runs: Path | str, name: str) -> RunFolder:
        """The folder of an existing run.

        Args:
            runs: folder of all runs (``run.dir``).
            name: the run's name, or the path of its folder.

        Raises:
            UserError: there is no such run; names the nearest and the last ones.
        """
        for path in (Path(runs) / name, Path(name)):
            if is_file(path / "run.json"):
                return cls(path.resolve())
        raise UserError(f"no run {name!r} in {runs}/: {_suggest(Path(runs), name)}")

    @property
    def name(self) -> str:
        """Name of the run: of its folder."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """The whole configuration, defaults included, without passwords."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per training step."""
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        """Folder of the problems that the run uses."""
        return self.path / "data"

    @property
    def given(self) -> Path:
        """Folder of what the run was given as objects: a policy, problems, functions."""
        return self.path / GIVEN

    @property
    def samples(self) -> Path:
        """Folder of what the policy wrote, see :mod:`bgrpo.runs.samples`."""
        return self.path / "samples"

    @property
    def group_log_path(self) -> Path:
        """Rewards and advantages for debugging, see :mod:`bgrpo.runs.group_log`."""
        return self.path / "groups.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        """Folder of the final policy."""
        return self.path / "policy"

    @property
    def evaluation_path(self) -> Path:
        """The before/after comparison."""
        return self.path / "evaluation.json"

    @property
    def validation_before_path(self) -> Path:
        """The starting policy's greedy rewards on the validation problems; win rates compare with them."""
        return self.path / "validation-before.json"

    @property
    def report_path(self) -> Path:
        """The picture of training curves and before/after bars."""
        return self.path / "report.png"

    @property
    def validations_path(self) -> Path:
        """The picture of the validations so far."""
        return self.path / "validations.png"

    @contextmanager
    def owned(self) -> Iterator[RunFolder]:
        """The same folder for its only writer, see :func:`bgrpo.runs.ownership.own`.

        Raises:
            UserError: another process has it.
        """
        with own(self.path, f"run {self.name}") as claim:
            yield replace(self, claim=claim)

    def check_owner(self) -> None:
        """To be called before anything is written.

        Raises:
            LostRunError: the folder is not, or no longer, this run's; see :meth:`bgrpo.runs.ownership.Claim.check`.
        """
        if self.claim is not None:
            self.claim.check()

    def info(self) -> dict[str, Any]:
        """What ``run.json`` says: status, config, started, versions, and what :meth:`update` added."""
        try:
            return parse_object(unseal(read_file(self.path / "run.json")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / 'run.json'}: cannot be read: {brief(error)}") from error

    @property
    def status(self) -> str:
        """What ``run.json`` says, but ``interrupted`` where the owner of a run that is running was killed."""
        return "interrupted" if self.was_killed else str(self.info().get("status", "unknown"))

    @property
    def was_killed(self) -> bool:
        """The run's last owner ended without a word."""
        running = self.info().get("status") == "running"
        return running and newest_owner(self.path) is not None and not has_owner(self.path)

    def update(self, **fields: Any) -> None:
        """Set fields of ``run.json``, complete or not at all.

        Raises:
            LostRunError: the folder is not this run's any more.
        """
        self.check_owner()
        info = self.info()
        if self.claim is not None and not info:
            raise LostRunError(f"{self.path / 'run.json'}: was removed while {self.name} was running")
        write_atomically(self.path / "run.json", seal(json.dumps(redact_tree(info | fields), indent=1)) + "\n")

    def with_steps(self, config: RunConfig) -> RunConfig:
        """The configuration of this run with the steps that its epochs come to.

        Raises:
            UserError: there are epochs, and the run does not say how many training problems it has.
        """
        if config.epochs is None:
            return config
        try:
            problems = int(self.info()["problems"]["train"]["used"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"run {self.name}: epochs={config.epochs:g}: its run.json does not say how many problems it trains on; "
                f"give steps"
            ) from error
        return cast(RunConfig, config.with_steps(problems))

    def append_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``: step, wall-clock time, metrics. Values that are not finite become null.

        Raises:
            LostRunError: the folder is not this run's any more.
            UserError: it cannot be written.
        """
        self.check_owner()
        lost = {name: None for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
        line = json.dumps({"step": step, "time": round(time.time(), 3)} | metrics | lost | {"step": step})
        try:
            with open_to_append(self.metrics_path) as file:
                file.write(seal(line) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.metrics_path}: cannot be written ({error.strerror}): free some space, or move away what is "
                f"there"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; one that is damaged is left out, as is a last one that a crash cut off."""
        steps, damaged = read_steps_of(self.metrics_path)
        if damaged:
            logger.warning("%s: %d damaged line(s), left out", self.metrics_path, damaged)
        return steps

    def truncate_after(self, step: int) -> None:
        """Forget the metrics of later steps than ``step``, and damaged lines: a resumed run makes them again."""
        self.check_owner()
        kept = [seal(json.dumps(line)) + "\n" for line in self.metrics() if line["step"] <= step]
        write_atomically(self.metrics_path, "".join(kept))

    def load_config(self, model: type[RunConfig]) -> RunConfig:
        """The configuration that the run was started, or last resumed, with."""
        return load_config(model, str(self.config_path))

    def check_same_result(self, config: TrainConfig | PretrainConfig) -> None:
        """Refuse a ``config`` with which this run would come to another result.

        Raises:
            UserError: names each key with both values.
        """
        written = flatten(self.load_config(type(config)).model_dump(mode="json"))
        recorded = self.info().get(_RESULT)
        saved = written | {key: value for key, value in _as_dict(recorded).items() if key in written}
        asked = flatten(redact_tree(config.model_dump(mode="json")))
        changed = [
            f"{key}={asked.get(key)!r} ({'config.yaml was changed: ' if asked.get(key) == written.get(key) else ''}"
            f"the run has {saved.get(key)!r})"
            for key in sorted(saved.keys() | asked.keys())
            if saved.get(key) != asked.get(key) and not _changeable(key)
        ]
        if changed:
            raise UserError(
                f"run {self.name} cannot be resumed with {', '.join(changed)}: that would change its result; start a "
                f"new run for that, or resume without it"
            )

    def resume(self, config: TrainConfig | PretrainConfig) -> None:
        """Go on with this run: check that ``config`` may continue it, and write what it changes.

        Raises:
            UserError: ``config`` changes what the run computes; names each key with both values.
        """
        self.check_same_result(config)
        self.write_config(config)
        self.update(status="running", resumed=_now(), versions=installed_versions(), steps=config.steps)

    def write_config(self, config: TrainConfig | PretrainConfig) -> None:
        """Write ``config.yaml``, and to ``run.json`` what of it decides the result."""
        tree = redact_tree(config.model_dump(mode="json"))
        result = {key: value for key, value in flatten(tree).items() if not _changeable(key) and key not in _COMPARED}
        tree["run"] |= {"dir": str(self.path.parent), "name": self.name}
        write_atomically(self.config_path, dump_yaml(tree))
        self.update(**{_RESULT: result})


def check_name(name: str | None) -> None:
    """Refuse what cannot be a run's or a sweep's folder.

    Raises:
        UserError: says what would be right.
    """
    if name is not None and (not _NAME.fullmatch(name) or name.lower() in _NOT_NAMES):
        raise UserError(
            f"run.name={name!r}: expected letters, digits, '.', '_' and '-', starting with a letter or digit, no more "
            f"than 200 (and not {' or '.join(_NOT_NAMES)})"
        )


def check_place(directory: str, name: str | None, kind: str = "run", room: int = ROOM) -> None:
    """Refuse a place where a new run or sweep could not begin, before anything is made there.

    Args:
        directory: ``run.dir``.
        name: ``run.name``; None for one that will be made up.
        kind: run or sweep, for the message.
        room: bytes that must be free.

    Raises:
        UserError: no name, a name that is taken, a folder that cannot be written, or too little room.
    """
    check_name(name)
    if "\0" in directory:
        raise UserError(f"run.dir={directory!r}: is no path")
    runs = Path(directory)
    if name is not None and os.path.lexists(runs / name):
        raise UserError(f"{kind} {name!r} exists in {runs}/: go on with it by --resume {name}, or set another run.name")
    there = next((path for path in (runs, *runs.absolute().parents) if os.path.lexists(path)), Path("/"))
    mend = "set run.dir to a folder that can be written"
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        why = "may not be written" if there.is_dir() else "is no folder"
        raise UserError(f"run.dir={directory}: the {kind}'s folder cannot be written ({there} {why}): {mend}")
    free = shutil.disk_usage(there).free
    if free < room:
        raise UserError(
            f"run.dir={directory}: {free / 2**20:.0f} MiB are free, and the {kind} needs {room / 2**20:.0f} MiB to "
            f"begin with: free some space, or {mend}"
        )


def settle_runs(directory: str) -> Path:
    """Where a relative ``run.dir`` lies: below the current folder, but in a Ray job below ``~/bgrpo``.

    A job's current folder is a copy of the submitted one that Ray deletes when the job has ended.
    """
    path = Path(directory).expanduser()
    if not path.is_absolute() and RAY_JOB_VARIABLE in os.environ:
        return Path.home() / "bgrpo" / path
    return path.absolute()


def load_new_config(
    model: type[RunConfig], config: str | None, overrides: Sequence[str], keys: Mapping[str, Any] | None = None
) -> RunConfig:
    """The configuration of a new run, see :func:`bgrpo.config.load_config`; folders in it become absolute.

    Learners and rollout actors work in other folders than the driver.
    """
    loaded = load_config(model, config, overrides, keys)
    remember_secrets_in(loaded.model_dump(mode="json"))
    check_name(loaded.run.name)
    if loaded.policy.path not in (None, "shipped"):
        policy = loaded.policy.model_copy(update={"path": absolute_policy(loaded.policy.path)})
        loaded = cast(RunConfig, loaded.model_copy(update={"policy": policy}))
    if isinstance(loaded, TrainConfig) and loaded.learner.reference.path is not None:
        found = {"path": absolute_policy(loaded.learner.reference.path)}
        learner = {"reference": loaded.learner.reference.model_copy(update=found)}
        loaded = cast(RunConfig, loaded.model_copy(update={"learner": loaded.learner.model_copy(update=learner)}))
    return _placed(loaded, {"dir": str(settle_runs(loaded.run.dir))})


def load_run_config(
    model: type[RunConfig], config: str | None, overrides: Sequence[str], resume: str | None
) -> RunConfig:
    """What a command line asks for: a new run's configuration, or with ``resume`` that of a run that goes on."""
    if resume is None:
        return load_new_config(model, config, overrides)
    return load_resumed_config(model, resume, overrides, config)


def load_resumed_config(
    model: type[RunConfig],
    resume: str,
    overrides: Sequence[str],
    config_name: str | None = None,
    keys: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of a run that goes on: its own ``config.yaml`` with the user's overrides on top.

    Args:
        model: the tree's class.
        resume: the run's name (in ``run.dir`` of the overrides, ``runs`` by default), or the path of its folder.
        overrides: ``key.path=value`` each.
        config_name: what the user gave as ``--config``, if anything; must be what the run was started with.
        keys: likewise from Python, see :func:`bgrpo.config.load_config`.

    Raises:
        UserError: unknown run, another configuration than the run's, or an override that does not fit.
    """
    place = [override for override in overrides if override.startswith("run.dir=")]
    runs = settle_runs(load_config(model, None, place).run.dir)
    run = RunFolder.open(runs, resume)
    check_free(run.path, f"run {run.name}")
    started_with = run.info().get("config")
    if config_name is not None and config_name != started_with:
        raise UserError(
            f"run {run.name} was started with {f'--config {started_with}' if started_with else 'no --config'}, not "
            f"with --config {config_name}: leave --config out, a resumed run has its own config.yaml"
        )
    config = run.with_steps(load_config(model, str(run.config_path), overrides, keys))
    remember_secrets_in(config.model_dump(mode="json"))
    run.check_same_result(config)
    refuse_hidden(f"run {run.name}", config.model_dump(mode="json"))
    return _placed(config, {"dir": str(run.path.parent), "name": run.name})


def refuse_hidden(what: str, tree: dict[str, Any]) -> None:
    """Refuse to go on with a configuration that was stored without a password which it needs.

    Args:
        what: that goes on, for the message.
        tree: the configuration as it was stored, with what the user gave again.

    Raises:
        UserError: names the key.
    """
    for key, value in flatten(tree).items():
        if REDACTED in str(value) and (tree["tracking"]["enabled"] or key != "tracking.uri"):
            off = ", or tracking.enabled=false" if key == "tracking.uri" else ""
            raise UserError(f"{what}: {key}={value} was stored without its password; give {key}=… again{off}")


def _placed(config: RunConfig, place: dict[str, str]) -> RunConfig:
    """The configuration with another place for its run; nothing is validated again."""
    return cast(RunConfig, config.model_copy(update={"run": config.run.model_copy(update=place)}))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested dictionary; an empty dictionary is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _changeable(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE_ON_RESUME)


def _make_named(runs: Path, name: str) -> Path:
    path = runs / name
    try:
        path.mkdir()
    except FileExistsError:
        check_place(str(runs), name)  # somebody was quicker: says so
        raise
    return path


def _make_unnamed(runs: Path, config: TrainConfig | PretrainConfig, config_name: str | None) -> Path:
    kind = config.algorithm if isinstance(config, TrainConfig) else "pretrain"
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(config_name or "defaults").stem).lstrip(".-_") or "config"
    name = f"{stem}-{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    attempt = 1
    while True:  # several runs may start in one second
        path = runs / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path


def _suggest(runs: Path, name: str) -> str:
    names: list[str] = []
    with contextlib.suppress(OSError):  # no folder can be called so, or one has just gone
        known = sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        names = [path.parent.name for path in known]
    if not names:
        return "it holds no run; give run.dir=… if the run is elsewhere"
    meant = nearest(name, names)
    hint = f"did you mean {meant!r}? " if meant else ""
    return f"{hint}the last ones are {', '.join(names[:3])}"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
