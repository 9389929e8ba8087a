"""Diverse beam search against the same search written out with lists, one completion after another."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
from decoding.engines import ENGINES, plain_engine
from decoding.tiny_models import bias_token, tiny_model
from reference.beam_oracle import NextLogprobs, beam_search, next_logprobs

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.allowed import AllowedCompletions
from bgrpo.errors import UserError

EOS = 2
PROMPT = [1, 0, 3]
Beam = tuple[tuple[int, ...], float, float]  # tokens, log-probability, the same less what was lost


def written_out(
    after: NextLogprobs, groups: int, width: int, strength: float, steps: int, ends: Sequence[int]
) -> tuple[dict[tuple[int, ...], float], float]:
    """Completions with their log-probabilities, and the smallest gap between one kept and one dropped."""
    beams: list[list[Beam]] = [[((), 0.0, 0.0)] for _ in range(groups)]
    margin = 1.0
    for step in range(steps):
        chosen: list[Beam] = []
        for number, own in enumerate(beams):
            taken = Counter(tokens[-1] for tokens, _, _ in chosen if len(tokens) == step + 1)
            ended = {tokens for tokens, _, _ in chosen if tokens[-1] in ends and len(tokens) == step + 1}
            candidates: list[Beam] = []
            for tokens, logp, value in own:
                if tokens and tokens[-1] in ends:
                    candidates.append((tokens, logp, value))
                    continue
                logps = after(tokens)
                likeliest_end = max(ends, key=lambda end: logps[end])
                for token, of in enumerate(logps):
                    longer = (*tokens, token)
                    if (token in ends and token != likeliest_end) or longer in ended:
                        continue
                    candidates.append((longer, logp + of, value + of - strength * taken[token]))
            candidates.sort(key=lambda beam: -beam[2])
            if len(candidates) > width:
                margin = min(margin, candidates[width - 1][2] - candidates[width][2])
            beams[number] = candidates[:width]
            chosen += beams[number]
    return {tokens: logp for own in beams for tokens, logp, _ in own}, margin


@pytest.mark.parametrize("engine", [*ENGINES, "plain"])
@pytest.mark.parametrize(("groups", "width", "strength"), [(3, 2, 0.7), (5, 1, 0.4), (2, 4, 5.0)])
def test_beams_are_those_of_the_search_written_out(engine: str, groups: int, width: int, strength: float) -> None:
    model = bias_token(tiny_model(vocabulary=7, seed=4), EOS, 1.5)
    make = plain_engine if engine == "plain" else ENGINES[engine]
    size = groups * width
    settings = DecodeSettings("diverse_beam", size, 5, (EOS, 4), 0, beam_groups=groups, diversity=strength)
    found = make(model).decode([PROMPT, [5]], settings)
    for prompt, group in zip([PROMPT, [5]], found, strict=True):
        expected, margin = written_out(next_logprobs(model, prompt), groups, width, strength, 5, (EOS, 4))
        assert margin > 1e-4
        assert {tuple(each.tokens): each.logprob for each in group.completions} == pytest.approx(expected, abs=1e-4)
        logprobs = [each.logprob for each in group.completions]
        assert logprobs == sorted(logprobs, reverse=True) and len(logprobs) > size / 2


def test_one_group_is_beam_search() -> None:
    model = bias_token(tiny_model(vocabulary=7, seed=2), EOS, 2.0)
    settings = DecodeSettings("diverse_beam", 6, 5, EOS, 0, beam_groups=1)
    (group,) = DecodeEngine(model).decode([PROMPT], settings)
    expected = beam_search(next_logprobs(model, PROMPT), 6, 5, EOS).scores
    assert {tuple(each.tokens): each.logprob for each in group.completions} == pytest.approx(expected, abs=1e-4)


def test_more_diversity_is_more_different_tokens() -> None:
    model = tiny_model(vocabulary=7, seed=4)

    def shared(strength: float) -> float:
        settings = DecodeSettings("diverse_beam", 4, 6, EOS, 0, diversity=strength)
        groups = DecodeEngine(model).decode([PROMPT, [5], [6, 3], [0]], settings)
        pairs = [pair for group in groups for pair in itertools.combinations(group.completions, 2)]
        return sum(a == b for one, other in pairs for a, b in zip(one.tokens, other.tokens, strict=False)) / len(pairs)

    assert shared(3.0) < shared(0.3)


def test_it_stays_within_what_is_allowed_and_its_completions_are_distinct() -> None:
    items = [[4, 5, EOS], [4, 5, 5, EOS], [4, 0, EOS], [6, EOS], [0, 1, 3, EOS], [0, EOS]]
    settings = DecodeSettings("diverse_beam", 4, 4, EOS, 0, allowed=AllowedCompletions.of(items))
    (group,) = DecodeEngine(tiny_model(vocabulary=7, seed=2)).decode([PROMPT], settings)
    tokens = [each.tokens for each in group.completions]
    assert all(each in items for each in tokens) and len({tuple(each) for each in tokens}) == len(tokens)


def test_groups_of_beams_are_equally_wide() -> None:
    with pytest.raises(UserError, match=r"beam_groups=3: expected a divisor of group_size=8"):
        DecodeSettings("diverse_beam", 8, 4, EOS, 0, beam_groups=3)
