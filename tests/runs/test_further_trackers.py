"""``tracking.also``: metrics arrive, an absent library is refused before the run, and no failure ends one."""

from __future__ import annotations

import importlib.util
import logging
import struct
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from bgrpo.config import TrackingSection, TrainConfig, load_config
from bgrpo.errors import UserError
from bgrpo.runs import further_trackers
from bgrpo.runs.further_trackers import check_installed
from bgrpo.runs.mlflow_tracking import Tracker
from bgrpo.runs.preparation import check_input


def tracker(folder: Path, *names: str, **params: Any) -> Tracker:
    section = load_config(TrackingSection, None, [f"also=[{', '.join(names)}]", "enabled=false"])
    return Tracker.start(section, folder, "r", params)


def events(folder: Path) -> list[Any]:
    """Read by the format's own description: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "r" / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_tensorboard_gets_every_metric_of_every_step_also_after_a_resume(tmp_path: Path) -> None:
    for steps in ((1, 2), (3,)):
        started = tracker(tmp_path, "tensorboard", a=1)
        for step in steps:
            started.log(step, {"reward_mean": step / 4, "outcome/correct": 3.0})
        started.finish("FINISHED")
    read = [
        (event.step, sorted((value.tag, value.simple_value) for value in event.summary.value))
        for event in events(tmp_path)
    ]
    assert sorted(item for item in read if item[1]) == [
        (step, [("outcome/correct", 3.0), ("reward_mean", step / 4)]) for step in (1, 2, 3)
    ]


@pytest.mark.parametrize(("names", "install"), [(["wandb"], "wandb"), (["wandb", "tensorboard"], "wandb tensorboardX")])
def test_an_absent_library_is_refused_before_a_run_starts(
    names: list[str], install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install {install}, or leave it out") as raised:
        check_input(load_config(TrainConfig, None, [f"tracking.also=[{', '.join(names)}]"]))
    assert "\n" not in str(raised.value)


def test_what_is_installed_is_accepted_and_other_names_are_not() -> None:
    check_installed(["tensorboard"])
    with pytest.raises(UserError, match=r"also\.0='comet'"):
        load_config(TrackingSection, None, ["also=[comet]"])


class FakeWandb(types.ModuleType):
    """Fails at one call, or never answers it."""

    def __init__(self, fails: str = "", hangs: bool = False) -> None:
        super().__init__("wandb")
        self.fails, self.hangs = fails, hangs
        self.calls: list[tuple[str, Any]] = []
        self.Settings = dict

    def call(self, name: str, *values: Any) -> None:
        self.calls.append((name, values))
        if name == self.fails:
            if self.hangs:
                threading.Event().wait()
            raise RuntimeError("https://user:pass-word@api.wandb.ai/ is down")

    def init(self, **named: Any) -> FakeWandb:
        self.call("init", named)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.call("log", step, metrics)

    def finish(self) -> None:
        self.call("finish")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_wandb_sends_nothing_unless_it_was_given_a_key(
    fake: FakeWandb, environment: dict[str, str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started = tracker(tmp_path, "wandb", uri="http://user:pass-word@host/", seed=1)
    started.log(4, {"kl": 0.5})
    started.finish("FINISHED")
    (init, (named,)), *rest = fake.calls
    assert (init, named["mode"], named["id"], named["project"]) == ("init", mode, "r", "bgrpo")
    assert named["config"] == {"uri": "http://***@host/", "seed": "1"}
    assert rest == [("log", (4, {"kl": 0.5})), ("finish", ())]


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failure_is_told_once_and_the_other_places_go_on(
    fake: FakeWandb, fails: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fails = fails
    with caplog.at_level(logging.WARNING):
        started = tracker(tmp_path, "wandb", "tensorboard")
        for step in range(1, 4):
            started.log(step, {"kl": 0.5})
        started.finish("FINISHED")
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("wandb failed: https://***@api.wandb.ai/ is down; training goes on")
    assert [event.step for event in events(tmp_path) if event.summary.value] == [1, 2, 3]


def test_an_end_that_never_comes_is_not_waited_for(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(further_trackers, "CLOSE_S", 0.05)
    fake.fails, fake.hangs = "finish", True
    tracker(tmp_path, "wandb").finish("FINISHED")
    assert "did not end" in caplog.text


@pytest.mark.parametrize("place", ["a file", "full"])
def test_tensorboard_that_cannot_write_ends_nothing(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "a file":
        (tmp_path / "r").touch()
    started = tracker(tmp_path, "tensorboard")
    if place == "full":
        recorder = started._further._recorders["tensorboard"]  # type: ignore[union-attr]
        recorder._writer._py_recordio_writer._writer = Path("/dev/full").open("wb")  # type: ignore[attr-defined]  # noqa: SIM115
        monkeypatch.setattr(further_trackers, "FLUSH_S", 0.0)
    for step in range(1, 4):
        started.log(step, {"kl": 0.5})
    started.finish("FINISHED")
    assert caplog.text.count("tensorboard failed") == 1


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_the_real_wandb_records_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    started = tracker(tmp_path, "wandb", "tensorboard", seed=1)
    for step in range(1, 4):
        started.log(step, {"kl": 0.5, "beam@10": 1.0, "outcome/correct": 3.0})
    started.finish("FINISHED")
    (written,) = (tmp_path / "r" / "wandb").glob("offline-run-*/run-r.wandb")
    assert written.stat().st_size > 500
