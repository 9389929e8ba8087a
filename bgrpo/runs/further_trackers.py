"""``tracking.also``: the same metrics in wandb or TensorBoard. Whatever these do, a training run goes on."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bgrpo.config import TrackingSection
from bgrpo.errors import UserError
from bgrpo.runs.redaction import redact_credentials

LIBRARIES = {"wandb": "wandb", "tensorboard": "tensorboardX"}  # tensorboardX writes the files; TensorBoard shows them
FLUSH_S = 5.0
CLOSE_S = 60.0  # wandb may have much to send at the end

logger = logging.getLogger(__name__)


def check_installed(names: Sequence[str]) -> None:
    """Refuse what cannot be imported here.

    Raises:
        UserError: says what to install.
    """
    absent = [LIBRARIES[name] for name in names if importlib.util.find_spec(LIBRARIES[name]) is None]
    if absent:
        raise UserError(
            f"tracking.also={list(names)}: not installed here: pip install {' '.join(absent)}, or leave it out"
        )


class _Recorder(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class FurtherTrackers:
    """Places that get a copy of every metric. One that fails is named once, and gets nothing more.

    Args:
        section: which ones.
        folder: of the run; their files go there.
        params: dotted keys and values of the configuration; passwords are left out.
    """

    def __init__(self, section: TrackingSection, folder: Path, params: Mapping[str, Any]) -> None:
        self._recorders: dict[str, _Recorder] = {}
        for name in dict.fromkeys(section.also):
            try:
                self._recorders[name] = (
                    _TensorBoard(folder / "tensorboard")
                    if name == "tensorboard"
                    else _Wandb(section.experiment, folder, params)
                )
            except Exception as error:  # noqa: BLE001 - of a foreign library; it is told
                self._tell(name, error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, each step once, in order."""
        self._each(lambda recorder: recorder.log(step, metrics))

    def close(self) -> None:
        """Send what waits, within :data:`CLOSE_S`."""
        closing = threading.Thread(target=self._each, args=(lambda recorder: recorder.close(),), daemon=True)
        closing.start()
        closing.join(CLOSE_S if self._recorders else None)
        if closing.is_alive():
            logger.warning("%s did not end in %.0f s: its last metrics may be missing", list(self._recorders), CLOSE_S)

    def _each(self, do: Any) -> None:
        for name, recorder in list(self._recorders.items()):
            try:
                do(recorder)
            except Exception as error:  # noqa: BLE001 - of a foreign library; it is told
                del self._recorders[name]
                self._tell(name, error)

    def _tell(self, name: str, error: Exception) -> None:
        reason = redact_credentials(" ".join(str(error).split()))[:300] or type(error).__name__
        logger.warning("%s failed: %s; training goes on without it; metrics.jsonl has every metric", name, reason)


class _TensorBoard:
    """An event file, written in this thread: the library's own writer waits for ever when its thread has failed."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")  # named by second
        self._flushed = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed >= FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One wandb run, named as ours; offline unless the environment holds a key or says otherwise."""

    def __init__(self, project: str, folder: Path, params: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=folder.name[:64],
            resume="allow",
            dir=folder,
            config={key: redact_credentials(str(value)) for key, value in params.items()},
            mode=os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline"),
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=30, save_code=False, disable_git=True, reinit="create_new"
            ),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
