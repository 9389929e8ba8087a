"""Measuring processes: a function runs in a Python of its own, with its own threads and allocator.

The child is ``python -m bgrpo.bench.processes``. It writes lines of JSON to standard output: ``{"turn": 1}`` per turn,
then ``{"result": …, "machine": …}``, or ``{"disagreement": …}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from bgrpo.bench.turns import DisagreementError
from bgrpo.runs.environment import ALLOCATOR_ENVIRONMENT


class Measured(NamedTuple):
    """What a measuring process found, and the machine as it saw it (:func:`bgrpo.bench.machine.describe_machine`)."""

    result: Any
    machine: dict[str, Any]


def measure_in_process(
    function: str, request: dict[str, Any], threads: int | None, on_turn: Callable[[], None]
) -> Measured:
    """Call a function in a new process, which lives no longer than this call.

    Args:
        function: ``module:name``. It is called as ``name(on_turn=…, **request)`` and returns plain values.
        request: plain values.
        threads: of the process, whose allocator is then tuned too. None: it sets both itself, as a training run does.
        on_turn: called after each of its turns.

    Raises:
        DisagreementError: raised by the function.
        RuntimeError: the process failed; its own traceback went to standard error.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bgrpo.bench.processes", function, json.dumps(request), json.dumps(threads)],
        stdin=subprocess.PIPE,  # its end tells the child that this process has died
        stdout=subprocess.PIPE,
        text=True,
        env=measuring_environment(threads),
    )
    answers: dict[str, Any] = {}
    try:
        for line in process.stdout or ():
            said = json.loads(line)
            answers |= said
            if "turn" in said:
                on_turn()
        status = process.wait()
    finally:
        process.kill()
        process.wait()
    if "disagreement" in answers:
        raise DisagreementError(answers["disagreement"])
    if "result" not in answers:
        raise RuntimeError(f"the process that runs {function} with {request} ended with status {status}, see above")
    return Measured(answers["result"], answers["machine"])


def measuring_environment(threads: int | None) -> dict[str, str]:
    """This process's environment with quiet libraries, and, given threads, these and the allocator set.

    The C library and OpenMP read these before the first line of Python, so they need a process of their own.
    """
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    if threads is None:
        return quiet
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**quiet, **ALLOCATOR_ENVIRONMENT, **limits, "TOKENIZERS_PARALLELISM": "false"}


def answer(function: str, request: dict[str, Any], threads: int | None) -> None:
    """The child's work. What libraries print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = function.partition(":")
    call = getattr(import_module(module), name)
    import torch

    from bgrpo.bench.machine import describe_machine

    def say(**line: object) -> None:
        print(json.dumps(line), file=answers, flush=True)

    if threads is not None:
        torch.set_num_threads(threads)
    machine = describe_machine()
    try:
        result = call(on_turn=lambda: say(turn=1), **request)
    except DisagreementError as error:
        say(disagreement=str(error))
    else:
        say(result=result, machine=machine)


def _end_with_parent() -> None:
    """End this process when standard input does, which the parent holds open as long as it lives."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    answer(sys.argv[1], *map(json.loads, sys.argv[2:]))
