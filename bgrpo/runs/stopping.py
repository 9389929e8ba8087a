"""SIGTERM, SIGHUP and Ctrl-C, in every phase of a command: answered soon, and with a documented status.

The first signal ends what the main thread does by raising :class:`bgrpo.errors.Stopped` there, so that everything is
closed on the way out. In a phase that has something to save it asks for that instead (:meth:`StopSignals.gently`).
A thread that sees signals even while the main thread is in native code ends the process when it has not ended in time.
SIGHUP comes when a terminal is closed: what is printed then goes nowhere, and ends nothing.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO

from bgrpo.errors import Stopped

INTERRUPTED_STATUS = 130  # as a shell reports a process ended by SIGINT
STOPPED_STATUS = 143  # and by SIGTERM
HUNG_UP_STATUS = 129  # and by SIGHUP
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVE_S = 10.0
"""What a phase may take to save what it has, before it is ended without; see :meth:`StopSignals.gently`."""

END_S, CLOSE_S = 13.0, 3.0
"""So long after the signal, and after the time to save, the process is ended, whatever hangs: 15 s are promised."""

ENDED_LATE = "stopped: something did not end in time, and was left; complete checkpoints are kept"

Words = Callable[[str, str], str | None]
_words: list[Words] = []


@contextmanager
def last_words(say: Words) -> Iterator[None]:
    """While the block runs, :func:`end_process` calls ``say(status, cause)`` first, and tells what that returns too."""
    _words.append(say)
    try:
        yield
    finally:
        _words.remove(say)


def end_process(status: str, cause: str, exit_status: int, terminal: TextIO | None = None) -> None:
    """End this process at once, from any thread, where it cannot be ended in an orderly way.

    Args:
        status: of the run, for its records.
        cause: the line for the user.
        exit_status: of the process.
        terminal: where the line goes; default: the standard error.
    """
    told = [say(status, cause) for say in reversed(_words)]
    with suppress(OSError):
        print(f"error: {'; '.join([cause, *filter(None, told)])}", file=terminal or sys.stderr, flush=True)
    os._exit(exit_status)


def status_of(name: str | None) -> int:
    """Exit status of a process that ends for a signal, or was asked to stop in another way."""
    statuses = {signal.SIGINT.name: INTERRUPTED_STATUS, signal.SIGHUP.name: HUNG_UP_STATUS}
    return statuses.get(str(name), STOPPED_STATUS)


def hung_up() -> bool:
    """Whether SIGHUP has asked this process to end: nobody may read what it prints any more."""
    return any(signals.hung_up for signals in _active)


def leave_dead_outputs() -> None:
    """Standard output and error whose terminal, or reader, has gone lead nowhere from here on."""
    ends = select.poll()
    for descriptor in (1, 2):
        ends.register(descriptor, 0)
    for descriptor, event in ends.poll(0):
        if event & (select.POLLERR | select.POLLHUP):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def end_of(status: int) -> int:
    """The exit status of a process whose work is over; one that was stopped ends here.

    What it was stopped in may still be at work in a thread, in native code, and the interpreter's own end would take
    away what that stands on: the process would abort.
    """
    if status in (INTERRUPTED_STATUS, STOPPED_STATUS, HUNG_UP_STATUS):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    return status


class StopSignals:
    """What the main thread does with SIGTERM, SIGHUP and Ctrl-C.

    Attributes:
        asked: name of the first signal that came; None before.
        hung_up: SIGHUP came, first or later.
        insisted: a second signal came, and was Ctrl-C: nothing more is to be saved. Further ones change nothing.

    Args:
        ends_process: the process is a command's own, to be ended when it does not end in time.
    """

    def __init__(self, ends_process: bool = True) -> None:
        self._ends_process = ends_process
        self.asked: str | None = None
        self.insisted = self.hung_up = False
        self._raised: Stopped | None = None
        self._gently: Callable[[str], float] | None = None
        self._to_ask = False
        self._deadline: float | None = None
        self._end_at = 0.0
        self._over = threading.Event()
        self._numbers: list[signal.Signals] = []

    @contextmanager
    def gently(self, ask: Callable[[str], float]) -> Iterator[None]:
        """While the block runs, the first signal does not end it: the next :meth:`check` asks for what is to be saved.

        Not the signal's handler, which may find the main thread in the middle of a line of output.

        Args:
            ask: called with the name of the signal; returns the seconds that saving may take.
        """
        self._gently = ask
        try:
            yield
        finally:
            self._gently = None

    def check(self) -> None:
        """To be called in a gentle block now and then: asks after a signal, and sees to the time.

        Raises:
            Stopped: the time to save is over.
        """
        if self.hung_up:
            leave_dead_outputs()
        if self._to_ask and self._gently is not None and self.asked is not None:
            self._to_ask = False
            save_s = self._gently(self.asked)
            self._deadline = time.monotonic() + save_s
            self._end_at = max(self._end_at, self._deadline + CLOSE_S)
        if self.asked is not None and self._deadline is not None and time.monotonic() > self._deadline:
            self._deadline = None
            raise Stopped(self.asked, status_of(self.asked))

    def raise_asked(self) -> None:
        """After a gentle block.

        Raises:
            Stopped: a signal came in it.
        """
        if self.asked is not None:
            raise Stopped(self.asked, status_of(self.asked))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        first, self.asked = self.asked is None, self.asked or name
        if number == signal.SIGHUP:
            self.hung_up = True
            leave_dead_outputs()
        if not first:
            if number == signal.SIGINT and not self.insisted:  # SIGTERM is repeated by some that send it
                self.insisted = True  # once: what it raises must come to its end, and further ones are in its way
                self._raise(name)
        elif self._gently is not None:
            self._to_ask = True
        else:
            self._raise(name)

    def _raise(self, name: str) -> NoReturn:
        self._raised = Stopped(name, status_of(name))
        raise self._raised

    @contextmanager
    def translated(self) -> Iterator[None]:
        """What comes of :class:`Stopped` in foreign code is that again: native code makes errors of its own of it.

        So is the end that Ray's own handler asks for while Ray starts, with the signal's number as its status.
        """
        try:
            yield
        except SystemExit as end:
            if end.code != signal.SIGTERM:
                raise
            raise Stopped(signal.SIGTERM.name, STOPPED_STATUS) from None
        except Exception as error:
            if self._raised is None:
                raise
            raise self._raised from error

    @contextmanager
    def _installed(self) -> Iterator[None]:
        self._numbers = [number for number in NUMBERS if not _is_ignored(number)]
        handlers = {number: signal.signal(number, self._handle) for number in self._numbers}
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=(reader,), name="stop signals", daemon=True)
        if self._ends_process:
            thread.start()
        try:
            with self.translated():
                yield
        finally:
            self._over.set()
            signal.set_wakeup_fd(previous)
            os.close(writer)  # ends the thread
            if self._ends_process:
                thread.join()
            os.close(reader)
            ending = self._ends_process and self.asked is not None
            for number, handler in handlers.items():
                signal.signal(number, _no_more if ending else handler)

    def again(self) -> None:
        """Take the signals back from a library that has set handlers of its own, as ``ray.init`` does."""
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _watch(self, reader: int) -> None:
        """See the first signal, and end the process when it has not ended long after."""
        while byte := os.read(reader, 1):
            if byte[0] in self._numbers:
                break
        else:
            return
        self._end_at = max(self._end_at, time.monotonic() + END_S)
        while not self._over.wait(0.2):
            if time.monotonic() > self._end_at:
                end_process("stopped", ENDED_LATE, status_of(signal.Signals(byte[0]).name))


def _is_ignored(number: signal.Signals) -> bool:
    """``nohup`` has SIGHUP ignored: the command goes on without its terminal."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _no_more(number: int, frame: FrameType | None) -> None:
    """The process is about to end for an earlier signal. Not ``SIG_IGN``, which the processes it starts would have."""


class _NoSignals(StopSignals):
    """Off the main thread, which alone gets signals."""

    def again(self) -> None:
        """Nothing was set."""


_active: list[StopSignals] = []


@contextmanager
def stop_signals(ends_process: bool = True) -> Iterator[StopSignals]:
    """These signals raise :class:`bgrpo.errors.Stopped` in the block; one inside another is that other one.

    Args:
        ends_process: as of :class:`StopSignals`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _NoSignals()
        return
    if _active:
        yield _active[-1]
        return
    signals = StopSignals(ends_process)
    _active.append(signals)
    try:
        with signals._installed():
            yield signals
    finally:
        _active.clear()
