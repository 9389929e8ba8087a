"""Trains, is killed by SIGKILL at random moments, resumes, says how it went: ``kill_worker.py FOLDER SEED KILLS``.

One process imports everything and forks a child for each attempt, before torch has started a thread. Half of the kills
come at any time of an attempt, half as soon as a checkpoint is being written. A run that is over despite the kills is
followed by another one. FOLDER gets the run ``undisturbed`` too. The last line printed is JSON: kills, kills while a
checkpoint was being written, and the folders of the disturbed runs, all of them finished.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from learner_cases import ScriptedSource, make_trainer, tiny_policy, train_config

import bgrpo.learning.trainer  # noqa: F401  # once, for all children
from bgrpo.learning.checkpoint import policy_folder
from bgrpo.policies.io import load_policy
from bgrpo.runs.checkpoints import CheckpointStore
from bgrpo.runs.folder import RunFolder

STEPS = 8
SECTIONS: dict[str, Any] = {
    "steps": STEPS,
    "checkpoint": {"every": 2, "keep": 2},
    "learner": {"num_iterations": 2, "minibatches": 2, "warmup_steps": 3, "schedule": "cosine", "max_grad_norm": 0.1},
}
MOST_ATTEMPTS = 5  # per kill


def train(folder: Path) -> None:
    """What a learner does: go on from the newest complete checkpoint."""
    run = RunFolder(folder)
    store = CheckpointStore(run.checkpoints, keep=2)
    latest = store.latest()
    policy = tiny_policy() if latest is None else load_policy(str(policy_folder(latest))).model
    run.truncate_after(0 if latest is None else store.step_of(latest))
    trainer = make_trainer(
        train_config(**SECTIONS),
        ScriptedSource(),
        folder / "trl",
        policy=policy,
        reference=None if latest is None else tiny_policy(),
        store=store,
        resume=latest,
        on_step=lambda metrics: run.append_metrics(int(metrics["step"]), metrics),
    )
    trainer.run()


def attempt(folder: Path) -> int:
    """Train in a child; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with (folder / "log").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            train(folder)
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def wait_until(over: float, child: int) -> int | None:
    """Exit status of the child if it ends before ``over`` (monotonic), else None."""
    while time.monotonic() < over:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.0005)
    return None


def wait_for_writing(checkpoints: Path, child: int, nth: int) -> int | None:
    """Return (None) when the child writes its ``nth`` checkpoint, or its exit status when it ends before that."""
    seen: set[str] = set(left_by_kills(checkpoints))
    new = 0
    while new < nth:
        if (status := wait_until(time.monotonic() + 0.0005, child)) is not None:
            return status
        found = set(left_by_kills(checkpoints)) - seen
        new += len(found)
        seen |= found
    return None


def left_by_kills(checkpoints: Path) -> list[str]:
    return [path.name for path in checkpoints.glob(".writing-*")]


def finish(path: Path) -> float:
    """Train to the end, undisturbed; seconds."""
    start = time.monotonic()
    check_status(wait_until(start + 200, attempt(path)), path)
    return time.monotonic() - start


def check_status(status: int | None, path: Path) -> None:
    assert status == 0, f"an attempt ended with {status}: {(path / 'log').read_text()[-2000:]}"


def disturb(path: Path, draw: random.Random, seconds: float, while_writing: bool) -> bool | None:
    """Make an attempt and kill it: was a checkpoint being written? None when it had come to the end before."""
    checkpoints = path / "checkpoints"
    before = set(left_by_kills(checkpoints))
    start, child = time.monotonic(), attempt(path)
    if while_writing:
        status = wait_for_writing(checkpoints, child, draw.choice([1, 1, 2, 3]))
        if status is None:
            status = wait_until(time.monotonic() + draw.uniform(0, 0.004), child)
    else:
        status = wait_until(start + draw.uniform(0, seconds), child)
    if status is None:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return bool(set(left_by_kills(checkpoints)) - before)
    check_status(status, path)  # it was over before it could be killed
    return None


def main() -> None:
    folder, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    draw = random.Random(seed)
    undisturbed, runs = folder / "undisturbed", [folder / "run0"]
    for path in (undisturbed, runs[0]):
        path.mkdir()
    seconds = finish(undisturbed)
    writing: list[bool] = []
    for _ in range(MOST_ATTEMPTS * kills):
        if len(writing) == kills:
            break
        inside = disturb(runs[-1], draw, seconds, while_writing=len(writing) % 2 == 1)
        if inside is not None:
            writing.append(inside)
        else:
            runs.append(folder / f"run{len(runs)}")
            runs[-1].mkdir()
    finish(runs[-1])
    print(json.dumps({"kills": len(writing), "inside": sum(writing), "finished": [str(path) for path in runs]}))


if __name__ == "__main__":
    main()
