"""A training run in this process, without Ray: one learner, which decodes, scores and learns in turns.

Its folder is that of a run on Ray with one learner, and so is its result, bit for bit on the same machine: either goes
on where the other stopped.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console

from bgrpo.config import TrainConfig
from bgrpo.errors import LostRunError, RunError, Stopped, UserError
from bgrpo.evaluation.decoders import Decode
from bgrpo.files import FULL, NO_ROOM
from bgrpo.learning.replica import weights_of
from bgrpo.learning.rollout_source import LocalRolloutSource, torch_threads
from bgrpo.policies.io import LoadedPolicy
from bgrpo.runs.ownership import Claim
from bgrpo.runs.stopping import STOPPED_STATUS, StopSignals
from bgrpo.scoring.attempts import trial_of
from bgrpo.scoring.judge import Judge
from bgrpo.training.learner import learn
from bgrpo.training.machinery import Machinery, RunParts, Workers
from bgrpo.training.stacks import current_stacks

_OF_RAY = (
    "learner.gpus_per_worker",
    "learner.node_resource",
    "rollout.gpus_per_actor",
    "rollout.node_resource",
    "rollout.stand_ins",
    "reward_model.gpus_per_actor",
    "reward_model.node_resource",
    "verifier.node_resource",
)


class InProcess(Machinery):
    """This process. A GPU that it sees is used by the policy, and by nothing else."""

    command = "bgrpo train --local"

    def check(self, config: TrainConfig) -> None:
        """Refuse what only Ray has; numbers of its processes say nothing here.

        Raises:
            UserError: names the key.
        """
        workers = config.learner.workers
        if workers > 1:
            raise UserError(f"learner.workers={workers}: a local run has one learner; leave it out, or train on Ray")
        for key in _OF_RAY:
            section, name = key.split(".")
            if value := getattr(getattr(config, section), name):
                raise UserError(f"{key}={value}: a local run reserves nothing of Ray's; leave it out, or train on Ray")

    @contextmanager
    def session(self, config: TrainConfig, signals: StopSignals, console: Console) -> Iterator[None]:
        """PyTorch has its number of threads again afterwards, and its random state."""
        import torch

        with torch_threads(torch.get_num_threads()), torch.random.fork_rng():
            yield

    def start(self, run: RunParts) -> Workers:
        """What scores is started, in killable processes of its own."""
        return LocalWorkers(run)


class LocalWorkers(Workers):
    """This process, which learns in a thread, so that the main thread can show progress and take signals."""

    begins = "what scores completions"
    learners = "the learner"

    def __init__(self, run: RunParts) -> None:
        import torch

        config, splits = run.config, run.prepared.splits
        self._run = run
        self._closed = threading.Event()
        with torch_threads(config.reward_model.threads):
            self._scorer = Judge(config).start(trial_of(splits.train))
        device = "cuda" if torch.cuda.is_available() else "cpu"  # as the trainer chooses
        start = run.prepared.policy
        self._source = LocalRolloutSource(splits.train, start.tokenizer, config, self._scorer.judge, device, start)

    def wait(self) -> None:
        """Nothing: what scores was tried when it was started."""

    def decoder(self, policy: LoadedPolicy, version: int) -> Decode:
        """In this process."""
        self._source.publish(version, weights_of(policy, self._run.config.learner.lora))
        return self._source.decoder(version)

    def learn(self) -> None:
        """In the calling thread."""
        run, claim = self._run, self._run.folder.claim
        folder = run.folder
        if claim is not None:
            folder = replace(folder, claim=_EndableClaim(claim.folder, claim.owner, self._closed))
        learn(
            run.config,
            folder,
            0,
            source=lambda problems: self._source,
            decoder=lambda version, tokenizer: self._source.decoder(version),
            on_start=lambda step: None,
            on_step=lambda metrics: folder.append_metrics(int(metrics["step"]), metrics),
            start=run.prepared.policy if run.config.learner.lora.is_on else None,  # whose base nothing changes
        )

    def end_learning(self) -> None:
        """A learner that is at a step ends with it."""
        self._closed.set()

    def news(self) -> Sequence[str]:
        """None: there is nothing that grows or shrinks."""
        return ()

    def why_silent(self, learning: bool) -> str:
        """The stacks of this process."""
        return current_stacks()

    def raise_failure(self, error: BaseException | None) -> None:
        """What the learner raised, as it is where the user can mend it."""
        if error is None:
            return
        if isinstance(error, UserError | RunError | LostRunError):
            raise error
        if isinstance(error, OSError) and error.errno in FULL:
            raise RunError(NO_ROOM.format(error)) from error
        trace = "".join(traceback.format_exception(error)).rstrip()
        raise RunError(f"training failed; the last complete checkpoint is kept.\n{trace}") from error

    def close(self) -> None:
        """End what scores."""
        self._closed.set()
        self._scorer.close()


@dataclass(frozen=True, slots=True)
class _EndableClaim(Claim):
    """A claim that ends before its owner's process does: whoever shows it writes no more.

    Attributes:
        closed: set when it has ended.
    """

    closed: threading.Event = field(compare=False)

    def check(self) -> None:
        """As before the end.

        Raises:
            Stopped: it has ended.
        """
        if self.closed.is_set():
            raise Stopped("the end of the run", STOPPED_STATUS)
        Claim.check(self)
