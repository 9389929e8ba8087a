"""The folder of a run, owned, with its checked input: of a new run, or of one that goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.display.terminal import progress_bar
from bgrpo.learning.learner_state import training_store
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.missing_steps import missing_steps
from bgrpo.runs.preparation import Preparation, check_input, checkpoint_room, load_problems, save_problems
from bgrpo.runs.run_folder import ROOM, RunFolder, check_place
from bgrpo.runs.same_input import check_same_input, record_input
from bgrpo.training.run_attempt import new_run, resumed_run, say, say_begins_again
from bgrpo.waits import waiting

WriteGiven = Callable[[RunFolder, TrainConfig], TrainConfig]
"""Writes what was given as objects into a new run's folder, and names it in the configuration that it returns."""

Owned = tuple[TrainConfig, RunFolder, Preparation]


@contextmanager
def resumed_owned(config: TrainConfig, console: Console) -> Iterator[Owned]:
    """The folder of a run that goes on, which is nobody else's meanwhile, and its input: all of it is checked here."""
    with resumed_run(config, console) as folder:
        with progress_bar("reading problems") as show:
            prepared = check_input(config, load_problems(folder), show)
        with waiting("the run's input to be compared with what it began with"):
            check_same_input(folder, prepared.inputs)
        for note in prepared.splits.notes:
            say(console, note)
        with waiting("the newest checkpoint to be checked, byte by byte"):
            newest = training_store(config, folder).latest(lambda line: say(console, line))
        say_begins_again(folder, newest, console)
        if newest is not None and (line := missing_steps(folder, CheckpointStore.step_of(newest))):
            say(console, line)
        steps = folder.load_config(TrainConfig).steps
        if config.steps != steps and config.learner.schedule != "constant":
            say(
                console,
                f"steps={config.steps}, where the run had {steps}: its {config.learner.schedule} schedule of the "
                f"learning rate is stretched over {config.steps} steps from here on",
            )
        folder.resume(config)
        yield config, folder, prepared


@contextmanager
def new_owned(
    config: TrainConfig, config_name: str | None, console: Console, write_given: WriteGiven | None
) -> Iterator[Owned]:
    """The same of a new run. Its folder is made when its input is known to be good, or to be written there first."""
    check_place(config.run.dir, config.run.name)
    prepared = None if write_given is not None else _checked(config, console)

    def fill(folder: RunFolder) -> None:
        nonlocal config, prepared
        if write_given is not None:
            config = write_given(folder, config)
        prepared = prepared or _checked(config, console)
        save_problems(prepared.splits, folder)
        record_input(folder, prepared.inputs)
        config = _with_steps(config, prepared, console)
        folder.write_config(config)
        folder.update(problems=prepared.counts, steps=config.steps)

    with new_run(config, config_name, fill) as folder:
        assert prepared is not None
        yield config, folder, prepared


def _with_steps(config: TrainConfig, prepared: Preparation, console: Console) -> TrainConfig:
    """The configuration with the steps that its epochs come to, from here on known everywhere."""
    problems = len(prepared.splits.train)
    config = config.with_steps(problems)
    if config.epochs is not None:
        say(console, f"epochs={config.epochs:g} of {problems:,} problems: {config.steps:,} steps")
    return config


def _checked(config: TrainConfig, console: Console) -> Preparation:
    with progress_bar("reading problems") as show:
        prepared = check_input(config, None, show)
    for note in prepared.splits.notes:
        say(console, note)
    learner = config.learner
    room = ROOM + checkpoint_room(prepared.policy, learner.reference.sync_every > 0, learner.lora)
    check_place(config.run.dir, None, room=room)
    return prepared
