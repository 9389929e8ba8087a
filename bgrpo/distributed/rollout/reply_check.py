"""Can this be the answer to a rollout request? Cheap checks, made before a reply goes to the verifiers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bgrpo.decoding.allowed import AllowedCompletions
from bgrpo.distributed.rollout.actor import RolloutReply, RolloutRequest
from bgrpo.groups import Completion, Group

if TYPE_CHECKING:
    from bgrpo.decoding import DecodeSettings

LOGPROB_ROUNDING = 1e-3  # log-probabilities of float32 may come out this much above 0


def find_fault(request: RolloutRequest, reply: Any, vocabulary: int) -> str | None:
    """What is wrong with a reply, in words; None when it can be an answer.

    Args:
        request: what was asked.
        reply: whatever came back.
        vocabulary: number of token ids of the policy.
    """
    if not isinstance(reply, RolloutReply):
        return f"a {type(reply).__name__} instead of a reply"
    if reply.weights != request.weights:
        return f"decoded with {reply.weights} instead of {request.weights}"
    if len(reply.groups) != len(request.problems):
        return f"{len(reply.groups)} groups for {len(request.problems)} problems"
    for position, group in enumerate(reply.groups):
        try:
            fault = _group_fault(group, request.settings, vocabulary)
        except (AttributeError, TypeError, ValueError) as error:
            fault = f"malformed: {error}"
        if fault is not None:
            return f"group {position}: {fault}"
    return None


def _group_fault(group: Group, settings: DecodeSettings, vocabulary: int) -> str | None:
    count, asked = len(group.completions), settings.group_size
    if not 1 <= count <= asked or (settings.mode == "sample" and count != asked):
        return f"{count} completions instead of {asked}"
    for rank, completion in enumerate(group.completions, 1):
        fault = _completion_fault(completion, settings, vocabulary)
        if fault is not None:
            return f"completion {rank}: {fault}"
    if settings.mode != "sample" and len({tuple(completion.tokens) for completion in group.completions}) < count:
        return "two beams are the same"
    return _keys_fault(group) if settings.mode == "stochastic_beam" else None


def _keys_fault(group: Group) -> str | None:
    keys = [completion.key for completion in group.completions]
    keys += [] if group.kappa is None else [group.kappa]
    if not all(key is not None and math.isfinite(key) for key in keys) or keys != sorted(keys, reverse=True):  # type: ignore[type-var]
        return f"its keys, the largest first, are {keys}"
    return None


def _completion_fault(completion: Completion, settings: DecodeSettings, vocabulary: int) -> str | None:
    tokens, logprobs = completion.tokens, completion.logprobs
    if not isinstance(completion.text, str):
        return f"its text is a {type(completion.text).__name__}"
    if not 1 <= len(tokens) <= settings.max_new_tokens:
        return f"{len(tokens)} tokens, expected 1 to {settings.max_new_tokens}"
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        return f"token ids {min(tokens)} to {max(tokens)}, the vocabulary has 0 to {vocabulary - 1}"
    ended = tokens[-1] in settings.end_tokens
    if completion.finished != ended and not (completion.finished and settings.stop):
        return f"finished is {completion.finished}, the last token is {tokens[-1]}"
    if not set(settings.end_tokens).isdisjoint(tokens[:-1]):
        return "it goes on after its end"
    if completion.finished and len(tokens) <= settings.min_new_tokens:
        return f"it ended after {len(tokens)} tokens, min_new_tokens={settings.min_new_tokens} come first"
    if banned := set(settings.banned_tokens).intersection(tokens):
        return f"it has the banned token {min(banned)}"
    if isinstance(settings.allowed, AllowedCompletions) and not settings.allowed.holds(tokens):
        return "it is none of the completions that are allowed"
    if len(logprobs) != len(tokens):
        return f"{len(logprobs)} log-probabilities for {len(tokens)} tokens"
    sampled = completion.sampled_logprobs
    if len(sampled) != (len(tokens) if settings.truncates else 0):
        return f"{len(sampled)} log-probabilities of what was drawn from for {len(tokens)} tokens"
    for values in filter(None, (logprobs, sampled)):
        if not all(map(math.isfinite, values)) or max(values) > LOGPROB_ROUNDING:
            return f"log-probabilities from {min(values)} to {max(values)}"
    return None
