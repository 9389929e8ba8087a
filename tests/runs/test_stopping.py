"""Signals in a process of their own: raised, asked gently, insisted on, in a hung process, under foreign handlers."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM

import pytest

HEAD = """
import os, signal, sys, threading, time
from bgrpo.cli import app
from bgrpo.errors import Stopped
from bgrpo.runs import stopping
from bgrpo.runs.stopping import end_of, last_words, stop_signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored
def say(*words): print(*words, flush=True)
def work():
    with stop_signals() as signals:
        with stop_signals() as inner:
            assert inner is signals
        body(signals)
    say("over")
"""
TAIL = """
try:
    work()
except Stopped as stop:
    say("stopped by", stop.name)
    sys.exit(end_of(stop.status))
"""
WAIT = "say('ready'); time.sleep(60)"
BODIES = {
    "raised": WAIT,
    "gently": """
with signals.gently(lambda name: say('asked', name) or 30.0):
    say('ready')
    while signals.asked is None: time.sleep(0.01)
    signals.check()
signals.raise_asked()""",
    "time to save is over": """
with signals.gently(lambda name: say('asked', name) or 0.0):
    say('ready')
    while True: time.sleep(0.01); signals.check()""",
    "hangs": """
stopping.END_S = 0.5
class Hangs:
    def __exit__(self, *error): say('hangs'); threading.Event().wait()
    def __enter__(self): pass
with last_words(lambda status, cause: say('status', status)), Hangs():
    say('ready'); time.sleep(60)""",
    "waits": """
class Waits:
    def __exit__(self, *error): say('waits'); threading.Event().wait()
    def __enter__(self): pass
with Waits(): say('ready'); time.sleep(60)""",
    "closes": """
class Closes:
    def __exit__(self, *error): say('closes'); time.sleep(0.5); say('closed')
    def __enter__(self): pass
class Waits:
    def __exit__(self, *error): say('waits'); threading.Event().wait()
    def __enter__(self): pass
with Closes(), Waits(): say('ready'); time.sleep(60)""",
    "a thread is left": """
threading.Thread(target=time.sleep, args=(3600,)).start()
say('ready'); time.sleep(60)""",
    "a library's handler": """
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
say('ready'); time.sleep(60)""",
    "turned into an error": """
say('ready')
try: time.sleep(60)
except Stopped: raise SystemError("returned a result with an exception set")""",
    "taken back": """
signal.signal(signal.SIGTERM, signal.SIG_IGN); signals.again()
say('ready'); time.sleep(60)""",
}


def run(body: str, *numbers: signal.Signals) -> tuple[int, list[str]]:
    """Exit status and what a process says that gets the first signal when it is ready, others when it has said more."""
    indented = "\n    ".join(BODIES[body].strip().splitlines())
    code = HEAD + f"def body(signals):\n    {indented}\n" + TAIL
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        said = []
        assert child.stdout is not None and child.stderr is not None
        for number in numbers:
            said.append(child.stdout.readline().strip())
            child.send_signal(number)
        rest, errors = child.stdout.read(), child.stderr.read()  # communicate() would lose what readline() has taken in
        child.wait(60)
    assert "Traceback" not in errors, errors
    return child.returncode, [*said, *rest.split("\n")[:-1], *errors.split("\n")[:-1]]


@pytest.mark.parametrize(
    ("body", "numbers", "status", "said"),
    [
        ("raised", [SIGTERM], 143, ["ready", "stopped by SIGTERM"]),
        ("raised", [SIGINT], 130, ["ready", "stopped by SIGINT"]),
        ("raised", [SIGHUP], 129, ["ready", "stopped by SIGHUP"]),
        ("gently", [SIGHUP], 129, ["ready", "asked SIGHUP", "stopped by SIGHUP"]),
        ("waits", [SIGHUP, SIGINT], 130, ["ready", "waits", "stopped by SIGINT"]),
        ("gently", [SIGTERM], 143, ["ready", "asked SIGTERM", "stopped by SIGTERM"]),
        ("gently", [SIGINT], 130, ["ready", "asked SIGINT", "stopped by SIGINT"]),
        ("time to save is over", [SIGTERM], 143, ["ready", "asked SIGTERM", "stopped by SIGTERM"]),
        (
            "hangs",
            [SIGTERM],
            143,
            ["ready", "hangs", "status stopped", "error: stopped: something did not end in time"],
        ),
        (
            "hangs",
            [SIGINT],
            130,
            ["ready", "hangs", "status stopped", "error: stopped: something did not end in time"],
        ),
        ("waits", [SIGINT, SIGINT], 130, ["ready", "waits", "stopped by SIGINT"]),
        ("closes", [SIGINT] * 4, 130, ["ready", "waits", "closes", "closed", "stopped by SIGINT"]),
        (
            "closes",
            [SIGTERM, SIGINT, SIGTERM, SIGINT],
            130,
            ["ready", "waits", "closes", "closed", "stopped by SIGINT"],
        ),
        ("a thread is left", [SIGTERM], 143, ["ready", "stopped by SIGTERM"]),
        ("waits", [SIGTERM, SIGINT], 130, ["ready", "waits", "stopped by SIGINT"]),
        ("a library's handler", [SIGTERM], 143, ["ready", "stopped by SIGTERM"]),
        ("turned into an error", [SIGINT], 130, ["ready", "stopped by SIGINT"]),
        ("taken back", [SIGTERM], 143, ["ready", "stopped by SIGTERM"]),
    ],
)
def test_signals(body: str, numbers: list[signal.Signals], status: int, said: list[str]) -> None:
    found, lines = run(body, *numbers)
    assert (found, len(lines)) == (status, len(said)), lines
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True)), lines


TERMINAL = """
import os, pty, signal, sys, time
from pathlib import Path
record = Path(sys.argv[1])
pid, master = pty.fork()
if pid:
    while b"ready" not in os.read(master, 100): pass
    os.close(master)  # the terminal is closed: SIGHUP, and nothing can be printed any more
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored
from bgrpo.display.terminal import PlainConsole
from bgrpo.errors import Stopped
from bgrpo.runs.redaction import redacted_output
from bgrpo.runs.stopping import end_of, stop_signals
IGNORED
with redacted_output():
    console = PlainConsole()
    try:
        with stop_signals() as signals:
            with signals.gently(lambda name: console.print("saving") or 9.0):
                console.print("ready")
                for _ in range(LONG):
                    time.sleep(0.1)
                    signals.check()
                    print("a line", file=sys.stderr, flush=True)
                    if signals.asked: break
            record.write_text(f"saved at {signals.asked}")
            console.print("done")
            signals.raise_asked()
    except Stopped as stop:
        sys.exit(end_of(stop.status))
"""


@pytest.mark.parametrize(
    ("ignored", "status", "said"),
    [("", 129, "saved at SIGHUP"), ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", 0, "saved at None")],
    ids=["closed", "nohup"],
)
def test_a_terminal_that_is_closed_ends_nothing_half_way(ignored: str, status: int, said: str, tmp_path: Path) -> None:
    code = TERMINAL.replace("IGNORED", ignored).replace("LONG", "20" if ignored else "600")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "record")], capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, (tmp_path / "record").read_text()) == (status, said), done.stderr
