"""What the threads of a process do at this moment, for reports on stalls."""

from __future__ import annotations

import sys
import sysconfig
import threading
import traceback
from collections.abc import Collection, Mapping
from types import CodeType

FRAMES_SHOWN = 14
THREADS_SHOWN = 8
PROCESSES_SHOWN = 6
NO_ANSWER = "does not answer: stopped, or in native code"
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]


def current_stacks(but_in: Collection[CodeType] = ()) -> str:
    """The stacks of this process's Python threads, see :func:`describe_threads`; without the calling thread's own.

    Args:
        but_in: threads that are inside one of these functions are left out too.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {}
    for ident, innermost in sys._current_frames().items():
        frames = list(traceback.walk_stack(innermost))[::-1]
        if ident != threading.get_ident() and not any(frame.f_code in but_in for frame, _ in frames):
            stacks[names.get(ident, f"thread {ident}")] = traceback.StackSummary.extract(iter(frames))
    return describe_threads(stacks)


def describe_threads(stacks: Mapping[str, traceback.StackSummary]) -> str:
    """One block per distinct stack: the threads that have it, then its innermost calls, the innermost last.

    Left out are threads that only wait inside Python's library and Ray, and what those two do below the first call
    of other code.

    Args:
        stacks: of each thread, by its name; the innermost call last.
    """
    texts = {name: text for name, stack in stacks.items() if (text := _describe_stack(stack))}
    if not texts:
        return "no thread does anything"
    return _blocks(texts, THREADS_SHOWN, "threads")


def describe_processes(texts: Mapping[str, str]) -> str:
    """One block per distinct text: the processes that have it, then the text, indented.

    Args:
        texts: what each process does, by its name; usually many do the same.
    """
    return _blocks(texts, PROCESSES_SHOWN, "processes")


def _blocks(texts: Mapping[str, str], most: int, things: str) -> str:
    owners: dict[str, list[str]] = {}
    for name, text in texts.items():
        owners.setdefault(text, []).append(name)
    shown = list(owners.items())[:most]
    lines = [f"{', '.join(names)}:\n{_indent(text)}" for text, names in shown]
    if rest := sum(len(names) for _, names in list(owners.items())[most:]):
        lines.append(f"{rest} more {things}")
    return "\n".join(lines)


def _describe_stack(stack: traceback.StackSummary) -> str:
    first = next((depth for depth, frame in enumerate(stack) if not _is_library(frame.filename)), None)
    if first is None:
        return ""
    frames = stack[first:]
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames[-FRAMES_SHOWN:]]
    return "\n".join([f"… {len(frames) - FRAMES_SHOWN} calls", *lines] if len(frames) > FRAMES_SHOWN else lines)


def _is_library(filename: str) -> bool:
    if filename.startswith("<"):
        return True
    if "/site-packages/" in filename:
        return "/site-packages/ray/" in filename
    return filename.startswith(f"{_STANDARD_LIBRARY}/")


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
