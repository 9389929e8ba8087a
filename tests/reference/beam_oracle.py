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


def beam_search(after: NextLogprobs, width: int, steps: int, eos: int) -> BeamResult:
    """Textbook beam search. Ended beams keep their slot with their score; no length normalisation."""
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    margin = math.inf
    for _ in range(steps):
        candidates = []
        for tokens, score in beams:
            if tokens and tokens[-1] == eos:
                candidates.append((tokens, score))
            else:
                candidates += [((*tokens, token), score + logp) for token, logp in enumerate(after(tokens))]
        candidates.sort(key=lambda beam: -beam[1])
        if len(candidates) > width:
            margin = min(margin, candidates[width - 1][1] - candidates[width][1])
        beams = candidates[:width]
    return BeamResult(dict(beams), margin)


def all_sequences(
    after: NextLogprobs, vocabulary: int, steps: int, eos: int, temperature: float = 1.0
) -> dict[tuple[int, ...], float]:
    """Log-probability of every completion of at most ``steps`` tokens, tempered at each token; they sum to one."""
    found = {}
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            if eos in tokens[:-1] or (length < steps and tokens[-1] != eos):
                continue
            found[tokens] = sum(
                tempered(after(tokens[:place]), temperature)[token] for place, token in enumerate(tokens)
            )
    return found


def tempered(logps: list[float], temperature: float) -> list[float]:
    """Log-probabilities when the logits are divided by ``temperature``."""
    scaled = [logp / temperature for logp in logps]
    norm = math.log(sum(math.exp(value) for value in scaled))
    return [value - norm for value in scaled]
