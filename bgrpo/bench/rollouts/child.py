"""The process that measures: one request as JSON, its argument; lines of JSON on standard output.

``{"turn": 1}`` after every turn, then ``{"result": …}`` or ``{"disagreement": …}``. Run by
:mod:`bgrpo.bench.rollouts.parent` as ``python -m bgrpo.bench.rollouts.child``, with the allocator and the threads set.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from bgrpo.bench.machine import describe_machine
from bgrpo.bench.rollouts.cases import DisagreementError, choose_cases
from bgrpo.bench.rollouts.measure import Limits, measure_case, measure_peak


def main() -> None:
    """Answer the request. What libraries print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(sys.argv[1])

    def answer(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(request["threads"])
    case = choose_cases([request["case"]])[0]
    if "peak_of" in request:
        answer({"result": measure_peak(case, request["peak_of"])})
        return
    machine = describe_machine()
    try:
        rows = measure_case(case, request["engines"], Limits(**request["limits"]), lambda: answer({"turn": 1}))
    except DisagreementError as error:
        answer({"disagreement": str(error)})
    else:
        answer({"result": {"rows": rows, "machine": machine}})


def _end_with_parent() -> None:
    """End this process when standard input does, which the parent holds open as long as it lives."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
