"""The packed update against padded rows with the same gradient: forward and backward of one update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bgrpo.bench.step.update_workload import UpdateCase, build_workload, without_sharing
from bgrpo.bench.turns import DisagreementError, interleave, timed
from bgrpo.groups import ScoredGroup
from bgrpo.learning.matrix_products import OneDNNProducts
from bgrpo.learning.packing import pack_groups, packed_logps

TOLERANCE = 1e-5
"""Largest relative difference between the gradients."""

CHECKED_COMPLETIONS = 5


def compare_updates(case: UpdateCase, padded_groups: int, rounds: int) -> list[dict[str, Any]]:
    """Two rows: beams of the case's own policy, and completions that share nothing.

    Padded rows are what transformers makes of [prompt | completion]: one row per completion, as many at a time as a
    group has (so its tensors stay small), log-probabilities at completion places only. The packed side includes the
    packing. All run in turns.

    Args:
        case: one whose weights are random: all prompts and completions are equally long, so padding itself is free.
        padded_groups: groups of the padded update that are timed; its time for all is taken as proportional, since it
            goes group by group.
        rounds: turns of each; the medians count.

    Returns:
        Per row: CPU seconds of an update ``packed_s``, ``padded_s``, and ``padded_onednn_s`` where the padded rows get
        the packed side's matrix products too; ``ratio`` and ``same_products_ratio`` of them to ``packed_s``;
        ``tokens`` of the packed row and ``padded_tokens``.

    Raises:
        DisagreementError: the gradients differ.
    """
    workload = build_workload(case)
    model = workload.model.train()
    scrambled = without_sharing(workload.groups, model.config.vocab_size)
    kinds = {"beams": workload.groups, "sharing nothing": scrambled}
    errors = {name: _gradient_error(model, groups) for name, groups in kinds.items()}
    some = workload.groups[:padded_groups]
    measured = {name: partial(_packed, model, groups) for name, groups in kinds.items()}
    measured["padded"] = partial(_padded, model, some)
    measured["padded_onednn"] = partial(_padded, model, some, OneDNNProducts)
    turns = interleave({name: partial(timed, run) for name, run in measured.items()}, rounds)
    medians = {name: median(turn.cpu_seconds for turn in of) for name, of in turns.items()}
    padded_s, onednn_s = (len(workload.groups) / len(some) * medians[name] for name in ("padded", "padded_onednn"))
    return [
        {
            "case": case.name,
            "completions": name,
            "packed_s": medians[name],
            "padded_s": padded_s,
            "padded_onednn_s": onednn_s,
            "ratio": padded_s / medians[name],
            "same_products_ratio": onednn_s / medians[name],
            "gradient_error": errors[name],
            "tokens": pack_groups(_pairs(groups), "cpu").input_ids_1T.shape[1],
            "padded_tokens": sum(len(prompt) + len(tokens) for prompt, rows in _pairs(groups) for tokens in rows),
        }
        for name, groups in kinds.items()
    ]


def _gradient_error(model: PreTrainedModel, groups: Sequence[ScoredGroup]) -> float:
    """Relative difference of the packed gradient from that of padded rows, on a few completions of two groups.

    Raises:
        DisagreementError: it is too large.
    """
    few = [replace(group, completions=group.completions[:CHECKED_COMPLETIONS]) for group in groups[:2]]
    expected = _gradient(model, partial(_padded, model, few))
    error = float((_gradient(model, partial(_packed, model, few)) - expected).norm() / expected.norm())
    if not error < TOLERANCE:
        raise DisagreementError(f"the packed gradient differs from that of padded rows by {error:.1e}")
    return error


def _packed(model: PreTrainedModel, groups: Sequence[ScoredGroup]) -> None:
    packed = pack_groups(_pairs(groups), "cpu")
    logps_BC, _ = packed_logps(model, packed)
    weights_B1 = torch.tensor(_weights(groups))[:, None]
    (logps_BC * weights_B1).sum().backward()


def _padded(
    model: PreTrainedModel,
    groups: Sequence[ScoredGroup],
    products: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    weights = iter(_weights(groups))
    for group in groups:
        rows = [group.prompt_ids + completion.tokens for completion in group.completions]
        (length,) = {len(completion.tokens) for completion in group.completions}
        ids_KN = torch.tensor(rows)
        with products():
            logits_KMV = model(input_ids=ids_KN, use_cache=False, logits_to_keep=length + 1).logits[:, :-1]
        logps_KC = logits_KMV.log_softmax(-1).gather(-1, ids_KN[:, -length:, None])[..., 0]
        weights_K1 = torch.tensor([next(weights) for _ in rows])[:, None]
        (logps_KC * weights_K1).sum().backward()


def _pairs(groups: Sequence[ScoredGroup]) -> list[tuple[list[int], list[list[int]]]]:
    return [(group.prompt_ids, [completion.tokens for completion in group.completions]) for group in groups]


def _weights(groups: Sequence[ScoredGroup]) -> list[float]:
    """One per completion, of both signs, as advantages are."""
    generator = torch.Generator().manual_seed(len(groups))
    return torch.randn(sum(len(group.completions) for group in groups), generator=generator).tolist()


def _gradient(model: PreTrainedModel, run: Callable[[], None]) -> Tensor:
    model.zero_grad()
    run()
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None])
