"""What the command on reward models does: train one, or answer with one over HTTP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from bgrpo.errors import UserError
from bgrpo.scoring.preference_pairs import check_disjoint, read_pairs, split_pairs

_CARD = """\
---
library_name: transformers
pipeline_tag: text-classification
tags: [bgrpo, reward-model]
---
# Reward model

A classifier with one output, trained from `{base}` on {train:,} preference pairs, in {steps:,} steps of {batch} pairs,
by `bgrpo reward-model --train`.
Held-out pairs in the right order: {accuracy}. Load it with transformers' `AutoModelForSequenceClassification`.
"""


class TrainingRequest(NamedTuple):
    """What the user gave to train a reward model."""

    pairs: Path
    base: str
    out: Path
    held_out: Path | None
    held_out_share: float
    group_by: str | None
    threads: int


def train_reward(request: TrainingRequest, plan: dict[str, Any], as_json: bool) -> int:
    """Train a reward model, write it, and state its accuracy on held-out pairs before and after.

    Raises:
        UserError: the files or options are wrong (before any model is loaded), or the model cannot be trained.
    """
    if not 0 < request.held_out_share < 1:
        raise UserError(f"--held-out-share {request.held_out_share}: expected a share above 0 and below 1")
    train = read_pairs(request.pairs, request.group_by)
    if request.held_out is None:
        train, held_out = split_pairs(train, request.held_out_share, plan["seed"])
    else:
        held_out = read_pairs(request.held_out, request.group_by)
        if request.group_by is not None:
            check_disjoint(train, held_out, request.held_out)

    from bgrpo.display.progress import Column, TrainingProgress
    from bgrpo.display.terminal import table_console
    from bgrpo.policies.io import check_target, save_policy
    from bgrpo.scoring.reward_training import TrainingOptions, train_reward_model

    check_target(request.out)
    _set_threads(request.threads)
    columns = (
        Column("loss", "loss", ".4f"),
        Column("right order", "accuracy", ".0%"),
        Column("learning rate", "learning_rate", ".2g"),
    )
    shown: list[TrainingProgress] = []

    def show(step: int, steps: int, metrics: dict[str, float]) -> None:
        if not shown:
            shown.append(TrainingProgress(steps, "reward model", columns=columns, console=table_console(stderr=True)))
            shown[0].__enter__()
        shown[0].update(step, metrics)

    note = table_console(stderr=True).print
    note(f"{len(train):,} pairs to learn from, {len(held_out):,} held out", soft_wrap=True)
    try:
        done = train_reward_model(request.base, train, held_out, TrainingOptions(**plan), show)
    finally:
        for display in shown:
            display.__exit__(None, None, None)
    accuracy = f"{_interval(done.before)} before training, {_interval(done.after)} after"
    card = _CARD.format(
        base=Path(request.base).name, train=done.pairs[0], steps=done.steps, batch=plan["batch_size"], accuracy=accuracy
    )
    save_policy(done.model, done.tokenizer, request.out, card)
    if as_json:
        fields = ("before", "after", "pairs", "too_long", "steps")
        print(json.dumps({"out": str(request.out), **{name: getattr(done, name) for name in fields}}))
        return 0
    if any(done.too_long):
        print(f"left out as too long: {done.too_long[0]:,} pairs to learn from, {done.too_long[1]:,} held out")
    print(f"{request.out}: trained on {done.pairs[0]:,} pairs; steps: {done.steps:,}")
    print(f"{done.pairs[1]:,} held-out pairs in the right order: {accuracy}")
    return 0


def serve_reward_model(path: str, port: int, threads: int, options: dict[str, Any]) -> int:
    """Answer over HTTP until interrupted."""
    from bgrpo.scoring.reward_model import RewardModel
    from bgrpo.scoring.reward_service import RewardService, service_token

    token, generated = service_token()
    _set_threads(threads)
    service = RewardService(RewardModel(path, **options), token, port)
    print(f"reward model {path} answers at {service.url}", file=sys.stderr)
    if generated:
        print(f"BGRPO_REWARD_TOKEN={token}", file=sys.__stderr__, flush=True)  # the one place that does not hide it
    try:
        service.serve()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def _interval(accuracy: tuple[float, float, float]) -> str:
    share, low, high = accuracy
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def _set_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
