"""Garbage of every kind is told from answers, without looking at anything but the reply."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.distributed.rollout.actor import RolloutReply, RolloutRequest
from bgrpo.distributed.rollout.reply_check import find_fault
from bgrpo.distributed.rollout.weights import Weights
from bgrpo.groups import Completion, Group
from bgrpo.policies.model import build_policy
from bgrpo.scoring.readable_groups import complete
from bgrpo.tasks.base import Problem
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(0, 0)
VOCABULARY = len(TOKENIZER)
END = TOKENIZER.eos_token_id
WEIGHTS = Weights(3, 7)
BEAMS = DecodeSettings("beam", 4, 5, END, TOKENIZER.pad_token_id)
TEXTS = ["+ a P 1 ⁇", "* P 2 a ⁇"]
REQUEST = RolloutRequest(WEIGHTS, [Problem(text) for text in TEXTS], [1, 2], BEAMS)


def decoded(request: RolloutRequest) -> RolloutReply:
    """What a rollout actor answers."""
    engine = DecodeEngine(build_policy(TOKENIZER, 1, 2, 16, 32, seed=1))
    groups = complete(engine, TOKENIZER, request.problems, request.settings, request.seeds)
    return RolloutReply(request.weights, groups, 0.1)


@pytest.mark.parametrize("mode", ["beam", "sample"])
@pytest.mark.parametrize("completions", [1, 4, 40])
def test_what_the_engine_decodes_is_no_garbage(mode: Any, completions: int) -> None:
    settings = DecodeSettings(mode, completions, 5, END, TOKENIZER.pad_token_id)
    request = dataclasses.replace(REQUEST, settings=settings)
    reply = decoded(request)
    assert any(completion.finished for group in reply.groups for completion in group.completions) or completions < 40
    assert find_fault(request, reply, VOCABULARY) is None


def test_any_end_token_ends_a_completion() -> None:
    request = dataclasses.replace(REQUEST, settings=dataclasses.replace(BEAMS, eos_token_id=(END, 6)))
    assert find_fault(request, decoded(request), VOCABULARY) is None
    fault = find_fault(request, good(), VOCABULARY)  # 5, 6, 7, 8, …: goes on after 6
    assert fault is not None and "it goes on after its end" in fault


def with_completion(**changes: Any) -> Callable[[RolloutReply], RolloutReply]:
    """The last completion of the second group, changed."""

    def change(reply: RolloutReply) -> RolloutReply:
        *others, last = reply.groups[1].completions
        group = Group([5], [*others, dataclasses.replace(last, **changes)])
        return dataclasses.replace(reply, groups=[reply.groups[0], group])

    return change


def with_reply(**changes: Any) -> Callable[[RolloutReply], RolloutReply]:
    return lambda reply: dataclasses.replace(reply, **changes)


def good() -> RolloutReply:
    """Hand-made: each group has one finished completion and three cut ones."""
    cut = [Completion([5, 6, 7, 8, first], [-0.5] * 5, False) for first in (9, 10, 11)]
    groups = [Group([5], [Completion([5, END], [-0.1, 0.0], True), *cut]) for _ in TEXTS]
    return RolloutReply(WEIGHTS, groups, 0.1)


GARBAGE: list[tuple[Callable[[RolloutReply], Any], str]] = [
    (lambda reply: None, "a NoneType instead of a reply"),
    (lambda reply: reply.groups, "a list instead of a reply"),
    (with_reply(weights=Weights(2, 7)), "decoded with .*version=2"),
    (with_reply(weights=Weights(3, 6)), "decoded with .*publication=6"),
    (lambda reply: dataclasses.replace(reply, groups=reply.groups[:1]), "1 groups for 2 problems"),
    (lambda reply: dataclasses.replace(reply, groups=reply.groups * 2), "4 groups for 2 problems"),
    (lambda reply: dataclasses.replace(reply, groups=[reply.groups[0], Group([5], [])]), "group 1: 0 completions"),
    (lambda reply: dataclasses.replace(reply, groups=[reply.groups[0], 7]), "group 1: malformed"),
    (with_completion(text=None), "completion 4: its text is a NoneType"),
    (with_completion(tokens=[5, 6, 7, 8, VOCABULARY]), f"completion 4: token ids 5 to {VOCABULARY}, the vocabulary"),
    (with_completion(tokens=[5, -1, 7, 8, 9]), "token ids -1 to 9"),
    (with_completion(tokens=[]), "0 tokens, expected 1 to 5"),
    (with_completion(tokens=[5] * 6), "6 tokens, expected 1 to 5"),
    (with_completion(tokens=[5, 6, 7, 8, "x"]), "malformed"),
    (with_completion(finished=True), "finished is True, the last token is 11"),
    (with_completion(tokens=[5, 6, 7, 8, END]), f"finished is False, the last token is {END}"),
    (with_completion(tokens=[5, END, 7, 8, 9]), "goes on after its end"),
    (with_completion(logprobs=[-0.5] * 4), "4 log-probabilities for 5 tokens"),
    (with_completion(logprobs=[-0.5] * 4 + [math.nan]), "log-probabilities from"),
    (with_completion(logprobs=[-0.5] * 4 + [-math.inf]), "log-probabilities from -inf"),
    (with_completion(logprobs=[-0.5] * 4 + [0.1]), "to 0.1"),
    (with_completion(tokens=[5, 6, 7, 8, 9]), "two beams are the same"),
    (
        lambda r: dataclasses.replace(r, groups=[Group([5], g.completions * 2) for g in r.groups]),
        "8 completions instead",
    ),
]


@pytest.mark.parametrize(("spoil", "fault"), GARBAGE, ids=[fault for _, fault in GARBAGE])
def test_garbage_is_named(spoil: Callable[[RolloutReply], Any], fault: str) -> None:
    assert find_fault(REQUEST, good(), VOCABULARY) is None
    found = find_fault(REQUEST, spoil(good()), VOCABULARY)
    assert found is not None
    assert re.search(fault, found), found


def test_samples_may_repeat_but_not_be_fewer() -> None:
    samples = dataclasses.replace(REQUEST, settings=dataclasses.replace(BEAMS, mode="sample"))
    same = with_completion(tokens=[5, 6, 7, 8, 9])(good())
    assert find_fault(samples, same, VOCABULARY) is None
    fewer = [Group([5], group.completions[:3]) for group in good().groups]
    assert find_fault(samples, dataclasses.replace(good(), groups=fewer), VOCABULARY) == (
        "group 0: 3 completions instead of 4"
    )
    assert find_fault(REQUEST, dataclasses.replace(good(), groups=fewer), VOCABULARY) is None, "fewer beams may exist"
