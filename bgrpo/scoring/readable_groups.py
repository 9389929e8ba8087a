"""From problems to groups whose completions can be read: what a judge needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bgrpo.config import RolloutSection
from bgrpo.errors import UserError
from bgrpo.groups import Completion, Group, Search, fused
from bgrpo.scoring.allowed_texts import allowed_of_file
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
        problems: whose prompts are completed, and have been encoded before.
        settings: how.
        seeds: one per problem, for samples.

    Raises:
        UserError: a prompt that the vocabulary lacks, or that is too long; see :meth:`DecodeEngine.decode`.
    """
    prompts = encode_prompts(tokenizer, problems, "prompt", tried=True)
    groups = decode_readable(engine, tokenizer, prompts, settings, seeds)
    return [_answers_alone(group, each.answer_prefix) for group, each in zip(groups, problems, strict=True)]


def decode_readable(
    engine: DecodeEngine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: DecodeSettings,
    seeds: Sequence[int] | None = None,
) -> list[Group]:
    """As :func:`complete`, of prompts that are token ids."""
    from bgrpo.policies.text import text_of_tokens

    groups = engine.decode(prompts, settings, seeds, text_of_tokens(tokenizer))
    return [with_texts(group, tokenizer, settings) for group in groups]


def without_prefix(text: str, prefix: str) -> str:
    """What follows the prefix and blanks; the text itself where it does not begin with the prefix."""
    if not prefix or not text.lstrip().startswith(prefix):
        return text
    return text.lstrip().removeprefix(prefix).lstrip()


def _answers_alone(group: Group, prefix: str) -> Group:
    if not prefix:
        return group
    completions = [replace(each, text=without_prefix(each.text, prefix)) for each in group.completions]
    return replace(group, completions=completions)


def decode_settings_of(
    rollout: RolloutSection,
    mode: Search,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int | None = None,
) -> DecodeSettings:
    """How a configuration decodes.

    Args:
        rollout: of the configuration.
        mode: beams or samples.
        tokenizer: of the policy.
        max_new_tokens: longest completion, if not the configuration's.

    Raises:
        UserError: what is asked for cannot be with this policy.
    """
    from bgrpo.decoding import DecodeSettings
    from bgrpo.policies.text import end_tokens, single_tokens

    settings = DecodeSettings(
        mode=mode,
        group_size=rollout.group_size,
        max_new_tokens=rollout.max_new_tokens if max_new_tokens is None else max_new_tokens,
        eos_token_id=end_tokens(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        min_p=rollout.min_p,
        stop=tuple(rollout.stop),
        min_new_tokens=rollout.min_new_tokens,
        banned_tokens=single_tokens(tokenizer, rollout.banned_tokens, "rollout.banned_tokens"),
        beam_groups=rollout.beam_groups or 0,
        diversity=rollout.diversity,
        allowed=allowed_of_file(tokenizer, rollout.allowed, rollout.allowed_column) if rollout.allowed else None,
    )
    settings.check_vocabulary(len(tokenizer))
    return settings


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], where: str, first: int = 0, *, tried: bool = False
) -> list[list[int]]:
    """Token ids of the problems' prompts: of texts as they stand, of chats as the policy's chat template renders them,
    of passages one behind the other, see :func:`bgrpo.groups.fused`.

    A problem with ``prompt_tokens`` has its prompt cut to these, see :func:`bgrpo.policies.text.cut_left`.

    Args:
        tokenizer: of the policy.
        problems: any number.
        where: they came from, for the message: their file, if there is one.
        first: position of the first of them among all that are there, for the message.
        tried: they have been encoded before, so the chat template is known to end: see
            :func:`bgrpo.policies.text.encode_chats`.

    Raises:
        UserError: a prompt that the vocabulary lacks, or that the chat template refuses or does not end on, with its
            line; or passages for a policy without an encoder.
    """
    from bgrpo.policies.text import UnreadableText, cut_left, encode_chats, encode_texts

    chats = [i for i, problem in enumerate(problems) if problem.messages]
    texts = [i for i, problem in enumerate(problems) if not problem.messages and not problem.passages]
    of_passages = [i for i, problem in enumerate(problems) if problem.passages]
    found: list[list[int]] = [[]] * len(problems)
    for part in (texts, chats):
        try:
            if part is chats:
                encoded = encode_chats(tokenizer, [problems[i].messages for i in part], tried=tried)
            else:
                encoded = encode_texts(tokenizer, [problems[i].prompt for i in part])
        except UnreadableText as error:
            raise UserError(f"{place(where, problems, part[error.index], first)}: {error}") from error
        for i, ids in zip(part, encoded, strict=True):
            found[i] = cut_left(tokenizer, ids, problems[i].prompt_tokens) if problems[i].prompt_tokens else ids
    for i in of_passages:
        found[i] = _of_passages(tokenizer, problems[i], place(where, problems, i, first))
    return found


def _of_passages(tokenizer: PreTrainedTokenizerBase, problem: Problem, named: str) -> list[int]:
    from bgrpo.policies.text import UnreadableText, cut_left, encode_texts, has_encoder

    if not has_encoder(tokenizer):
        raise UserError(f"{named}: has passages, which an encoder reads: the policy has none; give it one prompt")
    try:
        encoded = encode_texts(tokenizer, problem.passages)
    except UnreadableText as error:
        raise UserError(f"{named}: passage {error.index + 1}: {error}") from error
    most = problem.prompt_tokens
    return fused(cut_left(tokenizer, ids, most) if most else ids for ids in encoded)


def place(where: str, problems: Sequence[Problem], index: int, first: int = 0) -> str:
    """How a message calls one of the problems: by its line in the file ``where``, or by its number."""
    line = problems[index].line
    return f"{where}:{line}" if line else f"{where}: problem {first + index + 1}"


def with_texts(group: Group, tokenizer: PreTrainedTokenizerBase, settings: DecodeSettings | None = None) -> Group:
    """The group with the text of its completions, up to the end token or the stop text that ended them.

    Args:
        group: decoded.
        tokenizer: of the policy.
        settings: with which it was decoded; needed where these have stop texts.
    """
    from bgrpo.decoding.stop_strings import StopStrings
    from bgrpo.policies.text import decode_completion, end_tokens, text_of_tokens

    ends = end_tokens(tokenizer)
    stop: StopStrings | None = None
    if settings is not None and settings.stop:
        stop = StopStrings(settings.stop, text_of_tokens(tokenizer), settings.min_new_tokens)

    def text_of(completion: Completion) -> str:
        if stop is not None and completion.finished and completion.tokens[-1] not in ends:
            return stop.cut(completion.tokens)
        return decode_completion(tokenizer, completion.tokens)

    return replace(group, completions=[replace(each, text=text_of(each)) for each in group.completions])
