"""One owner per folder of a run or sweep: a lock, a record that says who, a heartbeat, a number that only goes up.

The lock of the operating system decides between processes of one machine, and of several where the file system has it.
Where it has none, the record does: its process is looked for on the same machine, its heartbeat on another one. Every
owner's record is a file of its own, ``owner/00000001.json`` and so on, made only if nobody else has made it; its time
of change is the heartbeat, and 0 once the owner has ended by itself. Its number travels to the processes that work for
the owner: who sees a later number, or not its own record, writes no more.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from bgrpo.errors import LostRunError, UserError
from bgrpo.files import open_file, parse_object, read_file

FOLDER, LOCK = "owner", "lock"
BEAT_S = 5.0
STALE_S = 60.0
"""An owner on another machine whose heartbeat is older has ended: the caches of network file systems last as long."""

LOOK_S = 0.5
"""So long the lock is asked for: others take it too to see whether the folder is free, and give it back at once."""

CLOCK_TOLERANCE_S = 2.0  # the time of a process's start is told in two ways
_LARGEST_PID, _END_OF_TIME = 2**31 - 1, 1e12
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """One process that owns a folder, or did.

    Attributes:
        number: 1 for the first owner of the folder, one more for each later one.
        host: name of its machine.
        machine: of one start of that machine's system; tells machines of one name apart.
        pid: of the process.
        started: when the process began, in seconds since 1970; with ``pid`` it is never another process.
        since: when it became the owner.
        token: of no other owner of any folder.
    """

    number: int
    host: str
    machine: str
    pid: int
    started: float
    since: str
    token: str

    @classmethod
    def here(cls, number: int) -> Owner:
        """This process."""
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        began = psutil.Process().create_time()
        return cls(number, socket.gethostname(), _machine(), os.getpid(), began, since, uuid.uuid4().hex)

    @property
    def is_here(self) -> bool:
        """It runs, or ran, where this process can look for it; containers of one machine have names of their own."""
        return (self.machine, self.host) == (_machine(), socket.gethostname())

    @property
    def lives(self) -> bool:
        """Whether the process is there; to be asked only :attr:`is_here`."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < CLOCK_TOLERANCE_S
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@dataclass(frozen=True, slots=True)
class Claim:
    """What an owner, and every process that works for it, shows before it writes into the folder."""

    folder: Path
    owner: Owner

    def check(self) -> None:
        """Go on only as long as the folder is this owner's.

        Raises:
            LostRunError: the folder has gone or was replaced, or another process has taken it over.
        """
        if _read(self.folder, self.owner.number) != self.owner:
            raise LostRunError(
                f"{self.folder}: the folder was removed or replaced while {self.folder.name} was running, and what it "
                f"held is gone with it; start it again, under another run.name if the name is taken"
            )
        if _record(self.folder, self.owner.number + 1).exists():
            raise LostRunError(
                f"{self.folder}: {newest_owner(self.folder)} has taken {self.folder.name} over from {self.owner}, "
                f"which ends and writes no more"
            )


@contextmanager
def own(folder: Path, what: str) -> Iterator[Claim]:
    """Be the only owner of a folder; it ends with the block, or with the process, however that ends.

    Args:
        folder: exists; gets ``owner/``.
        what: names it in messages: ``run quick-1``.

    Raises:
        UserError: another process owns it, or the folder cannot be written.
    """
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
        lock = os.open(folder / FOLDER / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        has_locks = _take(lock, folder, what)
        claim = _claim(folder, what, has_locks)
        over = threading.Event()
        thread = threading.Thread(target=_beat, args=(claim, over), name="owner's heartbeat", daemon=True)
        thread.start()
        try:
            yield claim
        finally:
            over.set()
            thread.join()
            if _read(folder, claim.owner.number) == claim.owner and newest_owner(folder) == claim.owner:
                with suppress(OSError):  # it grows old by itself
                    os.utime(_record(folder, claim.owner.number), (0, 0))
    finally:
        os.close(lock)


def check_free(folder: Path, what: str) -> None:
    """Refuse a folder that another process owns, before the work that comes before owning it.

    Raises:
        UserError: as of :func:`own`.
    """
    try:
        lock = os.open(folder / FOLDER / LOCK, os.O_RDWR)
    except OSError:  # nobody ever owned it, or it cannot be written, which owning it will say
        return
    try:
        _refuse_living(folder, what, _take(lock, folder, what))
    finally:
        os.close(lock)


def newest_owner(folder: Path) -> Owner | None:
    """Who owns the folder, or owned it last; None where nobody ever did, or the record cannot be read."""
    return _read(folder, _newest_number(folder))


def has_owner(folder: Path) -> bool:
    """Whether somebody owns the folder now, as far as a reader can tell; False when its owner was killed."""
    number = _newest_number(folder)
    owner, age_s = _read(folder, number), _age(folder, number, time.time())
    if age_s is None or age_s >= STALE_S:
        return False
    return owner is None or not owner.is_here or owner.lives


def _take(lock: int, folder: Path, what: str) -> bool:
    """Take the lock; False where the file system has none. Who only looks has it for a moment."""
    deadline = time.monotonic() + LOOK_S
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _taken(what, newest_owner(folder)) from None
                time.sleep(0.02)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _unwritable(folder, error) from error
        return False
    return True


def _claim(folder: Path, what: str, has_locks: bool) -> Claim:
    """Write this process's record, unless the last owner still lives."""
    try:
        owner = Owner.here(_refuse_living(folder, what, has_locks) + 1)
        record = _record(folder, owner.number)
        try:
            file = record.open("x", encoding="utf-8")
        except FileExistsError:  # another one was quicker
            raise _taken(what, newest_owner(folder)) from None
        try:
            with file:
                file.write(json.dumps(asdict(owner)))
        except OSError:
            record.unlink()
            raise
    except OSError as error:
        raise _unwritable(folder, error) from error
    return Claim(folder, owner)


def _refuse_living(folder: Path, what: str, has_locks: bool) -> int:
    """The number of the last owner; raises when it still lives, as far as its record and its heartbeat say."""
    number = _newest_number(folder)
    last = _read(folder, number)
    with tempfile.NamedTemporaryFile(dir=folder / FOLDER) as probe:  # the clock of the file system
        age_s = _age(folder, number, os.fstat(probe.fileno()).st_mtime)
    if age_s is not None:
        gone = has_locks or not last.lives if last is not None and last.is_here else age_s >= STALE_S
        if not gone:  # the lock of an owner here goes with it
            raise _taken(what, last, age_s)
    return number


def _beat(claim: Claim, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        try:
            os.utime(_record(claim.folder, claim.owner.number))
        except FileNotFoundError:  # the folder has gone: the next write ends the run, and says so
            return
        except OSError as error:  # the next write says what it means
            logger.warning("%s: the owner's heartbeat cannot be written: %s", claim.folder, error)


def _age(folder: Path, number: int, now: float) -> float | None:
    """Seconds since an owner's last sign of life; None where there is no such owner, or it ended by itself."""
    try:
        with open_file(_record(folder, number)) as file:  # opened: network file systems look again then
            beat = os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    return max(0.0, now - beat) if beat else None


def _newest_number(folder: Path) -> int:
    return max((int(path.stem) for path in (folder / FOLDER).glob("*.json") if path.stem.isdecimal()), default=0)


def _read(folder: Path, number: int) -> Owner | None:
    try:
        found = Owner(**parse_object(read_file(_record(folder, number))))
    except (OSError, ValueError, TypeError):
        return None
    return found if _can_be(found) else None


def _can_be(found: Owner) -> bool:
    """Whether a record, which may be damaged, describes a process that there could be."""
    texts = (found.host, found.machine, found.since, found.token)
    numbers = (found.number, found.pid)
    return (
        all(isinstance(text, str) and text.isprintable() for text in texts)
        and all(type(number) is int and 0 < number <= _LARGEST_PID for number in numbers)
        and type(found.started) in (int, float)
        and 0 <= found.started < _END_OF_TIME
    )


def _record(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number:08d}.json"


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return socket.gethostname()


def _taken(what: str, owner: Owner | None, age_s: float | None = None) -> UserError:
    again = "" if age_s is None else f", whose last sign of life is {age_s:.0f} s old (over {STALE_S:.0f} s: ended)"
    return UserError(
        f"{what} belongs to {owner or 'a process that has not said yet who it is'}{again}: wait for its end, or end it,"
        f" then resume"
    )


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot be written ({error.strerror or error}): free some space, or see to it that this user may "
        f"write there"
    )
