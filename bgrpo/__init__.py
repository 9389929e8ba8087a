"""Reinforcement learning with beam groups: GRPO whose group of completions is the set of a prompt's top-K beams.

``bgrpo.train``, ``bgrpo.decode``, ``bgrpo.evaluate``, ``bgrpo.load_policy`` and ``bgrpo.load_run`` are what it offers
from Python. Each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bgrpo.api.measuring import PolicyEvaluation, decode, evaluate
    from bgrpo.api.policy import Policy, load_policy
    from bgrpo.api.run import Run, load_run
    from bgrpo.api.training import train
    from bgrpo.errors import RunError, UserError
    from bgrpo.groups import Completion, Group

__all__ = [
    "Completion",
    "Group",
    "Policy",
    "PolicyEvaluation",
    "Run",
    "RunError",
    "UserError",
    "decode",
    "evaluate",
    "load_policy",
    "load_run",
    "train",
]

_HOMES = {
    "bgrpo.api.measuring": ("PolicyEvaluation", "decode", "evaluate"),
    "bgrpo.api.policy": ("Policy", "load_policy"),
    "bgrpo.api.run": ("Run", "load_run"),
    "bgrpo.api.training": ("train",),
    "bgrpo.errors": ("RunError", "UserError"),
    "bgrpo.groups": ("Completion", "Group"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
