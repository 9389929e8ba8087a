"""Optimizers by the names of ``learner.optimizer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

from bgrpo.config.learner import LearnerSection

OF_TRANSFORMERS = {
    "adafactor": "adafactor",
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "muon": "adamw_torch_fused",  # not made by transformers: see MuonAndAdamW
    "sgd": "sgd",
}
"""Their names as transformers' Trainer knows them."""


class MuonAndAdamW(Optimizer):
    """Muon for the matrices of the layers; AdamW for embeddings, head, norms and biases (Jordan 2024).

    Both take one learning rate: Muon's updates are scaled to the size of AdamW's (Liu et al. 2025). Norms and biases
    do not decay.

    Args:
        model: whose weights are learned.
        learner: learning rate, weight decay and ``adam_beta2``.
        decays: names of the parameters that decay.
    """

    def __init__(self, model: PreTrainedModel, learner: LearnerSection, decays: list[str]) -> None:
        outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        head: Any = model.get_output_embeddings()
        outer |= set() if head is None else {id(head.weight)}
        known = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        matrices = [weight for _, weight in known if weight.ndim == 2 and id(weight) not in outer]
        inner = {id(weight) for weight in matrices}
        others = [(name, weight) for name, weight in known if id(weight) not in inner]
        rate, decay = learner.learning_rate, learner.weight_decay
        self._muon = Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        groups = [
            {"params": [weight for name, weight in others if name in decays], "weight_decay": decay},
            {"params": [weight for name, weight in others if name not in decays], "weight_decay": 0.0},
        ]
        self._adamw = AdamW(groups, lr=rate, betas=(0.9, learner.adam_beta2), fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move all weights; this optimizer's state is that of both."""
        result = None if closure is None else closure()
        for group in self.param_groups:  # other objects after a checkpoint was loaded
            optimizer: Optimizer = self._muon if "ns_steps" in group else self._adamw
            optimizer.param_groups, optimizer.state = [group], self.state
            optimizer.step()
        return result
