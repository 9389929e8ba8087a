"""A word-level tokenizer with a BOS and a chat template, small enough to write token ids by hand."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["<s>", "</s>", "<pad>", "user", "assistant", "system", ":", "hi", "ho", "be", "brief"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m['role'] }} : {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)
IDS = {word: i for i, word in enumerate(WORDS)}


def chat_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Word-level, with a BOS before every text."""
    words = Tokenizer(models.WordLevel(IDS, unk_token=None))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = template
    return made


def ids(text: str) -> list[int]:
    """Token ids of words."""
    return [IDS[word] for word in text.split()]
