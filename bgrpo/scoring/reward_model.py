"""Reward models: sequence classifiers in Hugging Face format that score completions."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bgrpo.errors import UserError, one_line
from bgrpo.files import sha256
from bgrpo.policies.adapter_files import is_adapter, read_adapter
from bgrpo.policies.classifier import read_classifier
from bgrpo.policies.io import loading
from bgrpo.policies.model_files import read_model_files
from bgrpo.policies.template_bounds import first_unbounded
from bgrpo.scoring.fixed_shapes import FixedShapes, telling_memory
from bgrpo.scoring.scored_text import Item, Messages, Score, as_messages, is_text, shorten

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRUNCATE = ("refuse", "cut")
ENCODE_ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError
)  # fmt: skip
"""What chat templates and tokenizers raise on a text."""
_READS_BY = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_NO_LIMIT = 1_000_000  # tokenizers without a maximum say 1e30


class RewardModel:
    """Scores completions with a sequence classifier, its own tokenizer and its own chat template.

    The same text gets the same score, bit for bit, whatever it is scored with (see
    :class:`bgrpo.scoring.fixed_shapes.FixedShapes`), on one machine with one number of threads.

    What is scored: with a chat template, the template over the prompt's messages (a text is one message of the user)
    and the completion as the assistant's. Without one, the texts of prompt and completion, joined by ``separator``,
    with the special tokens that the tokenizer adds. A BOS that stands there twice is left out once.

    The value: the logit where the model has one output. For a label of several, its probability: sigmoid where the
    model is ``multi_label_classification``, else softmax. A logit of a softmax means nothing alone.

    Args:
        path: a directory in Hugging Face format (safetensors only), or a model id of the Hugging Face Hub.
        label: name or number of the output, where the model has several.
        max_tokens: longest text; default: what the model takes.
        truncate: longer texts are failures (``refuse``), or lose tokens on the left (``cut``: a leading BOS or CLS
            stays), which every score tells.
        dtype: ``fp32`` or ``bf16``.
        device: where the weights go.
        separator: between the texts of prompt and completion, where there is no chat template.
        tries_template: see that the chat template ends before it renders, in a fork of this process; for a process that
            may fork, and that nobody else ends when a request takes too long.

    Raises:
        UserError: the model cannot be loaded, has no trained head, or an argument does not fit it.
    """

    def __init__(
        self,
        path: str,
        label: str | int | None = None,
        max_tokens: int | None = None,
        truncate: str = "refuse",
        dtype: str = "fp32",
        device: str | torch.device = "cpu",
        separator: str = "",
        tries_template: bool = True,
    ) -> None:
        for name, value, known in (("dtype", dtype, tuple(DTYPES)), ("truncate", truncate, TRUNCATE)):
            if value not in known:
                raise UserError(f"reward model {path}: {name}={value!r}: expected {' or '.join(known)}")
        if path == "shipped":
            raise UserError("reward model shipped: is a policy; expected a directory or a model id of the Hub")
        with loading("reward model", path) as folder:
            self.model, self.tokenizer = read_classifier(folder, DTYPES[dtype])
            self.label = _output(self.model, label)
        self.path = path
        self.limit = longest_text(f"reward model {path}", self.model, self.tokenizer, max_tokens)
        self._truncate, self._separator, self._tries_template = truncate, separator, tries_template
        self._several = (self.model.config.num_labels or 1) > 1
        self._shapes = FixedShapes(self.model.to(device).eval(), self.limit)  # type: ignore[arg-type]

    def score(self, items: Sequence[Item]) -> list[Score]:
        """A score for every item, in order. Equal texts are computed once.

        Raises:
            UserError: the chat template does not end, or needs too much; only where it is tried.
        """
        if self._tries_template:
            check_bounds(self.tokenizer, [(item.prompt, item.completion) for item in items], self.path)
        scores = [Score(failure="was not scored")] * len(items)
        encoded: dict[int, list[int]] = {}
        for position, item in enumerate(items):
            ids = self._encode(item)
            if isinstance(ids, Score):
                scores[position] = ids
            else:
                encoded[position] = ids
        positions = list(encoded)
        texts = [kept_tokens(ids, self.limit, self.tokenizer) for ids in encoded.values()]
        with telling_memory(f"reward model {self.path}"):
            outputs = list(self._shapes.logits(texts))
        for place, logits in outputs:
            position = positions[place]
            cut = len(encoded[position]) - len(texts[place])
            value = self._value(logits)
            bad = f"the reward model's output is {value}, not a finite number"
            scores[position] = Score(value, "", cut) if math.isfinite(value) else Score(None, bad, cut)
        return scores

    def _encode(self, item: Item) -> list[int] | Score:
        try:
            ids = encode(self.tokenizer, item.prompt, item.completion, self._separator)
        except ENCODE_ERRORS as error:
            return Score(failure=f"the reward model's tokenizer failed: {type(error).__name__}: {shorten(error)}")
        if not ids:
            return Score(failure="the text has no tokens")
        if self._truncate == "refuse" and self.limit is not None and len(ids) > self.limit:
            return Score(failure=f"the text has {len(ids)} tokens, the reward model takes {self.limit}")
        return ids

    def _value(self, logits: list[float]) -> float:
        chosen = logits[self.label]
        if not self._several or not all(map(math.isfinite, logits)):
            return chosen if not self._several else math.nan
        if self.model.config.problem_type == "multi_label_classification":
            return 1 / (1 + math.exp(-chosen)) if chosen >= 0 else math.exp(chosen) / (1 + math.exp(chosen))
        largest = max(logits)
        return math.exp(chosen - largest) / sum(math.exp(logit - largest) for logit in logits)


def check_bounds(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str | Messages, str | Messages]], path: str
) -> None:
    """See that the chat template renders every prompt with its completion within bounds.

    Raises:
        UserError: names the reward model at ``path``, and the first text that it does not render.
    """
    known = [(prompt, answer) for prompt, answer in texts if is_text(prompt) and is_text(answer)]
    chats = [as_messages(prompt, "user") + as_messages(answer, "assistant") for prompt, answer in known]
    if found := first_unbounded(tokenizer, chats):
        prompt, answer = (one_line(repr(text), 80) for text in known[found[0]])
        raise UserError(
            f"reward model {path}: its chat template {found[1]}: on the prompt {prompt} with the completion {answer}"
        )


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, completion: str | Messages, separator: str = ""
) -> list[int]:
    """Token ids of a prompt with a completion, as :class:`RewardModel` scores them.

    Raises:
        ENCODE_ERRORS: what a chat template or a tokenizer raises on a text.
    """
    if not (is_text(prompt) and is_text(completion)):
        raise TypeError("expected text, or messages with role and content")
    messages = as_messages(prompt, "user") + as_messages(completion, "assistant")
    if tokenizer.chat_template:
        encoded: Any = tokenizer.apply_chat_template(messages, return_dict=True)
    else:
        encoded = tokenizer(separator.join(message["content"] for message in messages))
    ids: list[int] = encoded["input_ids"]
    return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id else ids


def kept_tokens(ids: list[int], limit: int | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What is left of a text that may be too long: tokens go on the left, a leading BOS or CLS stays."""
    if limit is None or len(ids) <= limit:
        return ids
    first = ids[:1] if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
    return first + ids[len(ids) - limit + len(first) :]


def longest_text(
    what: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None
) -> int | None:
    """Longest text that is scored, in tokens: ``max_tokens``, or what the model takes; None: any.

    Raises:
        UserError: ``max_tokens`` is more than the model takes; ``what`` begins the message.
    """
    limit = token_limit(model, tokenizer)
    if max_tokens is not None and (max_tokens < 1 or (limit is not None and max_tokens > limit)):
        raise UserError(f"{what}: max_tokens={max_tokens}: expected 1 to {limit or 'any number'}")
    return max_tokens or limit


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Longest sequence that a model takes; None where nothing says so."""
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
    limits += [  # RoBERTa counts positions from its pad token on
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx
    ]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(known) if known else None


def same_weights(policy: str, reward_model: str) -> bool:
    """Whether a policy is given as its own reward model: the same path or id, or the same values by the same names.

    Names of files, how the weights are divided among them, and their dtype do not matter. Memory is bounded.

    Raises:
        UserError: one of them cannot be found or read.
    """
    if policy == reward_model:
        return True
    with loading("policy", policy) as folder:
        first = read_model_files(read_adapter(folder)[0] if is_adapter(folder) else folder)
    with loading("reward model", reward_model) as folder:
        second = read_model_files(folder)
    if first.folder.samefile(second.folder):
        return True
    if first.shapes != second.shapes:
        return False
    with loading("reward model", reward_model):
        return all(one == other for one, other in itertools.zip_longest(first.digests(), second.digests()))


def scorer_digest(path: str) -> str:
    """Of all that a reward model's or sentence encoder's scores depend on: its weights, and how it reads a text.

    Raises:
        UserError: it cannot be found or read.
    """
    with loading("reward model", path) as folder:
        digest = hashlib.sha256(repr(list(read_model_files(folder).digests())).encode())
        for name in _READS_BY:
            digest.update(sha256(folder / name).encode() if (folder / name).is_file() else b"-")
        return digest.hexdigest()


def _output(model: PreTrainedModel, label: str | int | None) -> int:
    """Number of the output that a label names."""
    names = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    listed = one_line(", ".join(names.values()))
    if label is None:
        if len(names) > 1:
            raise UserError(f"has {len(names)} outputs; say which with label: {listed}")
        return 0
    found = [number for number, name in names.items() if label == name] + [n for n in names if str(label) == str(n)]
    if not found:
        raise UserError(f"has no label {label!r}; it has {listed}")
    return found[0]
