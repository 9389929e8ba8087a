"""What Ray's errors about lost processes mean, in words."""

from __future__ import annotations

import re

from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayActorError, RayTaskError

from bgrpo.errors import UserError

SUDDEN_CAUSES = "it was killed (SIGKILL, as for lack of memory), crashed in native code, or called os._exit"
_SUDDEN_END = "Worker unexpectedly exits with a connection error"
_PROCESS = re.compile(r"pid: (\d+)\n.*?ip: (\S+)", re.DOTALL)
_NOISE = re.compile(r"\x1b\[[0-9;]*m|^[ ^]*\^[ ^]*\n", re.MULTILINE)


def is_node_loss(error: Exception) -> bool:
    """True when Ray says that the actor's node went away, or that nothing can be heard from it any more."""
    if isinstance(error, ActorDiedError):
        return error.preempted or "its node has died" in str(error)
    return isinstance(error, ActorUnavailableError | NodeDiedError)


def explain(error: Exception) -> str:
    """A failure in words: a user error's one line, the remote traceback, or how a process may have ended without."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
        return str(error.cause)
    text = _NOISE.sub("", str(error)).strip()
    if not isinstance(error, RayActorError) or _SUDDEN_END not in text:
        return text
    process = _PROCESS.search(text)
    which = f" (pid {process[1]} at {process[2]})" if process is not None else ""
    return f"its process{which} ended without an exception: {SUDDEN_CAUSES}"
