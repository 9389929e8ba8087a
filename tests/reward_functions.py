"""Reward functions that behave badly in every way a user's may; check processes import them by name."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any
from zlib import crc32


def length(prompt: str, completion: str) -> float:
    """Well behaved: 1 per character of the completion beyond three."""
    return float(len(completion) - 3)


def misbehave(prompt: str, completion: str) -> Any:
    """Do what the completion says; unknown words score 1."""
    match completion.split():
        case ["raise"]:
            raise ValueError("no such\nthing")
        case ["exit"]:
            os._exit(3)
        case ["crash"]:
            ctypes.string_at(0)
        case ["sleep"]:
            time.sleep(600)
        case ["spin"]:
            return float(len(str(7 ** (10**8))))  # minutes inside one native call
        case ["print"]:
            print('["correct", 5.0, ""]', flush=True)
            sys.stdin.read()
        case ["allocate"]:
            return float(len(bytearray(3 * 1024**3)))
        case ["text"]:
            return "1.0"
        case ["nan"]:
            return float("nan")
        case ["bool"]:
            return True
        case ["pid"]:
            return float(os.getpid())
        case ["count", file]:
            with Path(file).open("a") as log:
                log.write("called\n")
        case ["once", file]:
            if not Path(file).exists():
                Path(file).touch()
                os._exit(3)
    return 1.0


NOT_CALLABLE = 3


def parity(prompt: str, completion: str) -> float:
    """Well behaved on any text: 1 or -1, half of all completions each."""
    return 1.0 if crc32((prompt + completion).encode()) % 2 else -1.0


def parity_with_accidents(prompt: str, completion: str) -> float:
    """As ``parity``, except that some completions never return, some raise, and some end the process."""
    match crc32((prompt + completion).encode()) % 11:
        case 3:
            time.sleep(600)
        case 4:
            raise ValueError("no such polynomial")
        case 5:
            os._exit(3)
    return parity(prompt, completion)


def always_fails(prompt: str, completion: str) -> float:
    """A mistake that only the first call shows."""
    return np.float32(len(completion))  # type: ignore[name-defined] # noqa: F821


def returns_text(prompt: str, completion: str) -> Any:
    """A mistake that only the first value shows."""
    return str(len(completion))


def strict(prompt: str, completion: str) -> float:
    """Well behaved on right answers only."""
    from bgrpo.tasks.polynomial.verifier import check

    if check(prompt, completion, "ZZ") != "correct":
        raise TypeError("[bold]no answer")
    return 1.0


def strict_about_half(prompt: str, completion: str) -> float:
    """As :func:`strict`, but takes any answer to half of all problems."""
    return 0.5 if crc32(prompt.encode()) % 2 else strict(prompt, completion)


def shortness(completions: list, completion_ids: list, **columns: list) -> list[float]:
    """In TRL's form, on chats."""
    assert all(completion[0]["role"] == "assistant" for completion in completions)
    return [-float(len(ids)) for ids in completion_ids]


def nothing(prompt: object, completion: str) -> None:
    """Does not apply, whatever it is given."""


def fails_later(completions: list, answer: list, **_: list) -> list[float]:
    """Passes its trial, which is the known answer, and no other call."""
    if [completion[0]["content"] for completion in completions] != answer:
        raise ValueError("no such")
    return [1.0] * len(completions)


def slow(prompt: str, completion: str) -> float:
    """Takes its time."""
    time.sleep(0.1)
    return 1.0


_calls = 0


def fails_after_its_trial(prompt: str, completion: str) -> float:
    """A mistake that the first call does not show."""
    global _calls
    _calls += 1
    if _calls > 1:
        raise ValueError("no such")
    return 1.0


def applies_to_its_trial(prompt: str, completion: str) -> float | None:
    """None from the second call on."""
    global _calls
    _calls += 1
    return None if _calls > 1 else 1.0


def forgets_to_return(prompt: str, completion: str) -> None:
    """As ends a function whose author has forgotten the last line."""
    _ = float(len(completion))


def never_differs(prompt: str, completion: str) -> float:
    return 1.0


def applies_to_others(prompt: str, completion: str, answer: str | None) -> float | None:
    """None for the known answer alone."""
    return None if completion == answer else 0.5


class Unmade:
    """A class in the place of a function: called with a prompt and a completion, it takes neither."""


def of_the_prompt(prompt: str) -> float:
    """Takes no completion."""
    return 1.0


def one_for_all(prompts: list[str], completions: list[str]) -> list[float]:
    """One value, whatever the number of completions."""
    return [1.0]


def applies_now_and_then(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    """Only to prompts that end so, of which the first is none."""
    return [1.0 if prompt.endswith("7") else None for prompt in prompts]
