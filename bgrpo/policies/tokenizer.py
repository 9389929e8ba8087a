"""The tokenizer of the polynomial notation, and encoding that never loses a token silently."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bgrpo.errors import UserError

PAD = "□"
SEPARATOR = "⁇"
OPERATORS = ("+", "*", "^", "&")
SIGNS = ("P", "N")
DIGITS = tuple("0123456789")

# An indexed variable is one token, every other letter, digit or symbol is one; whatever is left stays in one piece, so
# that an error can name it. "a12" is never read as "a1" "2": it is either in the vocabulary or unknown.
_WORD = r"[a-z][0-9]+|[A-Za-z0-9+*^&□⁇]|[^\sA-Za-z0-9+*^&□⁇]+"


def build_tokenizer(inner_variables: int = 21, outer_variables: int = 8) -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the polynomial notation.

    The vocabulary is ``□`` (pad), ``⁇`` (separator and end token), ``+ * ^ &``, ``P N``, the ten digits, ``a b``, then
    ``a0…`` and ``b0…``: 20 tokens plus the two counts.

    Args:
        inner_variables: how many indexed inner variables ``a0, a1, …`` there are; 0 for one-variable policies.
        outer_variables: how many indexed outer variables ``b0, b1, …`` there are; may be 0.
    """
    if inner_variables < 0 or outer_variables < 0:
        raise UserError(
            f"build_tokenizer: inner_variables={inner_variables}, outer_variables={outer_variables}: need 0 or more"
        )
    indexed = [f"a{i}" for i in range(inner_variables)] + [f"b{i}" for i in range(outer_variables)]
    return tokenizer_from_tokens([PAD, SEPARATOR, *OPERATORS, *SIGNS, *DIGITS, "a", "b", *indexed])


def tokenizer_from_tokens(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer whose token i is ``tokens[i]``; ``□`` and ``⁇`` must be among them, nothing twice.

    ``?`` is read as ``⁇``. There is no unknown token: the policy could write it. Encode with :func:`encode_prompt`.
    """
    repeated = {token for token in tokens if list(tokens).count(token) > 1}
    if repeated or not {PAD, SEPARATOR} <= set(tokens):
        raise UserError(
            f"vocabulary of {len(tokens)} tokens: needs {PAD} and {SEPARATOR}, each token once; repeated: {repeated}"
        )
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    backend.normalizer = normalizers.Replace("?", SEPARATOR)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_WORD), behavior="isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=SEPARATOR,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, no special token added.

    Raises:
        UserError: a text is empty, or holds a token that the vocabulary lacks.
    """
    _check_known(tokenizer, texts)
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    for text, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise UserError(f"prompt {text!r} is empty: expected at least one token")
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise UserError(f"{_shorten(text)!r}: holds a token that is not in the policy's vocabulary")
    return encoded


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one prompt (``expanded ⁇``), as :func:`encode_texts`."""
    return encode_texts(tokenizer, [text])[0]


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of a completion: everything before the first end token, pads at its end left out.

    A pad that the policy wrote inside its answer stays, so that a checker sees the answer as it is.
    """
    kept = list(ids)
    if tokenizer.eos_token_id in kept:
        kept = kept[: kept.index(tokenizer.eos_token_id)]
    while kept and kept[-1] == tokenizer.pad_token_id:
        kept.pop()
    return str(tokenizer.decode(kept))


def _check_known(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Name the first word that a word-level vocabulary without an unknown token lacks; others know every text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.WordLevel) or tokenizer.unk_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            if word not in vocabulary:
                raise UserError(f"{_shorten(text)!r}: the policy's vocabulary has no token {word!r}")


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
