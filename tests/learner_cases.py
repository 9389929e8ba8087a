"""What the learner's tests share: tiny policies, scripted rollouts, and the loss written out row by row."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from bgrpo.config import TrainConfig, build_config
from bgrpo.groups import Completion, ScoredGroup, Verdict, fused
from bgrpo.learning.sharding import gathered
from bgrpo.policies.adapter import Adapter
from bgrpo.scoring.judge import Judge
from bgrpo.tasks.polynomial.tokenizer import tokenizer_from_tokens

VOCABULARY = 31
PAD, EOS = 0, 1
TOKENIZER = tokenizer_from_tokens(["□", "⁇", *(f"t{number}" for number in range(2, VOCABULARY))])


def tiny_policy(seed: int = 0) -> GPT2LMHeadModel:
    """Two layers, 16 wide, weights large enough that distributions are far from uniform."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=EOS,
        pad_token_id=PAD, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def train_config(**sections: Any) -> TrainConfig:
    """Four prompts of up to five completions, no clipping of gradients, everything else as shipped."""
    tree: dict[str, Any] = {
        "steps": 2,
        "rollout": {"group_size": 5, "prompts_per_step": 4, "max_new_tokens": 8, "skip_uninformative": False},
        "learner": {"max_grad_norm": 1e6, "learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"},
    }
    for name, value in sections.items():
        tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
    return build_config(TrainConfig, tree, "test")


class ScriptedSource:
    """Groups drawn from (step, index, draw) alone, so that every learner and every run sees the same ones."""

    def __init__(
        self, group_size: int = 5, outcome: Callable[[random.Random], str] | None = None, cut_off: float = 0.0
    ) -> None:
        self.group_size = group_size
        self.cut_off = cut_off  # share of completions without end token
        self.outcome = outcome or (lambda rng: rng.choice(["correct", "wrong", "unparseable"]))
        self.published: list[int] = []
        self.weights: dict[int, torch.Tensor] = {}
        self.asked: list[tuple[int, int, list[int], int]] = []
        self.prefetched: list[tuple[int, int, list[int]]] = []
        self.version_offset = 0
        self.passages = False  # True: long prompts are two passages
        self.config = train_config()  # whose rewards the groups get; make_trainer sets its own

    def publish(self, version: int, model: PreTrainedModel | Adapter) -> None:
        self.published.append(version)
        self.weights[version] = flat_weights(model)

    def prefetch(self, step: int, version: int, indices: list[int]) -> None:
        self.prefetched.append((step, version, indices))

    def collect(self, step: int, version: int, indices: list[int], draw: int) -> list[ScoredGroup]:
        self.asked.append((step, version, indices, draw))
        return [self.group(step, index, draw, version + self.version_offset) for index in indices]

    def group(self, step: int, index: int, draw: int, version: int) -> ScoredGroup:
        rng = random.Random(f"{step} {index} {draw}")
        prompt = [rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, 9))]
        if self.passages and len(prompt) > 3:
            prompt = fused([prompt[:2], prompt[2:]])
        stem = [rng.randrange(2, VOCABULARY) for _ in range(3)]
        completions = [self._completion(rng, stem) for _ in range(self.group_size - rng.randint(0, 1))]
        completions.sort(key=lambda completion: -completion.logprob)
        outcomes = [self.outcome(rng) for _ in completions]
        return scored(index, prompt, completions, outcomes, version, self.config)

    def _completion(self, rng: random.Random, stem: Sequence[int]) -> Completion:
        tokens = [*stem[: rng.randint(0, 3)], *(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(0, 4))), EOS]
        finished = not self.cut_off or rng.random() >= self.cut_off
        if not finished:
            tokens[-1] = 2
        return Completion(tokens, [-rng.random() for _ in tokens], finished)


def scored(
    index: int,
    prompt: list[int],
    completions: Sequence[Completion],
    outcomes: Sequence[str],
    version: int,
    config: TrainConfig | None = None,
) -> ScoredGroup:
    """A group with these outcomes, and the rewards that ``config`` gives them."""
    verdicts = [Verdict(outcome) for outcome in outcomes]
    return ScoredGroup(
        prompt_ids=prompt,
        completions=[replace(item, verdict=verdict) for item, verdict in zip(completions, verdicts, strict=True)],
        rewards=Judge(config or train_config()).rewards(verdicts),
        index=index,
        version=version,
    )


def row_logps(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probability of each completion token from one forward pass over one unpadded row."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    scored = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return scored[torch.arange(len(completion)), torch.tensor(completion)]


def row_by_row_loss(
    model: PreTrainedModel,
    groups: Sequence[ScoredGroup],
    values: Sequence[Sequence[float]],
    *,
    beta: float = 0.0,
    epsilon: float = 0.2,
    reference: PreTrainedModel | None = None,
    old: Callable[[int, int], torch.Tensor] | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Clipped surrogate plus beta times the k3 KL, averaged over all completion tokens; old(g, k): old log-probs."""
    total, tokens = 0.0, 0
    for g, group in enumerate(groups):
        for k, completion in enumerate(group.completions):
            new = row_logps(model, group.prompt_ids, completion.tokens, temperature)
            before = new.detach() if old is None else old(g, k)
            ratio = (new - before).exp()
            surrogate = torch.min(ratio * values[g][k], ratio.clamp(1 - epsilon, 1 + epsilon) * values[g][k])
            total = total - surrogate.sum()
            if reference is not None and beta:
                with torch.no_grad():
                    ref = row_logps(reference, group.prompt_ids, completion.tokens, temperature)
                total = total + beta * ((ref - new).exp() - (ref - new) - 1).sum()
            tokens += len(completion.tokens)
    return total / tokens


def flat_weights(model: torch.nn.Module | Adapter) -> torch.Tensor:
    tensors = model.tensors().values() if isinstance(model, Adapter) else model.parameters()
    return torch.cat([gathered(tensor.detach()).reshape(-1).clone() for tensor in tensors])


def learned(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights of a model that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([gathered(parameter.grad).reshape(-1).clone() for parameter in learned(model)])


def make_trainer(
    config: TrainConfig,
    source: Any,
    folder: Path,
    *,
    policy: PreTrainedModel | None = None,
    problems: int = 10,
    **options: Any,
) -> Any:
    """A trainer that also notes each optimizer step's gradient and the weights before it: ``gradients``, ``starts``."""
    from bgrpo.learning.trainer import BGRPOTrainer

    source.config = config

    class Watched(BGRPOTrainer):
        def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
            norm = super()._clip_grad_norm(model)
            if all(parameter.grad is not None for parameter in learned(self._policy)):
                self.gradients.append(flat_gradient(self._policy))
                self.starts.append(flat_weights(self._policy))
            return norm

    trainer = Watched(config, policy or tiny_policy(), TOKENIZER, source, problems, folder, **options)
    trainer.gradients, trainer.starts = [], []
    return trainer
