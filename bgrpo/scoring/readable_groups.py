"""From problems to groups whose completions can be read: what a judge needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bgrpo.groups import Group
from bgrpo.tasks.base import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bgrpo.decoding import DecodeEngine, DecodeSettings


def complete(
    engine: DecodeEngine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: DecodeSettings,
    seeds: Sequence[int] | None = None,
) -> list[Group]:
    """Decode one group per problem, with the text of every completion.

    Args:
        engine: holds the policy.
        tokenizer: of the policy.
        problems: whose prompts are completed.
        settings: how.
        seeds: one per problem, for samples.

    Raises:
        UserError: a prompt that the vocabulary lacks, or that is too long; see :meth:`DecodeEngine.decode`.
    """
    from bgrpo.policies.text import encode_texts

    prompts = encode_texts(tokenizer, [problem.prompt for problem in problems])
    return [with_texts(group, tokenizer) for group in engine.decode(prompts, settings, seeds)]


def with_texts(group: Group, tokenizer: PreTrainedTokenizerBase) -> Group:
    """The group with the text of its completions."""
    from bgrpo.policies.text import decode_completion

    completions = [
        replace(completion, text=decode_completion(tokenizer, completion.tokens)) for completion in group.completions
    ]
    return replace(group, completions=completions)
