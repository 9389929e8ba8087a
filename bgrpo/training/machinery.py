"""Where the work of a training run is done: on Ray, or in this process. What the run does is the same on either."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.evaluation.decoders import Decode
from bgrpo.policies.io import LoadedPolicy
from bgrpo.runs.preparation import Preparation
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.stopping import StopSignals


@dataclass(frozen=True, slots=True)
class RunParts:
    """What the work of a run needs to know.

    Attributes:
        config: of the run.
        folder: of the run, with the claim of its owner.
        prepared: its checked input.
        started: seconds since 1970 when this attempt at the run began.
    """

    config: TrainConfig
    folder: RunFolder
    prepared: Preparation
    started: float


class Workers(ABC):
    """What decodes, scores and learns in one attempt at a run.

    Attributes:
        begins: what has to start before anything can be decoded, for people.
        learners: what learns, for people.
    """

    begins: str
    learners: str

    @abstractmethod
    def wait(self) -> None:
        """Until completions can be decoded and scored.

        Raises:
            UserError: what scores cannot start.
        """

    @abstractmethod
    def decoder(self, policy: LoadedPolicy, version: int) -> Decode:
        """Decodes with the policy's weights, which become ``version``, and scores."""

    @abstractmethod
    def learn(self) -> None:
        """Train from the newest complete checkpoint to the last step, or until the stop file is there. In a thread."""

    @abstractmethod
    def end_learning(self) -> None:
        """Make :meth:`learn` end soon, without a checkpoint; it writes nothing more. From another thread."""

    @abstractmethod
    def news(self) -> Sequence[str]:
        """Lines to show: what has changed since the last call."""

    @abstractmethod
    def why_silent(self, learning: bool) -> str:
        """Who waits for whom; ``learning``: what the learners do is of interest too."""

    @abstractmethod
    def raise_failure(self, error: BaseException | None) -> None:
        """Raise what made :meth:`learn` fail, if it did: the first cause.

        Args:
            error: what it raised.

        Raises:
            UserError: what the user can mend; DivergenceError when training diverged.
            RunError: any other.
        """

    @abstractmethod
    def close(self) -> None:
        """End all of it; nothing is written to the run's folder afterwards."""


class Machinery(ABC):
    """A place where runs can be worked on.

    Attributes:
        begins: what :meth:`session` starts, for people; empty when that is nothing.
        command: that trains here.
    """

    begins = ""
    command = "bgrpo train"

    @abstractmethod
    def check(self, config: TrainConfig) -> None:
        """Refuse a run that asks for what is not to be had here.

        Raises:
            UserError: names the keys.
        """

    @abstractmethod
    def session(self, config: TrainConfig, signals: StopSignals, console: Console) -> AbstractContextManager[None]:
        """What must be there while a run is worked on."""

    @abstractmethod
    def start(self, run: RunParts) -> Workers:
        """What works on a run, within :meth:`session`."""
