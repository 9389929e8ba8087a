"""Do the engines compute the same? Asked before anything is timed."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import torch
from transformers import PreTrainedModel

from bgrpo.bench.rollouts.cases import Case, EngineSpec
from bgrpo.bench.rollouts.engines import Beam, Prompts

Groups = Sequence[Sequence[Beam]]

LOGPROB_TOLERANCE = {"fp32": 2e-3, "bf16": 1.0}
"""Largest error of a completion's summed log-probability, in nats. Rounding to bf16 moves each token by some 0.01;
through 30 layers by more, and always to the same side: there by as much as it moves transformers' own pass in bf16, see
:data:`ROUNDING_SHARE`."""

ROUNDING_SHARE = 1.5
"""What bf16 may be off by, of what transformers' pass with all weights and states in bf16 is off by."""

MAX_DIFFERING = 0.02
"""Largest share of beams that another fp32 engine may not have: beams with nearly equal scores have no defined order,
and what descends from them differs."""

MAX_DIFFERING_BY_RULE = 0.2
"""The same for engines whose rule for ended beams is another one; the best beam must then be the same."""

MAX_MEAN_GAP = 0.5
"""bf16 searches another distribution, so how many beams differ is reported, not limited. They must be as good: this is
the largest difference of the mean log-probability, in nats, or :data:`MAX_STANDARD_ERRORS` if that is more. Where
rounding decides a near-tie otherwise, the search goes on elsewhere and ends some nats better or worse: prompts differed
by -4 to +2 nats over 60 tokens of a vocabulary of 150,000."""

MIN_SAME_BEST = 0.9
MAX_STANDARD_ERRORS = 5.0

_RESCORED_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an engine's completions compare with the reference's."""

    differing: float | None  # share of the reference's beams that the engine lacks; None for samples
    logprob_error: float  # largest error of a summed log-probability found, in nats
    problems: list[str]  # what is wrong, one sentence each; empty where the engine may be timed


def compare(
    spec: EngineSpec, case: Case, model: PreTrainedModel, prompts: Prompts, reference: Groups, found: Groups
) -> Agreement:
    """Compare an engine's completions of some prompts with those of the reference, our own engine in fp32.

    Args:
        spec: the engine.
        case: gives K and the mode.
        model: in fp32; scores some completions anew by a plain forward pass, which no engine has a part in.
        prompts: the prompts that were decoded.
        reference: what the reference made of these.
        found: what the engine made of these.
    """
    problems = _counts(case, found)
    errors, rescored = [0.0], []
    for prompt, group in list(zip(prompts, found, strict=True))[:_RESCORED_PROMPTS]:
        for beam in {group[0], group[-1]} if group else ():
            exact = score(model, prompt, beam.tokens)
            rescored.append((prompt, beam.tokens, exact))
            errors.append(abs(beam.logprob - exact))
    rounding = ROUNDING_SHARE * _rounding(model, rescored) if spec.dtype == "bf16" else 0.0
    tolerance = max(LOGPROB_TOLERANCE[spec.dtype], rounding)
    differing = None
    if case.mode == "beam":
        differing = differing_share(reference, found)
        for ours, theirs in zip(reference, found, strict=True):
            expected = dict(ours)
            errors += [abs(beam.logprob - expected[beam.tokens]) for beam in theirs if beam.tokens in expected]
        if spec.dtype == "bf16":
            problems += worse_on_average(reference, found, rounding)
        else:
            by_rule = case.ends and spec.engine not in ("bgrpo", "loop")
            problems += _different_beams(reference, found, differing, by_rule)
    else:
        problems += _different_distribution(reference, found, rounding)
    error = math.nan if any(map(math.isnan, errors)) else max(errors)
    if not error <= tolerance:
        problems.append(f"summed log-probabilities are off by up to {error:.3g}, more than {tolerance}")
    return Agreement(differing, error, problems)


def score(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> float:
    """Summed log-probability of a completion by one forward pass over all of it, without a cache."""
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *tokens]])
        logits_TV = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        logps_TV = logits_TV[len(prompt) - 1 : -1].double().log_softmax(-1)
        return float(logps_TV.gather(1, torch.tensor(tokens)[:, None]).sum())


def _rounding(model: PreTrainedModel, rescored: Sequence[tuple[Sequence[int], tuple[int, ...], float]]) -> float:
    """The largest error of transformers' pass in bf16 over some completions, given with their exact scores."""
    rounded = copy.deepcopy(model).bfloat16()
    return max((abs(score(rounded, prompt, tokens) - exact) for prompt, tokens, exact in rescored), default=0.0)


def differing_share(reference: Groups, found: Groups) -> float:
    """Share of the reference's beams that are not among those found for the same prompt."""
    missing = sum(len(_tokens(ours) - _tokens(theirs)) for ours, theirs in zip(reference, found, strict=True))
    return missing / sum(map(len, reference))


def worse_on_average(reference: Groups, found: Groups, rounding: float = 0.0) -> list[str]:
    """Prompts are compared one by one; a consistent difference beyond ``rounding`` shows beside how they scatter."""
    gaps = _gaps(reference, found)
    standard_error = math.sqrt(variance(gaps) / len(gaps)) if len(gaps) > 1 else 0.0
    if not abs(fmean(gaps)) <= max(MAX_MEAN_GAP, rounding, MAX_STANDARD_ERRORS * standard_error):
        return [f"mean log-probability of the beams differs by {fmean(gaps):.3g}, standard error {standard_error:.3g}"]
    return []


def _tokens(group: Sequence[Beam]) -> set[tuple[int, ...]]:
    return {beam.tokens for beam in group}


def _counts(case: Case, found: Groups) -> list[str]:
    """Every prompt must have K completions, as long as asked; beams all different."""
    for index, group in enumerate(found):
        if len(group) != case.beam_width:
            return [f"prompt {index} has {len(group)} completions, expected {case.beam_width}"]
        if case.mode == "beam" and len(_tokens(group)) != len(group):
            return [f"prompt {index} has the same beam twice"]
        if not case.ends and {len(beam.tokens) for beam in group} != {case.new_tokens}:
            return [f"prompt {index} has completions that are not {case.new_tokens} tokens long"]
    return []


def _different_beams(reference: Groups, found: Groups, differing: float, by_rule: bool) -> list[str]:
    """Too many other beams that are no ties, or, where the rule for ended beams is another, another best beam."""
    problems = []
    limit = MAX_DIFFERING_BY_RULE if by_rule else MAX_DIFFERING
    if differing > limit and not _same_scores(reference, found):
        problems.append(f"{differing:.1%} of the beams differ, more than {limit:.0%}")
    same = fmean(_best(ours) == _best(theirs) for ours, theirs in zip(reference, found, strict=True))
    if by_rule and same < MIN_SAME_BEST:
        problems.append(f"the best beam is the same for {same:.0%} of the prompts only, expected {MIN_SAME_BEST:.0%}")
    return problems


def _same_scores(reference: Groups, found: Groups) -> bool:
    """Whether the beams are equally good one by one, so that those that differ are ties."""
    for ours, theirs in zip(reference, found, strict=True):
        pairs = zip(sorted(beam.logprob for beam in ours), sorted(beam.logprob for beam in theirs), strict=False)
        if len(ours) != len(theirs) or not all(abs(a - b) <= LOGPROB_TOLERANCE["fp32"] for a, b in pairs):
            return False
    return True


def _gaps(reference: Groups, found: Groups) -> list[float]:
    """Mean log-probability of the reference's completions less that of those found, of each prompt."""
    pairs = zip(reference, found, strict=True)
    return [fmean(b.logprob for b in ours) - fmean(b.logprob for b in theirs) for ours, theirs in pairs]


def _best(group: Sequence[Beam]) -> tuple[int, ...] | None:
    return max(group, key=lambda beam: beam.logprob).tokens if group else None


def _different_distribution(reference: Groups, found: Groups, rounding: float) -> list[str]:
    """Samples of the same distribution have the same mean log-probability, up to a few standard errors and rounding."""
    gap = fmean(_gaps(reference, found))
    # variance of the mean log-probability of each prompt's samples
    variances = [variance(b.logprob for b in group) / len(group) for group in [*reference, *found] if len(group) > 1]
    standard_error = math.sqrt(sum(variances)) / len(reference)
    if not abs(gap) <= MAX_STANDARD_ERRORS * standard_error + rounding + 1e-9:
        return [f"mean log-probability of the samples differs by {gap:.3g}, standard error {standard_error:.3g}"]
    return []
