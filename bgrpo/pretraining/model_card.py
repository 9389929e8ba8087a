"""The model card of a policy: what it is, how it was made, how to make it again, what it scores."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch
import transformers

from bgrpo.config import PretrainConfig
from bgrpo.decoding.support import context_of
from bgrpo.policies.io import LoadedPolicy
from bgrpo.pretraining.validation import perplexity
from bgrpo.settings.strict_yaml import dump_yaml
from bgrpo.tasks.base import Problem

_WHERE = {"run", "out", "tracking"}  # sections that say where things go, not what is computed
_CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline}
license: apache-2.0
tags: [bgrpo, {task}]
---
# Policy trained by supervision on the task `{task}`

{kind} of {parameters:,} parameters ({layers} layers, {heads} heads, width {width}, context {context},
vocabulary {vocabulary}), trained {origin} on {lines:,} problems with their answers. It reads a prompt, for example
`{prompt}`, and writes an answer, then the end token `{end}`.
Load it with `bgrpo.policies.io.load_policy` or with transformers' `{loader}`.

## Scores
On {problems} held-out problems of the same kind, none of which is in the training data:

| metric | value |
|---|---|
| greedy accuracy | {accuracy:.1%} |
| loss per answer token (nats) | {loss:.4f} |
| perplexity | {perplexity:.4g} |

The best of the checkpoints by greedy accuracy, made at step {step} of {steps} ({seen:,} lines seen).

## To make it again
```
{command}
```
Data seeds: training {train_seed}, validation {validation_seed}, test {test_seed}; seed of weights and order: {seed}.
Made with torch {torch}, transformers {transformers}, Python {python}. The configuration:
```yaml
{config}```
"""


def model_card(
    config: PretrainConfig,
    policy: LoadedPolicy,
    command: str,
    step: int,
    metrics: dict[str, float],
    lines: int,
    problems: Sequence[Problem],
) -> str:
    """Markdown with a YAML head.

    Args:
        config: of the run.
        policy: model and tokenizer.
        command: makes the policy again.
        step: optimizer step of the chosen checkpoint.
        metrics: its ``greedy_accuracy`` (0 to 1) and ``validation_loss`` (nats per answer token).
        lines: training problems.
        problems: held-out problems, at least one.
    """
    shape = policy.model.config
    encoder = bool(shape.is_encoder_decoder)
    return _CARD.format(
        task=config.task.name,
        parameters=policy.model.num_parameters(),
        origin="from scratch" if config.policy.path is None else f"from `{config.policy.path}`",
        layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        width=shape.hidden_size,
        context=context_of(shape) or "of any length",
        kind="An encoder-decoder" if encoder else "A causal language model",
        loader="AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM",
        pipeline="text2text-generation" if encoder else "text-generation",
        vocabulary=shape.vocab_size,
        lines=lines,
        problems=len(problems),
        prompt=problems[0].prompt,
        end=policy.tokenizer.eos_token,
        accuracy=metrics["greedy_accuracy"],
        loss=metrics["validation_loss"],
        perplexity=perplexity(metrics["validation_loss"]),
        step=step,
        steps=config.steps,
        seen=step * config.batch_size,
        command=command,
        train_seed=config.task.train.seed,
        validation_seed=config.task.validation.seed,
        test_seed=config.task.test.seed,
        seed=config.seed,
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        config=dump_yaml(config.model_dump(mode="json", exclude=_WHERE)),
    )
