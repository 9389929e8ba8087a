"""Slow, independent decoding in float64: one full forward pass per hypothesis, no cache, no mask, no batching."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

NextLogprobs = Callable[[tuple[int, ...]], list[float]]
"""Log-probabilities of every next token after (prompt and) completion so far."""


def next_logprobs(model: PreTrainedModel, prompt: Sequence[int], dtype: torch.dtype = torch.float64) -> NextLogprobs:
    """The model as a function of the completion so far, remembered."""
    exact = copy.deepcopy(model).to(dtype).eval()
    memory: dict[tuple[int, ...], list[float]] = {}

    def after(completion: tuple[int, ...]) -> list[float]:
        if completion not in memory:
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *completion]])
                logits = exact(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]
            memory[completion] = logits.double().log_softmax(-1).tolist()
        return memory[completion]

    return after


Ends = int | Callable[[tuple[int, ...]], bool]
"""The token that ends a completion, or which completions have ended."""


def has_ended(tokens: tuple[int, ...], ends: Ends) -> bool:
    return bool(tokens) and (tokens[-1] == ends if isinstance(ends, int) else ends(tokens))


def masked(
    after: NextLogprobs, banned: Sequence[int] = (), ends: Sequence[int] = (), min_new_tokens: int = 0
) -> NextLogprobs:
    """The policy that cannot write banned tokens, nor end before ``min_new_tokens``; what is left sums to one."""

    def left(completion: tuple[int, ...]) -> list[float]:
        forbidden = {*banned, *(ends if len(completion) < min_new_tokens else ())}
        kept = [-math.inf if token in forbidden else logp for token, logp in enumerate(after(completion))]
        norm = math.log(sum(map(math.exp, kept)))
        return [logp - norm for logp in kept]

    return left


@dataclass(frozen=True)
class BeamResult:
    """What a beam search must find.

    Attributes:
        scores: summed log-probability of each completion.
        margin: smallest gap, over all steps, between a beam that was kept and one that was dropped. Below the rounding
            error of a tested search its choice is open.
    """

    scores: dict[tuple[int, ...], float]
    margin: float


def beam_search(after: NextLogprobs, width: int, steps: int, eos: Ends) -> BeamResult:
    """Textbook beam search. Ended beams keep their slot with their score; no length normalisation."""
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    margin = math.inf
    for _ in range(steps):
        candidates = []
        for tokens, score in beams:
            if has_ended(tokens, eos):
                candidates.append((tokens, score))
            else:
                candidates += [
                    ((*tokens, token), score + logp) for token, logp in enumerate(after(tokens)) if logp > -math.inf
                ]
        candidates.sort(key=lambda beam: -beam[1])
        if len(candidates) > width:
            margin = min(margin, candidates[width - 1][1] - candidates[width][1])
        beams = candidates[:width]
    return BeamResult(dict(beams), margin)


def all_sequences(
    after: NextLogprobs, vocabulary: int, steps: int, eos: Ends, temperature: float = 1.0
) -> dict[tuple[int, ...], float]:
    """Log-probability of every possible completion of at most ``steps`` tokens, tempered at each; they sum to one."""
    found = {}
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            early = any(has_ended(tokens[:place], eos) for place in range(1, length))
            if early or (length < steps and not has_ended(tokens, eos)):
                continue
            score = sum(tempered(after(tokens[:place]), temperature)[token] for place, token in enumerate(tokens))
            if score > -math.inf:
                found[tokens] = score
    return found


def tempered(logps: list[float], temperature: float) -> list[float]:
    """Log-probabilities when the logits are divided by ``temperature``."""
    scaled = [logp / temperature for logp in logps]
    norm = math.log(sum(math.exp(value) for value in scaled))
    return [value - norm for value in scaled]
