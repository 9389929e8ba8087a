"""How an attempt at a run ends, in its folder; and what a signal asks of learners."""

from __future__ import annotations

import io
import re
import shutil
import threading
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from bgrpo.config import TrainConfig, load_config
from bgrpo.errors import LostRunError, RunError, Stopped, UserError
from bgrpo.runs.run_folder import RAY_JOB_VARIABLE, RunFolder
from bgrpo.runs.stopping import SAVE_S, StopSignals
from bgrpo.training.run_attempt import (
    JOB_SAVE_S,
    STOP_FILE,
    Background,
    ask_learners_to_stop,
    new_run,
    recorded_attempt,
)


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    return RunFolder.create(load_config(TrainConfig, None, [f"run.dir={tmp_path}/[/b]", "run.name=x"]), None)


STOP = Stopped("SIGTERM", 143)


@pytest.mark.parametrize(
    ("begun", "ended", "raised", "insisted", "status", "cause"),
    [
        (True, "finished", None, False, "finished", None),
        (True, "stopped", None, False, "stopped", None),
        (True, None, STOP, False, "stopped", None),
        (False, None, STOP, False, "stopped", None),
        (True, None, STOP, True, "interrupted", None),
        (True, "finished", STOP, False, "finished", None),
        (True, None, UserError("too small"), False, "failed", "too small"),
        (True, None, RunError("lost"), False, "failed", "lost"),
        (True, None, KeyError("bug"), False, "failed", "KeyError: 'bug' ("),
        (False, None, UserError("too small"), False, None, None),
        (False, None, RunError("Ray did not start"), False, None, None),
    ],
)
def test_how_an_attempt_ended_is_kept(
    made: RunFolder,
    begun: bool,
    ended: str | None,
    raised: BaseException | None,
    insisted: bool,
    status: str | None,
    cause: str | None,
) -> None:
    signals = StopSignals()
    signals.insisted = insisted
    passes_on = raised is not None and (insisted or not isinstance(raised, Stopped))
    how = f"go on with: bgrpo train --resume {re.escape(str(made.path))}$" if isinstance(raised, Stopped) else None
    with (
        pytest.raises(type(raised), match=how) if raised is not None and passes_on else nullcontext(),
        made.owned() as run,
        recorded_attempt(run, False, signals, Console(file=io.StringIO()), "bgrpo train") as attempt,
    ):
        attempt.begun, attempt.ended = begun, ended
        if raised is not None:
            raise raised
    assert made.path.exists() == (status is not None)
    if status is not None:
        info = made.info()
        assert info["status"] == status and (info["cause"] or "").startswith(cause or "")


def test_nothing_is_kept_in_a_folder_that_was_lost(made: RunFolder) -> None:
    with (
        pytest.raises(LostRunError),
        made.owned() as run,
        recorded_attempt(run, True, StopSignals(), Console(file=io.StringIO()), "bgrpo train"),
    ):
        shutil.rmtree(run.path)
        run.update(status="running")
    assert not made.path.exists()


def test_learners_are_asked_to_save_only_what_is_not_saved(made: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_JOB_VARIABLE, raising=False)
    terminal = io.StringIO()
    console = Console(file=terminal)
    for saved in (0, 7):
        assert ask_learners_to_stop(made, "SIGINT", saved, saved, 1.0, console) == 0
        assert not (made.path / STOP_FILE).exists()
    assert terminal.getvalue() == (
        "SIGINT: stopping; no step has ended since the start\n"
        "SIGINT: stopping; no step has ended since the checkpoint of step 7\n"
    )
    assert ask_learners_to_stop(made, "SIGTERM", 9, 7, 1.0, console) == SAVE_S
    assert (made.path / STOP_FILE).exists() and "SIGTERM: saving a checkpoint, then stopping" in terminal.getvalue()
    assert ask_learners_to_stop(made, "SIGTERM", 9, 7, 60.0, console) == 120.0, "a long step is waited for"
    monkeypatch.setenv(RAY_JOB_VARIABLE, "{}")
    assert ask_learners_to_stop(made, "SIGTERM", 9, 7, 1.0, console) == JOB_SAVE_S


@pytest.mark.parametrize("raised", [STOP, UserError("full"), KeyError("bug"), KeyboardInterrupt()])
def test_a_run_that_was_not_filled_leaves_no_folder(tmp_path: Path, raised: BaseException) -> None:
    def fill(folder: RunFolder) -> None:
        (folder.data / "train.jsonl").write_text("half")
        raise raised

    run = load_config(TrainConfig, None, [f"run.dir={tmp_path}", "run.name=x"])
    with pytest.raises(type(raised)), new_run(run, None, fill):
        pass
    assert not (tmp_path / "x").exists()
    with new_run(run, None, lambda folder: None) as folder:
        folder.update(status="stopped")
    assert folder.info()["status"] == "stopped"


def test_the_folder_of_a_resume_that_was_quicker_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making the folder and owning it, somebody may resume the run by its name."""
    create = RunFolder.create
    with ExitStack() as others:

        def create_and_lose(config: TrainConfig, config_name: str | None) -> RunFolder:
            made = create(config, config_name)
            others.enter_context(made.owned())
            return made

        monkeypatch.setattr(RunFolder, "create", create_and_lose)
        run = load_config(TrainConfig, None, [f"run.dir={tmp_path}", "run.name=x"])
        with pytest.raises(UserError, match=r"^run x belongs to process"), new_run(run, None, lambda folder: None):
            pass
        assert (tmp_path / "x" / "run.json").exists()


@pytest.mark.parametrize("raised", [None, STOP, RunError("lost")], ids=lambda raised: type(raised).__name__)
def test_a_block_with_a_call_in_a_thread_leaves_no_thread_behind(raised: BaseException | None) -> None:
    told = threading.Event()
    try:
        with Background(lambda: told.wait() and None, told.set) as call:
            assert not call.wait(0.01)
            if raised is not None:
                raise raised
    except type(raised or Exception()) as error:
        assert error is raised
    assert call.wait(0), "the thread still runs"


def test_a_call_that_has_ended_is_not_told_to_end() -> None:
    with Background(lambda: None, lambda: pytest.fail("told")) as call:
        assert call.wait(200)
