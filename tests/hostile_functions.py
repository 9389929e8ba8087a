"""Reward functions that do their worst to the process that calls them, each named by the completion it is given."""

from __future__ import annotations

import ctypes
import json
import json.encoder
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

CASES: dict[str, Callable[[], Any]] = {}


def hostile(prompt: str, completion: str) -> Any:
    """The case that the completion names; other completions score their length."""
    if completion in CASES:
        return CASES[completion]()
    return len(completion)


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def sockets() -> list[int]:
    """Every socket of this process."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()).startswith("socket:"):
                found.append(int(link.name))
        except FileNotFoundError:
            continue
    return found


def write(data: bytes) -> float:
    for number in sockets():
        view = memoryview(data)
        while view:
            view = view[os.write(number, view) :]
    return 1.0


# --- ends of the process ---


@case
def exit_at_once() -> None:
    os._exit(3)


@case
def exit_politely() -> NoReturn:
    sys.exit("enough")


@case
def interrupt() -> NoReturn:
    raise KeyboardInterrupt


@case
def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@case
def end_by_an_unnamed_signal() -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 6)


@case
def kill_its_parent() -> float:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    return 1.0


@case
def kill_its_group() -> None:
    os.killpg(0, signal.SIGKILL)


@case
def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@case
def stop_its_parent_and_exit() -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    os._exit(5)


@case
def recurse() -> float:
    return recurse() + 1


# --- forks ---


@case
def fork_and_return_twice() -> float:
    return 7.0 if os.fork() else 8.0


@case
def fork_unseen_and_return_twice() -> float:
    return 7.0 if ctypes.CDLL(None).fork() else 8.0


@case
def fork_and_raise_twice() -> NoReturn:
    raise ValueError("in the child" if os.fork() == 0 else "in the parent")


@case
def fork_and_leave_it_to_the_child() -> float:
    if os.fork():
        os._exit(4)
    return 8.0


@case
def crash_while_a_fork_holds_the_socket() -> None:
    if ctypes.CDLL(None).fork() == 0:
        time.sleep(600)
    os._exit(6)


# --- the channel ---


@case
def write_garbage() -> float:
    return write(b"garbage\n")


@case
def write_half_a_line() -> float:
    return write(b'["abc", 0, "correct", 5.0')


@case
def write_a_forged_answer() -> float:
    return write(b'["abc", 0, "correct", 5.0, ""]\n')


@case
def write_other_json() -> float:
    return write(b'{"a": [NaN, 1e999, null]}\n')


@case
def write_deep_json() -> float:
    return write(b"[" * 12_000 + b"\n")


@case
def write_no_utf8() -> float:
    return write(b"\xff\xfe\n")


@case
def write_without_end() -> float:
    return write(b"x" * 10_000_000)


@case
def drip() -> float:
    while True:
        write(b" ")
        time.sleep(0.01)


@case
def close_everything() -> float:
    os.closerange(3, 1000)
    return 1.0


@case
def put_a_file_in_the_place_of_the_socket() -> float:
    null = os.open(os.devnull, os.O_RDWR)
    for number in sockets():
        os.dup2(null, number)
    return 1.0


@case
def shut_the_socket() -> float:
    for number in sockets():
        socket.socket(fileno=number).shutdown(socket.SHUT_RDWR)
    return 1.0


# --- what checks are made with ---


@case
def patch_what_answers_are_made_with() -> float:
    json.dumps = json.loads = lambda *_, **__: "[]"  # type: ignore[assignment]
    json.encoder.encode_basestring_ascii = lambda _: '"correct"'
    json.JSONDecoder.decode = lambda *_: []  # type: ignore[assignment, method-assign]
    os.getpid = lambda: 1  # type: ignore[assignment]
    os._exit = lambda _: None  # type: ignore[assignment]
    signal.setitimer = lambda *_: (0.0, 0.0)  # type: ignore[assignment]
    socket.socket.sendall = socket.socket.recv = lambda *_: b""  # type: ignore[assignment, method-assign]
    return 9.0


@case
def ignore_every_signal() -> float:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


@case
def leave_threads_that_print() -> float:
    def talk() -> None:
        for _ in range(200):
            print("noise", flush=True)
            time.sleep(0.005)

    threading.Thread(target=talk, daemon=True).start()
    return 2.0


@case
def flood_the_output() -> float:
    print("[1]\n" * 200_000, flush=True)
    return 2.0


# --- exceptions ---


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Endless(Exception):
    def __str__(self) -> str:
        while True:
            time.sleep(1)


@case
def raise_unspeakable() -> NoReturn:
    raise Unspeakable


@case
def raise_endless() -> NoReturn:
    raise Endless


@case
def raise_a_long_text() -> NoReturn:
    raise ValueError("x" * 50_000_000)


@case
def raise_terminal_codes() -> NoReturn:
    raise ValueError("\x1b[2J\udc80[/bold]\r\x07red")


# --- values ---


class Value:
    def __init__(self, convert: Callable[[], Any]) -> None:
        self._convert = convert

    def __float__(self) -> Any:
        return self._convert()


def _fail() -> float:
    raise OSError("no value")


def _hang() -> float:
    while True:
        time.sleep(1)


VALUES: dict[str, Callable[[], Any]] = {
    "a value that raises": lambda: Value(_fail),
    "a value that hangs": lambda: Value(_hang),
    "a value that is text": lambda: Value(lambda: "1.0"),
    "a huge integer": lambda: 10**400,
    "a huge fraction": lambda: Fraction(10**400),
    "no number": lambda: Decimal("nan"),
    "a signalling NaN": lambda: Decimal("sNaN"),
    "infinity": lambda: float("inf"),
    "too much for the update": lambda: 1e300,
    "nothing": lambda: None,
    "text": lambda: "1.0",
    "a list": lambda: [1.0],
    "a complex number": lambda: 1j,
    "a function": lambda: hostile,
    "a generator": lambda: (x for x in [1.0]),
}
CASES |= VALUES


# --- what is left behind ---


def leave_processes(prompt: str, completion: str) -> float:
    """Start processes in every way and note their ids in the file ``prompt``; then do what ``completion`` says."""
    below = subprocess.Popen(["sleep", "600"])
    apart = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
    shell = 'setsid sh -c \'trap "" TERM HUP; sleep 600 & echo $! $$ >> "$0"; wait\' "$0" &'
    subprocess.run(["sh", "-c", shell, prompt], check=True)
    while len(Path(prompt).read_text().split()) < 2 if Path(prompt).exists() else True:
        time.sleep(0.01)
    with Path(prompt).open("a") as file:
        file.write(f"{below.pid} {apart.pid}\ndone\n")
    match completion:
        case "exit":
            os._exit(3)
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
    return 1.0


_warm = False


def slow_first_call(prompt: str, completion: str) -> float:
    """As a function that imports a large library when it is first called."""
    global _warm
    if not _warm:
        time.sleep(0.9)
        _warm = True
    if completion == "hang":
        time.sleep(600)
    return 1.0
