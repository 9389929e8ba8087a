"""From texts to the completions that a policy is allowed to write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bgrpo.errors import UserError
from bgrpo.files import readable_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bgrpo.decoding.allowed import AllowedCompletions

MOST_BYTES = 1 << 28
"""Of a file of completions."""


def allowed_of_file(
    tokenizer: PreTrainedTokenizerBase, path: str, column: str | None = None, what: str = "rollout.allowed"
) -> AllowedCompletions:
    """The tree of the completions of a file.

    Args:
        tokenizer: of the policy.
        path: of a text file, a completion in each line as the policy is to write it, leading blanks included; empty
            lines count for nothing. Or of JSON lines.
        column: of JSON lines: the one that holds the text.
        what: names the file, for messages.

    Raises:
        UserError: the file cannot be read, a line is none, or the policy cannot write its text.
    """
    try:
        lines = readable_file(Path(path), MOST_BYTES).read_text("utf-8").splitlines()
    except UserError as error:
        raise UserError(f"{what}={error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}={path}: cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    texts = [line if column is None else _of_column(line, column, f"{path}:{number}") for number, line in numbered]
    return allowed_of_texts(tokenizer, texts, [f"{path}:{number}" for number, _ in numbered], f"{what}={path}")


def allowed_of_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], places: Sequence[str], what: str
) -> AllowedCompletions:
    """The tree of some completions, each of which any end token ends.

    Args:
        tokenizer: of the policy.
        texts: without end token.
        places: of each, for messages.
        what: they are, likewise.

    Raises:
        UserError: there is none, or the policy cannot write one.
    """
    from bgrpo.decoding.allowed import AllowedCompletions
    from bgrpo.policies.text import UnreadableText, encode_texts, end_tokens

    if not texts:
        raise UserError(f"{what}: holds no completion")
    try:
        encoded = encode_texts(tokenizer, texts, continued=True)
    except UnreadableText as error:
        raise UserError(f"{places[error.index]}: {error}") from error
    ends = end_tokens(tokenizer)
    for ids, place in zip(encoded, places, strict=True):
        if not set(ids).isdisjoint(ends):
            raise UserError(f"{place}: holds a token that ends a completion: leave it out, it follows by itself")
    return AllowedCompletions.of([*ids, end] for ids in encoded for end in ends)


def _of_column(line: str, column: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is no JSON: {error}") from error
    text = record.get(column) if isinstance(record, dict) else None
    if not isinstance(text, str) or not text:
        raise UserError(f"{place}: has no text in the column {column!r}")
    return text
