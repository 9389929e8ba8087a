"""Prompts that are too long for a policy: refused, left out or cut, before anything is decoded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bgrpo.config import RolloutSection
from bgrpo.decoding.support import context_of, room_for_prompt
from bgrpo.errors import UserError
from bgrpo.groups import passages_of
from bgrpo.policies.io import LoadedPolicy
from bgrpo.policies.text import TEXTS_AT_ONCE, UnreadableText, token_counts
from bgrpo.scoring.readable_groups import encode_prompts, place
from bgrpo.tasks.base import Problem

_OPTION = "rollout.max_new_tokens"


@dataclass(frozen=True, slots=True)
class Fitted:
    """The problems of one split whose prompts a policy can read.

    Attributes:
        problems: in their order; where prompts are cut, each with what is left of it.
        dropped: how many were left out.
        cut: how many have their prompt cut.
        note: says so; empty where all prompts are as they were.
    """

    problems: list[Problem]
    dropped: int = 0
    cut: int = 0
    note: str = ""

    def counts(self) -> dict[str, int]:
        """For ``run.json``."""
        return {"used": len(self.problems), "dropped": self.dropped, "cut": self.cut}


def fit_prompts(
    problems: Sequence[Problem],
    policy: LoadedPolicy,
    rollout: RolloutSection,
    where: str,
    max_new_tokens: int | None = None,
    option: str = _OPTION,
) -> Fitted:
    """Refuse unknown tokens, and do with long prompts what ``rollout.long_prompts`` says.

    Args:
        problems: at least one.
        policy: that is to read them, with its tokenizer and chat template.
        rollout: says how long prompts may be, and what becomes of longer ones.
        where: the problems came from, for messages: split and file.
        max_new_tokens: of an answer; None: what ``rollout`` says.
        option: that gives it, for messages.

    Raises:
        UserError: a prompt that cannot be read, or that is too long where that is refused, with its line; or every
            prompt would be left out.
    """
    new = max_new_tokens or rollout.max_new_tokens
    context = context_of(policy.model.config) or sys.maxsize
    most = longest_prompt(policy, rollout, new, option)
    lengths = prompt_lengths(problems, policy, where)
    long = [index for index, length in enumerate(lengths) if length > most]
    if not long:
        return Fitted(list(problems))
    longest = max(long, key=lengths.__getitem__)
    named, limit = place(where, problems, longest), f"rollout.max_prompt_tokens={most}"
    if rollout.long_prompts == "refuse":
        mend = "rollout.long_prompts=drop leaves such problems out, cut_left keeps the end of their prompts"
        if rollout.max_prompt_tokens is not None:
            raise UserError(f"{named} has {lengths[longest]} tokens, more than {limit}: {mend}")
        raise UserError(
            f"{named} has {lengths[longest]} tokens + {option}={new} = {lengths[longest] + new}, but the policy's "
            f"context is {context}: take fewer new tokens, or set rollout.long_prompts ({mend})"
        )
    if rollout.max_prompt_tokens is None:
        limit = f"{most} tokens, what the policy's context leaves"
    told = f"{len(long):,} of {len(problems):,} prompts are longer than {limit}; the longest, {named}, has "
    told = f"note: {where}: {told}{lengths[longest]} tokens"
    if rollout.long_prompts == "cut_left":
        cut = set(long)
        kept = [replace(each, prompt_tokens=most) if index in cut else each for index, each in enumerate(problems)]
        return Fitted(kept, cut=len(long), note=f"{told}: the last {most} are kept")
    if len(long) == len(problems):
        raise UserError(f"{where}: every prompt is longer than {limit}; the longest, {named}, has {lengths[longest]}")
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= most]
    return Fitted(kept, dropped=len(long), note=f"{told}: these problems are left out")


def prompt_lengths(problems: Sequence[Problem], policy: LoadedPolicy, where: str) -> list[int]:
    """Number of tokens of each prompt, as the policy reads it, or of its longest passage.

    Arguments and errors as of :func:`fit_prompts`.
    """
    if any(problem.messages or problem.prompt_tokens or problem.passages for problem in problems):
        starts = range(0, len(problems), TEXTS_AT_ONCE)
        parts = ((start, problems[start : start + TEXTS_AT_ONCE]) for start in starts)
        encoded = (ids for start, part in parts for ids in encode_prompts(policy.tokenizer, part, where, start))
        return [max(map(len, passages_of(ids))) for ids in encoded]
    try:
        return token_counts(policy.tokenizer, [problem.prompt for problem in problems])
    except UnreadableText as error:
        raise UserError(f"{place(where, problems, error.index)}: {error}") from error


def longest_prompt(policy: LoadedPolicy, rollout: RolloutSection, new: int, option: str = _OPTION) -> int:
    """Tokens that a prompt may have beside ``new`` tokens of an answer, which ``option`` gives.

    Raises:
        UserError: the policy's context has no room for so many, or for any.
    """
    asked, context = rollout.max_prompt_tokens, context_of(policy.model.config) or sys.maxsize
    found = room_for_prompt(policy.model.config, new)
    room = sys.maxsize if found is None else found
    if asked is None:
        if room < 1:
            raise UserError(f"{option}={new} leaves no room for a prompt: the policy's context is {context}")
        return room
    if asked > room:
        raise UserError(
            f"rollout.max_prompt_tokens={asked} + {option}={new} = {asked + new}, but the policy's context is "
            f"{context}: take fewer of either"
        )
    return asked
