"""The learner's and the evaluator's view of the rollout service."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from bgrpo.config import TrainConfig
from bgrpo.distributed.pool.actor_pool import PoolError
from bgrpo.errors import UserError
from bgrpo.evaluation.decoders import DecodeMode
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.learning.rollout_source import decode_settings
from bgrpo.policies.flat_weights import published_buffer
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bgrpo.decoding import DecodeSettings
    from bgrpo.policies.adapter import Adapter

RESTART_S = 120.0
RESTART_POLL_S = 0.5
ANSWER_S = 30.0  # beyond the service's own limit, for the answer to travel


def answer(reference: Any, timeout_s: float) -> Any:
    """``ray.get`` that raises errors whose message says everything as they were raised over there.

    Raises:
        UserError, PoolError: of the remote side.
        GetTimeoutError: no answer in time.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        if isinstance(error.cause, PoolError):
            raise error.cause from None
        raise


def step_limit_s(config: TrainConfig) -> float:
    """Longest wait for a batch of rollouts.

    A request may be lost, time out and be done again before it is given up, and the cluster may have to get a node.
    """
    return 3 * config.rollout.timeout_s + config.rollout.placement_s + 120


class ServiceRolloutSource:
    """A :class:`bgrpo.learning.rollout_source.RolloutSource` that asks the rollout service.

    Args:
        service: handle of the :class:`bgrpo.distributed.rollout.service.RolloutService` actor.
        config: of the run; bounds the waits, see :func:`step_limit_s`.
        problems: the training problems; indices point into them. Nothing where the source only publishes.
    """

    def __init__(self, service: Any, config: TrainConfig, problems: Sequence[Problem] = ()) -> None:
        self._service = service
        self._problems = problems
        self._limit_s = step_limit_s(config)
        self._buffer: np.ndarray | None = None

    def publish(self, version: int, weights: PreTrainedModel | Adapter) -> None:
        """Put the weights into the object store once and tell the service their version."""
        self._buffer = published_buffer(weights, self._buffer)
        answer(self._service.publish.remote(version, [ray.put(self._buffer)]), self._limit_s)  # put copies

    def prefetch(self, step: int, version: int, indices: list[int]) -> None:
        """Have the service decode draw 0 of ``step`` while this process does something else."""
        self._service.prefetch.remote(step, version, self._numbered(indices), self._limit_s)

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        """Scored groups of ``indices``, in their order, decoded by exactly ``version``."""
        reply = self._service.collect.remote(step, version, draw, self._numbered(indices), self._limit_s)
        (groups,) = answer(reply, self._limit_s + ANSWER_S)
        return answer(groups, ANSWER_S)

    def _numbered(self, indices: list[int]) -> list[tuple[int, Problem]]:
        return [(index, self._problems[index]) for index in indices]


def publish_in_spite_of_restarts(
    source: ServiceRolloutSource, version: int, weights: PreTrainedModel | Adapter
) -> None:
    """Publish weights; limits and errors as in :func:`in_spite_of_restarts`."""
    in_spite_of_restarts(lambda: source.publish(version, weights), RESTART_S)


def in_spite_of_restarts(ask: Callable[[], None], limit_s: float) -> None:
    """Ask something of a service that may be lost meanwhile, and that Ray then starts again.

    Args:
        ask: what is asked again from the start after a loss.
        limit_s: time after which no loss is forgiven any more.

    Raises:
        ActorDiedError: it was lost more often than Ray starts it again.
        ActorUnavailableError: it is not there past the limit.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return ask()
        except ActorUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RESTART_POLL_S)


class ServiceDecoder:
    """A :class:`bgrpo.evaluation.decoders.Decode` on the rollout actors.

    Args:
        service: handle of the rollout service.
        config: of the run.
        version: published version of the weights to decode with.
        tokenizer: of the policy.
        publish_again: publishes the weights to a service that was lost and has been started again. Without it, and
            after ``learner.max_failures`` losses, the loss is raised.
    """

    def __init__(
        self,
        service: Any,
        config: TrainConfig,
        version: int,
        tokenizer: PreTrainedTokenizerBase,
        publish_again: Callable[[], None] | None = None,
    ) -> None:
        self._service = service
        self._settings = decode_settings(config, tokenizer)
        self._temperature = config.evaluation.temperature
        self._version = version
        self._limit_s = step_limit_s(config)
        self._publish_again = publish_again
        self._losses_left = config.learner.max_failures

    def __call__(
        self, problems: Sequence[Problem], mode: DecodeMode, group_size: int, seeds: Sequence[int] | None
    ) -> list[list[Completion]]:
        settings = self._settings.to_measure(mode, group_size, self._temperature)
        groups = self._decode(list(problems), settings, list(seeds or [0] * len(problems)))
        return [group.completions for group in groups]

    def _decode(self, problems: list[Problem], settings: DecodeSettings, seeds: list[int]) -> list[ScoredGroup]:
        while True:
            work = self._service.run.remote(problems, settings, self._version, seeds, self._limit_s)
            try:
                return answer(work, self._limit_s + ANSWER_S)
            except RayActorError:
                if self._publish_again is None or not self._losses_left:
                    raise
                self._losses_left -= 1
                self._publish_again()
