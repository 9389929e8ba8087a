"""What to decode: beams or samples, how many, how long, of which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from bgrpo.decoding.allowed import Allowed, AllowedCompletions
from bgrpo.errors import UserError, representation
from bgrpo.groups import RANKED, Search


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How every prompt of a request is completed.

    Attributes:
        mode: ``beam`` searches for the most probable completions, ``sample`` draws independent ones,
            ``stochastic_beam`` draws distinct ones, without replacement; ``diverse_beam`` searches in groups that avoid
            each other's tokens.
        group_size: K, beams or samples per prompt; may exceed the vocabulary size.
        max_new_tokens: longest completion, end token included.
        eos_token_id: the token that ends a completion, or several, each of which does.
        pad_token_id: fills unused places of the input tensors, always masked, so any id of the vocabulary serves. It
            is not forbidden as output: completions follow the model's own distribution, in which it is a token.
        temperature: divides the logits; the log-probabilities returned are those of this distribution. Beams are
            searched at 1.
        top_k: samples are drawn from so many most probable tokens; 0: from all. Applied in this order: temperature,
            ``top_k``, ``top_p``, ``min_p``.
        top_p: samples are drawn from the fewest most probable tokens whose probabilities reach this sum.
        min_p: samples are drawn from tokens at least so probable, as a part of the most probable one's probability.
        stop: texts, each of which ends a completion with the token that completes it.
        min_new_tokens: so many tokens neither end a completion nor complete a stop text that counts.
        banned_tokens: that no completion holds. These, and what ``min_new_tokens`` forbids, have probability 0 in the
            policy's distribution: the log-probabilities returned are those of what is left.
        beam_groups: of ``diverse_beam``; a divisor of ``group_size``, or 0: as many, one beam each.
        diversity: of ``diverse_beam``: nats that a token loses for each beam of earlier groups that has it there.
        allowed: the only completions that may be written, likewise; None: all.

    Raises:
        UserError: a value outside its range.
    """

    mode: Search
    group_size: int
    max_new_tokens: int
    eos_token_id: int | tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    banned_tokens: tuple[int, ...] = ()
    beam_groups: int = 0
    diversity: float = 0.5
    allowed: Allowed | None = None

    @property
    def truncates(self) -> bool:
        """Whether samples are drawn from a part of the policy's distribution."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0

    def to_measure(self, mode: Search, group_size: int, temperature: float = 1.0) -> DecodeSettings:
        """The same for an evaluation: ``temperature`` and what cuts the distribution off are of samples alone."""
        if mode == "sample":
            return replace(self, mode=mode, group_size=group_size, temperature=temperature)
        return replace(self, mode=mode, group_size=group_size, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)

    def check_vocabulary(self, vocabulary: int) -> None:
        """Tokens must be of the vocabulary, and enough of them must be left to go on with.

        Raises:
            UserError: names the option.
        """
        named = [("eos_token_id", self.end_tokens), ("pad_token_id", (self.pad_token_id,))]
        if isinstance(self.allowed, AllowedCompletions):
            named.append(("allowed", (int(self.allowed.tokens_E.min()), int(self.allowed.tokens_E.max()))))
        for name, tokens in [*named, ("banned_tokens", self.banned_tokens)]:
            if wrong := [token for token in tokens if not 0 <= token < vocabulary]:
                raise UserError(f"{name}={wrong[0]}: the model's vocabulary has ids 0 to {vocabulary - 1}")
        if self.min_new_tokens and len({*self.banned_tokens, *self.end_tokens}) == vocabulary:
            raise UserError(
                f"banned_tokens are all {vocabulary} tokens of the vocabulary but those that end a completion, and "
                f"min_new_tokens={self.min_new_tokens} asks for others: ban fewer"
            )

    @property
    def width(self) -> int:
        """Hypotheses of each prompt; one more than asked for tells the largest key that was not drawn."""
        return self.group_size + (self.mode == "stochastic_beam")

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Every token that ends a completion."""
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in get_args(Search):
            raise UserError(f"search={representation(self.mode)}: expected one of {', '.join(get_args(Search))}")
        if self.group_size < 1:
            raise UserError(f"group_size={self.group_size}: expected at least 1 beam or sample per prompt")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: expected at least 1")
        if not self.end_tokens:
            raise UserError("eos_token_id is empty: expected at least one token that ends a completion")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: expected a number above 0")
        if self.mode in RANKED and self.temperature != 1:
            raise UserError(f"temperature={self.temperature}: beams are searched at temperature 1, samples at any")
        self._check_truncation()
        if self.mode == "diverse_beam" and self.group_size % (self.beam_groups or self.group_size):
            raise UserError(
                f"beam_groups={self.beam_groups}: expected a divisor of group_size={self.group_size}: all groups are "
                f"equally wide"
            )
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens}: expected 0 to max_new_tokens={self.max_new_tokens}, the "
                f"longest completion"
            )
        check_stop(self.stop)
        if banned := set(self.banned_tokens).intersection(self.end_tokens):
            raise UserError(
                f"banned_tokens: token {min(banned)} ends a completion: without it none would; min_new_tokens puts the "
                f"end off"
            )

        self._check_allowed()

    def _check_allowed(self) -> None:
        if self.allowed is None:
            return
        given = [name for name in ("stop", "min_new_tokens", "banned_tokens") if getattr(self, name)]
        if given:
            raise UserError(f"{given[0]}: where only some completions are allowed, these say it all: leave it out")
        if isinstance(self.allowed, AllowedCompletions) and self.allowed.longest > self.max_new_tokens:
            raise UserError(
                f"max_new_tokens={self.max_new_tokens}: the longest completion allowed has {self.allowed.longest} "
                f"tokens, end token included"
            )

    def _check_truncation(self) -> None:
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: expected 1 or more tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: expected a number above 0 and at most 1, which cuts nothing off")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p={self.min_p}: expected a number from 0, which cuts nothing off, to less than 1")
        if self.mode != "sample" and self.truncates:
            given = [("top_k", self.top_k, 0), ("top_p", self.top_p, 1), ("min_p", self.min_p, 0)]
            named = ", ".join(f"{name}={value:g}" for name, value, nothing in given if value != nothing)
            raise UserError(
                f"{named}: cuts off what independent samples are drawn from; beams are the most probable anyway, and "
                f"completions drawn without replacement come from all"
            )


def check_stop(texts: Sequence[str]) -> None:
    """Refuse stop texts that could not be found in a completion, or everywhere.

    Raises:
        UserError: names the text.
    """
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"stop: is a {type(text).__name__}: expected texts")
        if not text:
            raise UserError("stop: holds an empty text, which every completion begins with: leave it out")
        if "\ufffd" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"stop: {text!r} holds half of a character, which a completion shows while it is written")
