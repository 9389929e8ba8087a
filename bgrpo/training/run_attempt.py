"""One attempt at a run: its folder, how it ended, and what signals ask of its learners. No Ray here."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console

from bgrpo.config import PretrainConfig, TrainConfig
from bgrpo.errors import LostRunError, RunError, Stopped, UserError, summary
from bgrpo.runs.ownership import has_owner, newest_owner
from bgrpo.runs.run_folder import RAY_JOB_VARIABLE, RunFolder
from bgrpo.runs.stopping import SAVE_S, StopSignals, last_words

STOP_FILE = "stop"
END_S = 6.0
"""Longest wait for a call in a thread that was told to end; a command is ended before that, whatever hangs."""

JOB_SAVE_S = 90.0
"""What learners of a submitted job may take to save a checkpoint: in our cluster files ``ray job stop`` waits 120 s."""


class Background:
    """One call in a thread, so that the main thread can show progress and take signals.

    As a block it leaves no such thread behind: what the call stands on, as Ray, is taken down after the block, and a
    thread that is in its native code then would crash the process.

    Args:
        call: what to do.
        end: makes the call end soon; for a block that ends before it. What the call raises then is of no interest.

    Attributes:
        error: what the call raised, once it has ended.
    """

    def __init__(self, call: Callable[[], None], end: Callable[[], None] | None = None) -> None:
        self.error: BaseException | None = None
        self._call = call
        self._make_end = end
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._make_end is not None and not self.wait(0):
            self._make_end()
            self.wait(END_S)

    def wait(self, seconds: float) -> bool:
        """True once the call has ended; waits at most this long for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self.error = error


@contextmanager
def new_run(
    config: TrainConfig | PretrainConfig, config_name: str | None, fill: Callable[[RunFolder], None]
) -> Iterator[RunFolder]:
    """The folder of a new run, owned and filled; one that could not be filled, or was not to be, leaves nothing.

    Args:
        config: of the run.
        config_name: what the user gave as ``--config``.
        fill: writes the run's input into the folder.
    """
    made, filled = RunFolder.create(config, config_name), False
    try:
        with made.owned() as folder:
            fill(folder)
            filled = True
            yield folder
    finally:
        if not filled and not has_owner(made.path):  # a --resume may have been quicker than this run
            shutil.rmtree(made.path, ignore_errors=True)


@contextmanager
def resumed_run(config: TrainConfig | PretrainConfig, console: Console) -> Iterator[RunFolder]:
    """The folder of a run that goes on with ``config``, owned; tells when its last owner was killed.

    Raises:
        UserError: another process owns it, or ``config`` would change its result.
    """
    old = RunFolder.open(config.run.dir, str(config.run.name))
    if old.was_killed:
        say(console, f"run {old.name} was interrupted: {newest_owner(old.path)} was killed")
    with old.owned() as folder:
        folder.check_same_result(config)
        yield folder


@dataclass(slots=True)
class Attempt:
    """How far an attempt at a run came.

    Attributes:
        begun: it may have left something to go on from.
        ended: the run's status, once the attempt has come to its end.
    """

    begun: bool
    ended: str | None = None


@contextmanager
def recorded_attempt(
    folder: RunFolder, resumed: bool, signals: StopSignals, console: Console, command: str
) -> Iterator[Attempt]:
    """Keep how the block ended in the run's folder. A signal that stopped it ends the block, not the caller.

    A new run that could not begin, because Ray did not start or has no room, leaves no folder: its name stays free.

    Args:
        folder: of the run.
        resumed: it has begun before.
        signals: of the process.
        console: for what cannot be kept.
        command: that goes on with such a run.

    Raises:
        Stopped: a second Ctrl-C; says how to go on.
    """
    attempt = Attempt(begun=resumed)
    status, cause = "failed", ""
    how_to_go_on = f"go on with: {command} --resume {folder.path}"

    def end_at_once(status: str, cause: str) -> str:
        set_status(folder, status, console, cause)
        return how_to_go_on if status == "stopped" else ""

    try:
        with signals.translated(), last_words(end_at_once):
            yield attempt
    except Stopped as stop:
        status, attempt.begun = "interrupted" if signals.insisted else "stopped", True
        if signals.insisted:
            cause = "a second Ctrl-C, which saves nothing more"
            raise Stopped(f"{stop.name}, at once: {how_to_go_on}", stop.status) from stop
    except Exception as error:
        cause = str(error) if isinstance(error, UserError | RunError) else summary(error)
        raise
    finally:
        with signals.gently(lambda _: 0.0):
            if attempt.begun:
                set_status(folder, attempt.ended or status, console, cause)
            else:
                shutil.rmtree(folder.path, ignore_errors=True)


def set_status(folder: RunFolder, status: str, console: Console, cause: str = "") -> None:
    """Say in ``run.json`` how the run ended; a full disk or a lost folder must not hide why it did."""
    try:
        folder.update(status=status, cause=cause or None)
    except (OSError, UserError) as error:
        say(console, f"{folder.path / 'run.json'} still says running: {error}")
    except LostRunError:  # somebody else's record
        pass


def say(console: Console, text: str) -> None:
    """Print a line as it is: a folder's name may hold what looks like markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def say_begins_again(folder: RunFolder, newest: Path | None, console: Console) -> None:
    """Tell of a run that goes on without a checkpoint that its steps are done again; and of damaged metrics.

    Args:
        folder: of the run.
        newest: its newest checkpoint.
        console: for the line.
    """
    steps = folder.metrics()
    if newest is None and steps:
        say(console, f"run {folder.name} has saved no checkpoint: its {len(steps):,} steps are done again, from step 1")


def ask_learners_to_stop(
    folder: RunFolder, name: str, last_step: int, saved_step: int, step_s: float, console: Console
) -> float:
    """What a signal does while learners learn: have them save what they have learned, if they have.

    Args:
        folder: of the run.
        name: of the signal.
        last_step: newest training step that is complete.
        saved_step: of the newest checkpoint.
        step_s: seconds of a training step.
        console: told what comes.

    Returns:
        Seconds to wait for it; see :meth:`bgrpo.runs.stopping.StopSignals.gently`.
    """
    if last_step <= saved_step:
        since = f"the checkpoint of step {saved_step}" if saved_step else "the start"
        say(console, f"{name}: stopping; no step has ended since {since}")
        return 0.0
    folder.check_owner()
    (folder.path / STOP_FILE).touch()
    limit_s = JOB_SAVE_S if RAY_JOB_VARIABLE in os.environ else max(SAVE_S, 2 * step_s)
    say(console, f"{name}: saving a checkpoint, then stopping, within {limit_s:.0f} s; a second Ctrl-C stops at once")
    return limit_s
