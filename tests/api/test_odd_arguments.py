"""Objects that nobody should pass: one line that names the argument, whatever the object's own methods do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bgrpo
from bgrpo.errors import MAX_MESSAGE, UserError
from bgrpo.training import driver


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


class ReachedError(Exception):
    """Training would begin."""


ODD: list[Any] = [
    None, True, -1, 1.5, float("nan"), 10**30, "", "x", "\x00", "\ud800", "a" * 5000, "/dev/zero", "~nobody/x", b"x",
    [], [None], [1], ["x"], [{}], [{"prompt": None}], [{1: 2}], {}, {1: 2}, {"": ""}, (None, None), {1}, object(),
    object, len, Unshowable(), [Unshowable()], {"a": Unshowable()}, Path("x"), np.array([1, 2]), np.float32(1),
    torch.ones(2), torch.nn.Linear(1, 1), 1j, range(3), ..., iter([]), {"steps": float("nan")}, {"policy": {"path": 5}},
    {"f": (len, "x")},
]  # fmt: skip
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], list[str]]] = {
    "train": (
        bgrpo.train,
        {"local": True},
        ["policy", "problems", "rewards", "algorithm", "steps", "epochs", "group_size", "seed", "config", "overrides",
         "name", "runs", "local", "resume", "progress"],
    ),
    "decode": (
        bgrpo.decode,
        {"prompts": "+ a P 1 ⁇", "max_new_tokens": 1, "group_size": 1},
        ["policy", "search", "group_size", "max_new_tokens", "seed", "temperature"],
    ),
    "load_run": (bgrpo.load_run, {"name": "none"}, ["name", "runs"]),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_odd_objects_are_refused_in_one_line_or_used(
    call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def begin(*arguments: Any, **named: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(driver, "run_training", begin)
    monkeypatch.chdir(tmp_path)
    function, usual, names = CALLS[call]
    if call == "decode":
        usual = usual | {"policy": bgrpo.load_policy("shipped")}
    refused = 0
    for name in names:
        for number, value in enumerate(ODD):
            try:
                function(**usual | {name: value})
            except UserError as error:
                refused += 1
                assert str(error).isprintable() and len(str(error)) <= MAX_MESSAGE
            except ReachedError:
                pass
            except Exception as error:
                raise AssertionError(f"{call}({name}=ODD[{number}])") from error
    assert refused > 0.7 * len(names) * len(ODD)
