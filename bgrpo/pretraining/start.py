"""What supervised training starts from: a policy that is there, or a new one with its task's or a new tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bgrpo.config import PretrainConfig
from bgrpo.decoding.support import context_of
from bgrpo.errors import UserError, reading
from bgrpo.files import write_atomically
from bgrpo.policies.io import LoadedPolicy, load_policy
from bgrpo.policies.model import build_encoder_decoder, build_policy
from bgrpo.policies.text import has_encoder, set_has_encoder
from bgrpo.runs.preparation import check_policy
from bgrpo.tasks.base import Problem, Task, ability, load_task

END, PAD = "<|end|>", "<|pad|>"
"""Special tokens of a tokenizer that is trained here."""

TOKENIZER_FILE = Path("data") / "tokenizer.json"
"""Where a run keeps a tokenizer that was trained for it."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the lines of a run are made for.

    Attributes:
        tokenizer: of the policy.
        context: longest prompt plus completion, in tokens; with an encoder, longest passage, and longest completion.
        policy: that training goes on from; None where a new one is made.
        trained: True where the tokenizer was trained for this run.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int
    policy: LoadedPolicy | None = None
    trained: bool = False

    @property
    def encoder(self) -> bool:
        """Whether prompts go through an encoder."""
        return has_encoder(self.tokenizer)

    def save(self, run_dir: Path) -> None:
        """Keep in the run folder what :func:`starting_model` cannot make again."""
        if self.trained:
            backend = self.tokenizer.backend_tokenizer
            write_atomically(run_dir / TOKENIZER_FILE, backend.to_str())


def choose_start(config: PretrainConfig, task: Task, problems: Sequence[Problem]) -> Start:
    """The tokenizer and the context of the policy that is to be trained.

    Args:
        config: of the run.
        task: may have a tokenizer.
        problems: to train on; a new tokenizer learns from their prompts and answers.

    Raises:
        UserError: a policy that cannot be loaded or is too short for ``context``, or no tokenizer.
    """
    if config.policy.path is not None:
        policy = check_policy(config.policy.path)
        context = context_of(policy.model.config) or config.context
        if context is None:
            raise UserError(f"policy {config.policy.path} reads texts of any length: say which, as context")
        if (config.context or 0) > context:
            raise UserError(
                f"context={config.context}: policy {config.policy.path} reads no more than {context} tokens"
            )
        context = config.context or context
        if config.max_new_tokens >= context:
            raise UserError(f"max_new_tokens={config.max_new_tokens} leaves no room in the policy's context={context}")
        return Start(policy.tokenizer, context, policy)
    context = config.shape[3]
    if callable(getattr(task, "tokenizer", None)):
        if config.vocabulary is not None:
            raise UserError(
                f"vocabulary={config.vocabulary}: task {task.name!r} brings its own tokenizer; leave it out"
            )
        own = _tokenizer_of(task)
        set_has_encoder(own, config.encoder is True)
        return Start(own, context)
    if config.vocabulary is None:
        raise UserError(
            f"task {task.name!r} has no method tokenizer(), which training a policy from scratch needs: set "
            "policy.path to a policy to go on from, or vocabulary=8000 to train a tokenizer on the problems"
        )
    texts = (text for problem in problems for text in (problem.prompt, *problem.passages, *problem.answers))
    prefixes = {problem.answer_prefix for problem in problems} - {""}
    tokenizer = train_tokenizer(texts, config.vocabulary, sorted(prefixes), config.encoder is True)
    set_has_encoder(tokenizer, config.encoder is True)
    return Start(tokenizer, context, trained=True)


def starting_model(config: PretrainConfig, run_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy before the first step of a run, and its tokenizer."""
    if config.policy.path is not None:
        policy = load_policy(config.policy.path)
        return policy.model, policy.tokenizer
    tokenizer: PreTrainedTokenizerBase
    if (run_dir / TOKENIZER_FILE).is_file():
        with reading(f"{run_dir / TOKENIZER_FILE}: cannot be read"):
            tokenizer = _wrapped(Tokenizer.from_file(str(run_dir / TOKENIZER_FILE)))
    else:
        tokenizer = _tokenizer_of(load_task(config.task.name, config.task.options))
    if config.encoder:
        set_has_encoder(tokenizer, True)
        return build_encoder_decoder(tokenizer, *config.shape[:3], config.seed), tokenizer
    return build_policy(tokenizer, *config.shape, config.seed), tokenizer


def train_tokenizer(
    texts: Iterable[str], size: int, whole: Sequence[str] = (), for_encoder: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE: it knows every text, and writes those that it was trained on in few tokens.

    Args:
        texts: to learn from.
        size: most tokens, all 256 bytes and the special tokens among them; fewer where the texts give no more.
        whole: texts that are one token each.
        for_encoder: a text ends with the end token.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, PAD, *whole], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    if for_encoder:
        made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return _wrapped(made)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def _tokenizer_of(task: Task) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = ability(task, "tokenizer", "training a policy from scratch")()
    return tokenizer
