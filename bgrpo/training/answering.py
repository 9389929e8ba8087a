"""A policy's answers to problems, measured against the known answers; each problem decoded and scored once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from bgrpo.config import TrainConfig
from bgrpo.decoding import DecodeEngine
from bgrpo.decoding.support import service_of
from bgrpo.errors import UserError
from bgrpo.evaluation.answer_metrics import MeasuredAnswer
from bgrpo.groups import Completion
from bgrpo.learning.padded_rows import lay_out_of
from bgrpo.policies.io import LoadedPolicy
from bgrpo.policies.text import encode_texts
from bgrpo.pretraining.supervised_lines import tokenise
from bgrpo.scoring.readable_groups import complete, decode_settings_of
from bgrpo.tasks.answers import normalized
from bgrpo.tasks.base import Problem

_AT_ONCE = 8  # problems


def answer_problems(
    policy: LoadedPolicy,
    config: TrainConfig,
    problems: Sequence[Problem],
    max_new_tokens: int,
    where: str,
    on_progress: Callable[[int, int], None],
) -> Iterator[tuple[Problem, Completion, MeasuredAnswer]]:
    """The greedy answer to every problem, in order.

    Args:
        policy: answers.
        config: says how it is decoded.
        problems: whose prompts the policy can read.
        max_new_tokens: longest answer.
        where: the problems came from, for messages.
        on_progress: called with (problems done, problems in all).

    Raises:
        UserError: a row's ``candidates`` are no texts, or a known answer has a token that the vocabulary lacks.
    """
    rollout = config.rollout
    settings = decode_settings_of(rollout, "sample", policy.tokenizer, max_new_tokens).to_measure("beam", 1, 1.0)
    engine = DecodeEngine(policy.model, precision=rollout.dtype, engine=rollout.engine)
    for start in range(0, len(problems), _AT_ONCE):
        part = problems[start : start + _AT_ONCE]
        groups = complete(engine, policy.tokenizer, part, settings)
        scores = _score(policy, config, part, where)
        for problem, group, scored in zip(part, groups, scores, strict=True):
            (completion,) = group.completions
            yield problem, completion, replace(scored, text=completion.text)
        on_progress(start + len(part), len(problems))


def _score(policy: LoadedPolicy, config: TrainConfig, problems: Sequence[Problem], where: str) -> list[MeasuredAnswer]:
    """What the policy thinks of known answers and candidates; the answers' texts are empty."""
    texts = [_texts(problem, where) for problem in problems]
    asked = [index for index, of_problem in enumerate(texts) if of_problem]
    flat = [replace(problems[index], answer=text) for index in asked for text in texts[index]]
    found: list[list[tuple[float, int]]] = [[] for _ in problems]
    if flat:
        lines = tokenise(flat, policy.tokenizer, where, tried=True)
        groups: list[tuple[list[int], list[list[int]]]] = []
        place = 0
        for index in asked:
            sequences = []
            for _ in texts[index]:
                line = lines.tokens[lines.starts[place] : lines.starts[place + 1]].tolist()
                prompt, sequence = line[: lines.prompt_lengths[place]], line[lines.prompt_lengths[place] :]
                sequences.append(sequence)
                place += 1
            groups.append((prompt, sequences))
        laid_out = lay_out_of(service_of(policy.model, config.rollout.engine))(groups, policy.model.device)
        with torch.no_grad():
            logps_BC, _ = laid_out.logps(policy.model)
        rows = iter(zip(logps_BC, laid_out.mask_BC, strict=True))
        for index in asked:
            skipped = _prefix_tokens(policy, problems[index])
            for _ in texts[index]:
                logps_C, mask_C = next(rows)
                own = logps_C[mask_C].double()[skipped:]
                found[index].append((float(own.sum()), len(own)))
    return [_measured(*each) for each in zip(problems, texts, found, strict=True)]


def _measured(problem: Problem, texts: Sequence[str], scores: Sequence[tuple[float, int]]) -> MeasuredAnswer:
    answers = tuple(problem.answers)
    if not scores:
        return MeasuredAnswer("", answers)
    hit: bool | None = None
    if problem.fields.get("candidates") and answers:
        means = [logprob / max(1, tokens) for logprob, tokens in scores]
        hit = normalized(texts[means.index(max(means))]) in map(normalized, answers)
    logprob, tokens = scores[0] if answers else (None, 0)
    return MeasuredAnswer("", answers, logprob, tokens, hit)


def _texts(problem: Problem, where: str) -> list[str]:
    """The first known answer, and the candidates that are others."""
    candidates: Any = problem.fields.get("candidates") or []
    if not isinstance(candidates, list) or not all(isinstance(each, str) and each.strip() for each in candidates):
        named = f"{where}:{problem.line}" if problem.line else where
        raise UserError(f"{named}: 'candidates' is {str(candidates)[:60]!r}: expected a list of texts")
    return list(dict.fromkeys([*problem.answers[:1], *candidates]))


def _prefix_tokens(policy: LoadedPolicy, problem: Problem) -> int:
    """Tokens before the answer itself, which every answer begins with."""
    if not problem.answer_prefix:
        return 0
    return len(encode_texts(policy.tokenizer, [problem.answer_prefix], continued=True)[0])
