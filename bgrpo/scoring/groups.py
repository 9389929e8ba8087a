"""From decoded groups to scored ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bgrpo.groups import Group, ScoredGroup
from bgrpo.scoring.check_process import CheckResult
from bgrpo.tasks.base import Outcome

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def completions_to_check(
    texts: Sequence[str], groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, str]]:
    """(prompt, completion) texts of every finished completion, in order: what :func:`score_groups` wants checked."""
    from bgrpo.policies.text import decode_completion

    return [
        (text, decode_completion(tokenizer, completion.tokens))
        for text, group in zip(texts, groups, strict=True)
        for completion in group.completions
        if completion.finished
    ]


def score_groups(
    indices: Sequence[int],
    prompts: Sequence[list[int]],
    groups: Sequence[Group],
    results: Iterable[CheckResult],
    version: int,
) -> list[ScoredGroup]:
    """Join groups with the results of :func:`completions_to_check`; unfinished completions become ``truncated``.

    Raises:
        ValueError: more or fewer results than finished completions.
    """
    remaining = iter(results)
    scored = []
    for index, prompt, group in zip(indices, prompts, groups, strict=True):
        finished = [completion.finished for completion in group.completions]
        checked = [next(remaining, None) if done else CheckResult(Outcome.TRUNCATED) for done in finished]
        known = [result for result in checked if result is not None]
        if len(known) < len(checked):
            raise ValueError(f"problem {index}: fewer check results than finished completions")
        has_scores = any(result.score is not None for result in known)
        scored.append(
            ScoredGroup(
                index=index,
                prompt_ids=prompt,
                completions=group.completions,
                outcomes=[str(result.outcome) for result in known],
                version=version,
                scores=[result.score or 0.0 for result in known] if has_scores else None,
            )
        )
    if next(remaining, None) is not None:
        raise ValueError("more check results than finished completions")
    return scored
