"""What checks print: it is somebody else's code that prints, so what reaches our standard error is bounded."""

from __future__ import annotations

import os
import threading

SHOWN_BYTES = 1 << 20
_PIECE = 1 << 16
_JOIN_S = 1.0
_TOLD_AGAIN = 10  # so many times as much


class CheckOutput:
    """Where the processes of one check print, one after the other: the first bytes are shown, the rest is counted.

    That bytes are left out is said with the first of them, again whenever they have become ten times as many, and with
    their number at the end.

    Args:
        what: names the check.
        shown_bytes: so many go to this process's standard error.
    """

    def __init__(self, what: str, shown_bytes: int = SHOWN_BYTES) -> None:
        self._what = what
        self._room = self._shown_bytes = shown_bytes
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
                shown = piece[: self._room]
                self._room -= len(shown)
                self._write(shown)
                self._left_out += len(piece) - len(shown)
                if self._left_out > _TOLD_AGAIN * self._told:
                    self._tell()

    def _tell(self) -> None:
        self._told = self._left_out
        self._write(
            f"\n{self._what}: {self._left_out:,} bytes of what it printed are left out so far, after the first "
            f"{self._shown_bytes:,}\n".encode()
        )

    @staticmethod
    def _write(data: bytes) -> None:
        try:
            while data:
                data = data[os.write(2, data) :]
        except OSError:  # nobody reads it, or there is no room: checks go on
            pass
