"""What to decode: beams or samples, how many, how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from bgrpo.errors import UserError

Search = Literal["beam", "sample", "stochastic_beam"]


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How every prompt of a request is completed.

    Attributes:
        mode: ``beam`` searches for the most probable completions, ``sample`` draws independent ones,
            ``stochastic_beam`` draws distinct ones, without replacement.
        group_size: K, beams or samples per prompt; may exceed the vocabulary size.
        max_new_tokens: longest completion, end token included.
        eos_token_id: the token that ends a completion, or several, each of which does.
        pad_token_id: fills unused places of the input tensors, always masked, so any id of the vocabulary serves. It
            is not forbidden as output: completions follow the model's own distribution, in which it is a token.
        temperature: divides the logits; the log-probabilities returned are those of the distribution drawn from. Beams
            are searched at 1.

    Raises:
        UserError: a value outside its range.
    """

    mode: Search
    group_size: int
    max_new_tokens: int
    eos_token_id: int | tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0

    @property
    def width(self) -> int:
        """Hypotheses of each prompt; one more than asked for tells the largest key that was not drawn."""
        return self.group_size + (self.mode == "stochastic_beam")

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Every token that ends a completion."""
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    def __post_init__(self) -> None:
        if self.mode not in get_args(Search):
            raise UserError(f"search={self.mode!r}: expected one of {', '.join(get_args(Search))}")
        if self.group_size < 1:
            raise UserError(f"group_size={self.group_size}: expected at least 1 beam or sample per prompt")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: expected at least 1")
        if not self.end_tokens:
            raise UserError("eos_token_id is empty: expected at least one token that ends a completion")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: expected a number above 0")
        if self.mode == "beam" and self.temperature != 1:
            raise UserError(f"temperature={self.temperature}: beams are searched at temperature 1, samples at any")
