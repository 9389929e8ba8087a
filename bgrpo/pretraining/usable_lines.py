"""Which problems a policy can be supervised on: those with an answer that fits; the others are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bgrpo.config import PretrainConfig
from bgrpo.errors import UserError
from bgrpo.pretraining.start import Start
from bgrpo.pretraining.supervised_lines import Lines, tokenise
from bgrpo.scoring.readable_groups import place
from bgrpo.tasks.base import Problem


@dataclass(frozen=True, slots=True)
class Usable:
    """The problems of one split that can be learned from, or measured on.

    Attributes:
        problems: with an answer that fits.
        lines: of these problems.
        counts: for ``run.json``.
        notes: what was left out, one line each.
    """

    problems: list[Problem]
    lines: Lines
    counts: dict[str, int]
    notes: list[str]


def usable_lines(config: PretrainConfig, start: Start, problems: Sequence[Problem], where: str) -> Usable:
    """Leave out what has no answer, and refuse or leave out what is too long, as ``long_lines`` says.

    Args:
        config: bounds the answer.
        start: gives tokenizer and context.
        problems: of one split, at least one.
        where: they came from, for messages: split and file.

    Raises:
        UserError: a token that the vocabulary lacks, a line that is too long where that is refused, or nothing is left.
    """
    answered = [problem for problem in problems if problem.answer.strip()]
    unanswered = len(problems) - len(answered)
    if not answered:
        raise UserError(
            f"{where}: none of {len(problems):,} problems has an answer to learn from; name the column that holds it "
            "with task.options.reference, or end chats with the assistant's message"
        )
    notes = []
    if unanswered:
        notes.append(f"note: {where}: {unanswered:,} of {len(problems):,} problems have no answer, and are left out")
    lines = tokenise(answered, start.tokenizer, where)
    if start.encoder:
        sizes = zip(lines.longest_passages().tolist(), lines.answer_lengths.tolist(), strict=True)
        why = [_too_long_for_encoder(config, start.context, passage, answer) for passage, answer in sizes]
    else:
        sizes = zip(lines.prompt_lengths.tolist(), lines.answer_lengths.tolist(), strict=True)
        why = [_too_long(config, start.context, prompt, answer) for prompt, answer in sizes]
    kept = [index for index, wrong in enumerate(why) if not wrong]
    long = [index for index, wrong in enumerate(why) if wrong]
    if long:
        first = f"{place(where, answered, long[0])}: {why[long[0]]}"
        if config.long_lines == "refuse":
            raise UserError(f"{first}; long_lines=drop leaves such lines out")
        if not kept:
            raise UserError(f"{where}: every line is too long; first {first}")
        told = f"{len(long):,} of {len(answered):,} lines are too long, and are left out"
        notes.append(f"note: {where}: {told}; first {first}")
        lines, answered = lines.take(kept), [answered[index] for index in kept]
    counts = {"used": len(answered), "unanswered": unanswered, "dropped": len(long)}
    return Usable(answered, lines, counts, notes)


def _too_long_for_encoder(config: PretrainConfig, context: int, passage: int, answer: int) -> str:
    """As :func:`_too_long`, for the longest passage of a prompt."""
    if answer > config.max_new_tokens:
        return _too_long(config, context, 0, answer)
    if passage > context:
        return f"its longest passage has {passage} tokens: context={context} is too short"
    return ""


def _too_long(config: PretrainConfig, context: int, prompt: int, answer: int) -> str:
    """Why a line of so many tokens is too long; empty where it is not."""
    new = config.max_new_tokens
    if answer > new:
        return f"its answer has {answer} tokens with its end: max_new_tokens={new} cuts it"
    if prompt + answer > context:
        return f"its line has {prompt + answer} tokens: context={context} is too short"
    if prompt + new > context:
        return (
            f"its prompt has {prompt} tokens, and {prompt} + max_new_tokens={new} = {prompt + new} is more than "
            f"context={context}"
        )
    return ""
