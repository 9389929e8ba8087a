"""Completions that are allowed: beams, samples and stochastic beams of the constrained policy, against brute force."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from decoding.engines import ENGINES, plain_engine
from decoding.test_sampling import chi_square
from decoding.tiny_models import tiny_model
from reference.beam_oracle import NextLogprobs, beam_search, next_logprobs

from bgrpo.decoding import DecodeEngine, DecodeSettings, fast_layers
from bgrpo.decoding.allowed import AllowedByFunction, AllowedCompletions
from bgrpo.decoding.token_mask import mask_of
from bgrpo.errors import UserError

EOS = 2
PROMPT = [1, 0, 3]
ITEMS = [[4, 5, EOS], [4, 5, 5, EOS], [4, 0, EOS], [6, EOS], [0, 1, 3, EOS], [0, 1, 4, EOS], [0, EOS]]
TREE = AllowedCompletions.of(ITEMS)


def within(after: NextLogprobs, items: list[list[int]]) -> NextLogprobs:
    """The policy that can only write these; what is left at each place sums to one."""

    def left(written: tuple[int, ...]) -> list[float]:
        size = len(written)
        allowed = {item[size] for item in items if len(item) > size and tuple(item[:size]) == written}
        kept = [logp if token in allowed else -math.inf for token, logp in enumerate(after(written))]
        norm = math.log(sum(map(math.exp, kept)))
        return [logp - norm for logp in kept]

    return left


def exact(model: Any) -> dict[tuple[int, ...], float]:
    after = within(next_logprobs(model, PROMPT), ITEMS)
    return {tuple(item): sum(after(tuple(item[:place]))[token] for place, token in enumerate(item)) for item in ITEMS}


@pytest.mark.parametrize("engine", [*ENGINES, "plain"])
@pytest.mark.parametrize("width", [3, 10])
def test_beams_are_those_of_the_constrained_policy(engine: str, width: int) -> None:
    model = tiny_model(vocabulary=7, seed=2)
    make = plain_engine if engine == "plain" else ENGINES[engine]
    (group,) = make(model).decode([PROMPT], DecodeSettings("beam", width, 4, EOS, 0, allowed=TREE))
    expected = beam_search(within(next_logprobs(model, PROMPT), ITEMS), width, 4, EOS)
    assert expected.margin > 1e-4
    found = {tuple(each.tokens): each.logprob for each in group.completions}
    assert found == pytest.approx(expected.scores, abs=1e-4)
    assert all(each.finished for each in group.completions) and len(found) == min(width, len(ITEMS))
    if width == 10:
        assert sum(math.exp(score) for score in found.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["sample", "stochastic_beam"])
def test_what_is_drawn_is_of_the_constrained_policy(mode: Any) -> None:
    """The first of a group without replacement is a plain sample; where all are asked for, all come."""
    model = tiny_model(vocabulary=7, seed=2)
    engine, chances = DecodeEngine(model), exact(model)
    size = 2 if mode == "stochastic_beam" else 1
    groups = engine.decode([PROMPT] * 2000, DecodeSettings(mode, size, 4, EOS, 0, allowed=TREE), range(2000))
    firsts = Counter(tuple(group.completions[0].tokens) for group in groups)
    statistic, limit = chi_square(firsts, chances)
    assert statistic < limit
    for group in groups[:50]:
        for each in group.completions:
            assert each.logprob == pytest.approx(chances[tuple(each.tokens)], abs=1e-4)
    if mode == "stochastic_beam":
        (every,) = engine.decode([PROMPT], DecodeSettings(mode, 9, 4, EOS, 0, allowed=TREE), [1])
        assert {tuple(each.tokens) for each in every.completions} == set(chances) and every.kappa is None


def test_a_function_that_allows_tokens_is_asked_with_the_prompt_and_what_is_written() -> None:
    model = tiny_model(vocabulary=7, seed=2)

    def allow(prompt: list[int], written: list[int]) -> list[int]:
        items = ITEMS if prompt == PROMPT else ITEMS[:2]
        return [item[len(written)] for item in items if item[: len(written)] == written]

    engine, asked = DecodeEngine(model), AllowedByFunction(allow, 7)
    tree, function = (
        engine.decode([PROMPT, [5]], DecodeSettings("beam", 9, 4, EOS, 0, allowed=of)) for of in (TREE, asked)
    )
    assert [each.tokens for each in function[0].completions] == [each.tokens for each in tree[0].completions]
    assert sorted(each.tokens for each in function[1].completions) == sorted(ITEMS[:2])
    for given, said in (([], "allows nothing after tokens"), ([9], "gave token 9; ids are 0 to 6")):
        with pytest.raises(UserError, match=said):
            engine.decode(
                [PROMPT],
                DecodeSettings("beam", 2, 4, EOS, 0, allowed=AllowedByFunction(lambda *_, ids=given: ids, 7)),
            )


def test_the_blocks_of_a_large_vocabulary_and_pieces_of_rows_are_constrained_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(vocabulary=2600, seed=1)
    items = [[first, second, EOS] for first in (3, 700, 2599) for second in (5, 1300, 2047, 2048)]
    for mode in ("beam", "stochastic_beam"):
        settings = DecodeSettings(mode, 6, 4, EOS, 0, allowed=AllowedCompletions.of(items))
        whole = DecodeEngine(model).decode([PROMPT, [4]], settings, [5, 6])
        with monkeypatch.context() as patch:
            patch.setattr(fast_layers, "LOGITS_AT_ONCE", 2048)
            patch.setattr("bgrpo.decoding.slots.LOGITS_AT_ONCE", 2 * 2600)
            parts = DecodeEngine(model).decode([PROMPT, [4]], settings, [5, 6])
        for one, other in zip(whole, parts, strict=True):
            assert [each.tokens for each in one.completions] == [each.tokens for each in other.completions]
            assert all(each.tokens in items for each in one.completions) and len(one.completions) == 6


def test_where_completions_are_scored_the_same_tokens_are_left() -> None:
    """The learner's mask against the decoder's: the logits of each place, shared or not, keep what is allowed there."""
    mask = mask_of(DecodeSettings("beam", 2, 4, EOS, 0, allowed=TREE))
    assert mask is not None
    rows = [[4, 5, EOS, 0], [4, 5, 5, EOS], [0, 1, 3, EOS]]  # places: 0 the prompt, 1 after 4, 2 after 4 5, 3 after …
    source = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3], [0, 4, 5, 6]])
    valid = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])
    place_S = mask.places(source, torch.tensor(rows), valid, 8)  # one more that predicts nothing
    kept = mask.scored(torch.zeros(8, 7), place_S) > -1e20
    allowed = [[token for token in range(7) if row[token]] for row in kept.tolist()]
    assert allowed[:7] == [[0, 4, 6], [0, 5], [2, 5], [2], [1, 2], [3, 4], [2]]


def test_a_tree_holds_what_it_was_made_of() -> None:
    assert (TREE.count, TREE.longest) == (7, 4) and AllowedCompletions.of(ITEMS[::-1] + ITEMS) == TREE
    assert all(TREE.holds(item) and TREE.holds(item[:-1]) for item in ITEMS) and not TREE.holds([4, 1])
    assert AllowedCompletions.of(ITEMS[1:]) != TREE and not TREE.holds([6, EOS, 0])
    walk, rng = TREE.on(torch.device("cpu")), np.random.default_rng(0)
    for _ in range(50):
        tokens = rng.integers(0, 7, 4).tolist()
        node = walk.roots([PROMPT])
        for size, token in enumerate(tokens, 1):
            node = walk.follow(node, torch.tensor([token]))
            assert (int(node) >= 0) == any(item[:size] == tokens[:size] for item in ITEMS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": 3}, "max_new_tokens=3: the longest completion allowed has 4 tokens"),
        ({"banned_tokens": (3,)}, "banned_tokens: where only some completions are allowed"),
        ({"min_new_tokens": 1}, "min_new_tokens: where only some"),
        ({"stop": ("x",)}, "stop: where only some"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {"mode": "beam", "group_size": 2, "max_new_tokens": 5, "eos_token_id": EOS}
    with pytest.raises(UserError, match=said):
        DecodeSettings(**options | {"pad_token_id": 0, "allowed": TREE} | change)


def test_a_set_that_is_no_set_of_whole_completions_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[4, 5\] are the beginning of another"):
        AllowedCompletions.of([[4, 5], [4, 5, 2]])
    with pytest.raises(UserError, match="no completion"):
        AllowedCompletions.of([])
    with pytest.raises(UserError, match="allowed=9: the model's vocabulary"):
        DecodeSettings("beam", 2, 5, EOS, 0, allowed=AllowedCompletions.of([[9, EOS]])).check_vocabulary(7)
