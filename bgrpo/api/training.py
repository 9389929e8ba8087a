"""``bgrpo.train``: one call from policy, problems and rewards to a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

from bgrpo.api.given import Given, Problems, Rewards
from bgrpo.api.policy import PolicyLike
from bgrpo.api.run import Run
from bgrpo.config import TrainConfig, dotted_keys, load_config, refuse_repeated
from bgrpo.errors import Stopped, UserError, representation
from bgrpo.runs.run_folder import RunFolder, load_new_config, load_resumed_config, settle_runs
from bgrpo.runs.stopping import INTERRUPTED_STATUS, status_of, stop_signals

if TYPE_CHECKING:
    from rich.console import Console

    from bgrpo.training.run_result import RunResult

Keys = Mapping[str, Any]
"""Configuration keys, dotted or in sections: ``{"learner.learning_rate": 1e-5}`` or ``{"learner": {…}}``."""

_ARGUMENTS = {
    "algorithm": "algorithm",
    "steps": "steps",
    "epochs": "epochs",
    "group_size": "rollout.group_size",
    "seed": "seed",
    "name": "run.name",
    "runs": "run.dir",
}


def train(
    policy: PolicyLike | None = None,
    problems: Problems | None = None,
    rewards: Rewards | None = None,
    *,
    algorithm: Literal["bgrpo", "grpo", "reinforce"] | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    group_size: int | None = None,
    lora: int | Keys | None = None,
    seed: int | None = None,
    config: str | PathLike[str] | Keys | None = None,
    overrides: Keys | None = None,
    name: str | None = None,
    runs: str | PathLike[str] | None = None,
    local: bool = False,
    resume: str | PathLike[str] | Run | None = None,
    progress: bool = True,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Run:
    """Train a policy by reinforcement learning.

    What is left out has the default of ``bgrpo train``. Everything becomes one configuration, checked as on the
    command line, and one run's folder, which every command reads.

    Args:
        policy: to start from: ``"shipped"``, a folder, a model id of the Hugging Face Hub; or a model of transformers
            with its tokenizer, which stay as they are.
        problems: a file, a ``datasets.Dataset``, a list of dictionaries with a column ``prompt``; or a task's name.
            A mapping gives splits: ``{"train": …, "test": …}``; else validation and test are held out.
        rewards: functions ``f(prompts, completions, **columns) -> list`` or ``f(prompt, completion) -> float``, paths
            of reward models, names of metrics; one, a list, or a mapping of names; each alone or with a weight. The
            default is the task's check. Functions run in processes of their own: one that no module holds is written
            into the run's folder by value.
        algorithm: whose groups are beams (``bgrpo``) or samples.
        steps: training steps.
        epochs: passes over the training problems, in place of ``steps``.
        group_size: completions of a prompt.
        lora: learn a LoRA adapter of this rank, or with these keys of ``learner.lora``, in place of all weights.
        seed: of everything random.
        config: a shipped configuration's name or a YAML file to begin from; or configuration keys.
        overrides: further configuration keys.
        name: of the run; default: made of algorithm and time.
        runs: folder of all runs; default: ``runs``.
        local: in this process, without Ray: one learner, the same result.
        resume: go on with this run, which has its policy, problems and rewards already.
        progress: show it.
        on_step: called with each training step and its metrics.

    Returns:
        The run, whose newest checkpoint is complete; where the file ``stop`` in its folder ended it early, its status
        is ``stopped``.

    Raises:
        UserError: an argument is wrong, or training diverged; what was wrong, where, and what would be right.
        RunError: the run failed; the message holds the first cause.
        KeyboardInterrupt: Ctrl-C; what was learned is saved, and ``resume`` goes on.
        SystemExit: SIGTERM, likewise; the status is 143.
    """
    for key, value in (("local", local), ("progress", progress)):
        if not isinstance(value, bool):
            raise UserError(f"{key}={representation(value)}: expected True or False")
    values = dict(zip(_ARGUMENTS, (algorithm, steps, epochs, group_size, seed, name, runs), strict=True))
    keys: dict[str, Any] = {_ARGUMENTS[key]: value for key, value in values.items() if value is not None}
    if lora is not None:
        keys["learner.lora"] = _mapping("lora", lora) if isinstance(lora, Mapping) else {"rank": lora}
    base, config_keys = split_config(config)
    over = check_keys("overrides", overrides)
    refuse_repeated(
        (key.split("."), value, f"{key}={representation(value)}") for key, value in [*over.items(), *keys.items()]
    )
    given = Given(keys=config_keys | over | keys)
    if resume is not None:
        arguments = {"policy": policy, "problems": problems, "rewards": rewards, "config": base, "name": name}
        if extra := [key for key, value in arguments.items() if value is not None]:
            raise UserError(f"resume: a run goes on with its own {', '.join(extra)}: leave out {', '.join(extra)}")
        further = {key: value for key, value in given.keys.items() if key != "run.dir"}
        loaded = load_resumed_config(TrainConfig, _run_path(resume, runs), [], keys=further)
    else:
        given.add_policy(policy)
        given.add_problems(problems, names_task(base, given.keys))
        given.add_rewards(rewards)
        if twice := [key for key in over if given.keys[key] is not over[key]]:
            raise UserError(f"overrides: {twice[0]} is given as an argument too: leave one of them out")
        loaded = load_new_config(TrainConfig, base, [], given.keys)
    write = given.write if given.has_objects else None
    with given.in_their_words():
        result = _run(loaded, base, resume is not None, local, _console(progress), on_step, write)
    return Run(result.folder)


def split_config(config: str | PathLike[str] | Keys | None) -> tuple[str | None, dict[str, Any]]:
    """A configuration's name and keys, of which one is nothing.

    Raises:
        UserError: it is neither.
    """
    if config is None or isinstance(config, str | PathLike):
        return (None if config is None else fspath(config)), {}
    return None, check_keys("config", config)


def check_keys(what: str, keys: Keys | None) -> dict[str, Any]:
    """Dotted key -> value, of sections too.

    Raises:
        UserError: they are no mapping, or one key has two values.
    """
    found = [(".".join(path), value) for path, value in dotted_keys(TrainConfig, _mapping(what, keys))]
    refuse_repeated((key.split("."), value, f"{key}={representation(value)}") for key, value in found)
    return dict(found)


def _mapping(what: str, keys: Keys | None) -> dict[str, Any]:
    if keys is not None and not isinstance(keys, Mapping):
        raise UserError(f"{what}: is a {type(keys).__name__}: expected a mapping as {{'learner.learning_rate': 1e-5}}")
    return dict(keys or {})


def names_task(base: str | None, keys: Mapping[str, Any]) -> bool:
    """Whether a configuration says whose the problems are."""
    named = load_config(TrainConfig, base, [], keys)
    return "task" in named.model_fields_set and "name" in named.task.model_fields_set


def _run_path(resume: Any, runs: Any) -> str:
    if isinstance(resume, Run):
        return str(resume.folder)
    if not isinstance(resume, str | PathLike):
        raise UserError(f"resume: is a {type(resume).__name__}: expected a run, its name or its folder")
    return str(RunFolder.open(settle_runs(fspath(runs or "runs")), fspath(resume)).path)


def _run(
    config: TrainConfig,
    config_name: str | None,
    resume: bool,
    local: bool,
    console: Console,
    on_step: Callable[[int, Mapping[str, float]], None] | None,
    write: Callable[[RunFolder, TrainConfig], TrainConfig] | None,
) -> RunResult:
    from bgrpo.training import driver
    from bgrpo.training.machinery import Machinery

    with stop_signals(ends_process=False) as signals, _as_python_ends():
        machinery: Machinery
        if local:
            from bgrpo.training.in_process import InProcess

            machinery = InProcess()
        else:
            from bgrpo.distributed.train.training_run import RayMachinery

            machinery = RayMachinery()
        result = driver.run_training(machinery, config, config_name, resume, console, None, on_step, write)
        if result.stopped and signals.asked is not None:
            raise Stopped(f"{signals.asked}: {_how_to_go_on(result.folder)}", status_of(signals.asked))
        return result


@contextmanager
def _as_python_ends() -> Iterator[None]:
    """What a signal asked for, as Python's own exceptions."""
    try:
        yield
    except Stopped as stop:
        interrupted = stop.status == INTERRUPTED_STATUS
        if interrupted and hasattr(sys, "ps1"):  # a notebook or a shell
            raise KeyboardInterrupt(stop.name) from None
        print(stop.name, file=sys.stderr)
        raise Interrupted(stop.name) if interrupted else SystemExit(stop.status) from None


class Interrupted(KeyboardInterrupt, SystemExit):
    """Ctrl-C in a script: a KeyboardInterrupt that, where nobody catches it, ends the script with status 130.

    Python alone would end it with that status or with 1, depending on which libraries run code while it ends.
    """

    code = INTERRUPTED_STATUS


def _how_to_go_on(folder: RunFolder) -> str:
    return f"run {folder.name} is stopped; go on with bgrpo.train(resume={str(folder.path)!r})"


def _console(progress: bool) -> Console:
    from rich.console import Console

    from bgrpo.display.terminal import table_console

    return table_console(stderr=True) if progress else Console(quiet=True)
