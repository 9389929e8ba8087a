"""The tokenizer of the polynomial notation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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

    ``?`` is read as ``⁇``. There is no unknown token: the policy could write it. Encode with
    :func:`bgrpo.policies.text.encode_prompt`.
    """
    repeated = [token for token, times in Counter(tokens).most_common(5) if times > 1]
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
