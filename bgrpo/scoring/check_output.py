"""What checks print: it is somebody else's code that prints, so what reaches our standard error is bounded."""

from __future__ import annotations

import os
import stat
import threading

SHOWN_BYTES = 1 << 20
"""In a file, as the log of a process of Ray."""
FEW_BYTES, FEW_LINES = 1 << 12, 20
"""On a terminal, or in a pipe."""
_PIECE = 1 << 16
_JOIN_S = 1.0
_TOLD_AGAIN = 10  # so many times as much


class CheckOutput:
    """Where the processes of one check print, one after the other: what comes first is shown, the rest is counted.

    It goes to this process's standard error: where that is a file, up to :data:`SHOWN_BYTES`, else a few lines.

    That bytes are left out is said with the first of them, again whenever they have become ten times as many, and with
    their number at the end.

    Args:
        what: names the check.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._few = not _is_file(2)
        self._room, self._lines = (FEW_BYTES, FEW_LINES) if self._few else (SHOWN_BYTES, SHOWN_BYTES)
        self._shown = 0
        self._left_out = self._told = 0
        self._readers: list[threading.Thread] = []

    def pipe(self) -> int:
        """Descriptor for a process to print to, for the caller to close; it is read until all have closed theirs."""
        reader, writer = os.pipe()
        self._readers = [thread for thread in self._readers if thread.is_alive()]
        self._readers.append(threading.Thread(target=self._read, args=(reader,), name="check's output", daemon=True))
        self._readers[-1].start()
        return writer

    def close(self) -> None:
        """Once the processes have ended: shows what they have printed last, and how much was left out."""
        for thread in self._readers:
            thread.join(_JOIN_S)
        if self._left_out > self._told:
            self._tell()

    def _read(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as pipe:
            while piece := pipe.read(_PIECE):
                shown = b"".join(piece[: self._room].splitlines(keepends=True)[: self._lines])
                self._room -= len(shown)
                self._lines -= shown.count(b"\n")
                self._shown += len(shown)
                if len(shown) < len(piece):
                    self._room = 0
                self._write(shown)
                self._left_out += len(piece) - len(shown)
                if self._left_out > _TOLD_AGAIN * self._told:
                    self._tell()

    def _tell(self) -> None:
        self._told = self._left_out
        self._write(
            f"\n{self._what}: {self._left_out:,} bytes of what it printed are left out so far, after the first "
            f"{self._shown:,}{', which would be more in a file: 2> FILE' * self._few}\n".encode()
        )

    @staticmethod
    def _write(data: bytes) -> None:
        try:
            while data:
                data = data[os.write(2, data) :]
        except OSError:  # nobody reads it, or there is no room: checks go on
            pass


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:  # closed
        return False
