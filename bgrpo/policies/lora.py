"""A policy that learns by an adapter: peft's layers in a model that shares the base's weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bgrpo.errors import UserError, one_line
from bgrpo.policies.adapter import NAME, Adapter, MergedModel, adapter_of, linear_layers, shared_copy, sizes, weight_of
from bgrpo.settings.spelling import nearest

_FUSED = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_FUSED_LAYERS = ("conv1d", "out_proj")
"""Layers whose weights a fused kernel of these types reads by itself; peft refuses them."""
_TRIED_TOKENS = 8
_LOGIT_TOLERANCE = 1e-2


def adapted_layers(base: PreTrainedModel, wanted: Literal["all-linear"] | Sequence[str], rank: int) -> list[str]:
    """The paths of the layers that learn.

    Args:
        base: the policy.
        wanted: ``learner.lora.target_modules``.
        rank: ``learner.lora.rank``.

    Raises:
        UserError: a name that no linear layer has, or a rank that is larger than a layer; says what there is.
    """
    if base.config.is_encoder_decoder:
        raise UserError(
            f"learner.lora.rank={rank}: {type(base).__name__} is an encoder-decoder, of which all weights are learned "
            f"(learner.lora.rank=0); adapters are for decoder-only models"
        )
    layers = linear_layers(base)
    head = base.get_output_embeddings()
    names = dict.fromkeys(path.rsplit(".", 1)[-1] for path, layer in layers.items() if layer is not head)
    found: list[str] = []
    for name in ["all-linear"] if isinstance(wanted, str) else wanted:
        of_name = [path for path in layers if name in (path, "all-linear") or path.endswith(f".{name}")]
        if name == "all-linear":
            of_name = [path for path in of_name if layers[path] is not head and not _is_fused(base, path)]
        where = f"learner.lora.target_modules: {one_line(name, 80)}"
        kind = type(base).__name__
        there = f"the linear layers of {kind} are {', '.join(names)}"
        if any(layers[path] is head for path in of_name) or _is_named(base, head, name):
            raise UserError(f"{where} is the head of {kind}, which is left as it is; {there}")
        if not of_name:
            meant = nearest(name, list(names))
            other = next((m for p, m in base.named_modules() if p == name or p.endswith(f".{name}")), None)
            what = "there is no such layer" if other is None else f"is a {type(other).__name__}, which takes no adapter"
            raise UserError(f"{where}: {what}; {there}" + (f"; did you mean {meant!r}?" if meant else ""))
        found += of_name
    for path in found:
        if rank > min(sizes(layers[path])):
            raise UserError(
                f"learner.lora.rank={rank}: {path} takes {sizes(layers[path])[0]} to {sizes(layers[path])[1]} numbers, "
                f"so its rank is at most {min(sizes(layers[path]))}; take a smaller rank, or leave this layer out of "
                f"learner.lora.target_modules"
            )
    return list(dict.fromkeys(found))


def attach(
    base: PreTrainedModel, paths: Sequence[str], rank: int, alpha: float, start: Adapter | None = None, seed: int = 0
) -> PreTrainedModel:
    """A model with an adapter that can be learned, whose frozen weights are the base's own tensors.

    Args:
        base: its weights are frozen.
        paths: of the layers that learn.
        rank: of the adapter.
        alpha: of the adapter.
        start: where it begins; default: A drawn from ``seed``, B zero, which changes nothing yet.
        seed: the global random state is left alone.

    Raises:
        UserError: peft refuses a layer, or ``start`` is of other layers, rank or alpha.
    """
    from peft import LoraConfig, inject_adapter_in_model

    transposed = any(isinstance(base.get_submodule(path), Conv1D) for path in paths)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(paths), fan_in_fan_out=transposed)  # type: ignore[arg-type]
    model = shared_copy(base)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.default_generator.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, model, NAME)
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"learner.lora: {type(base).__name__} takes no such adapter: {error}") from error
    found = adapter_of(model)
    if found is None or found.factors.keys() != set(paths):
        raise RuntimeError(f"peft adapted other layers than {list(paths)[:3]} …")
    if start is not None:
        check_alike(start, paths, rank, alpha)
        set_adapter(model, start)
    return model


def check_alike(start: Adapter, paths: Sequence[str], rank: int, alpha: float) -> None:
    """Refuse to go on with an adapter that was made with other settings.

    Raises:
        UserError: says with which.
    """
    if (start.rank, start.alpha) != (rank, alpha):
        raise UserError(
            f"learner.lora.rank={rank} with alpha={alpha:g}: the policy is an adapter of rank {start.rank} with alpha "
            f"{start.alpha:g}, and learns on with these; or merge it first (bgrpo export --merge)"
        )
    if other := sorted(set(paths) ^ start.factors.keys()):
        raise UserError(
            f"learner.lora.target_modules: the policy is an adapter of {len(start.factors)} layers, not of these "
            f"{len(set(paths))}: {one_line(other[0], 100)} is in one of them only; name its layers, or merge it first "
            f"(bgrpo export --merge)"
        )


@torch.no_grad()
def set_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Copy an adapter of the same layers and shapes into a model of :func:`attach`."""
    held = adapter_of(model)
    if held is None or held.factors.keys() != adapter.factors.keys():
        raise ValueError("an adapter of other layers")
    for path, pair in held.factors.items():
        for own, given in zip(pair, adapter.factors[path], strict=True):
            own.copy_(given)


def check_exact(base: PreTrainedModel, paths: Sequence[str], rank: int, alpha: float) -> None:
    """Refuse a model that reads an adapted layer's weights by itself, so that an adapter would not count.

    With an adapter drawn at random, as large as the weights, merged and attached must give the same logits.

    Raises:
        UserError: they do not; names the layers.
    """
    if _counts(base, paths, rank, alpha):
        return
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rsplit(".", 1)[-1], []).append(path)
    good = [name for name, of_name in by_name.items() if _counts(base, of_name, rank, alpha)]
    raise UserError(
        f"learner.lora: {type(base).__name__} reads the weights of {', '.join(by_name.keys() - set(good)) or 'layers'} "
        f"by itself, past an adapter: "
        + (f"set learner.lora.target_modules=[{', '.join(good)}], or " if good else "")
        + "learn all weights (learner.lora.rank=0)"
    )


def _counts(base: PreTrainedModel, paths: Sequence[str], rank: int, alpha: float) -> bool:
    """Whether a random adapter of these layers does the same attached and merged."""
    learning = attach(base, paths, rank, alpha)
    adapter = adapter_of(learning)
    assert adapter is not None
    generator = torch.Generator().manual_seed(0)
    for path, (a_RI, b_OR) in adapter.factors.items():
        drawn_OR = torch.randn(b_OR.shape, generator=generator).to(b_OR)
        product = (adapter.scale * drawn_OR @ a_RI.detach()).norm().clamp(min=1e-30)
        b_OR.data.copy_(drawn_OR * 0.3 * weight_of(base.get_submodule(path)).detach().norm() / product)
    merged = MergedModel(base, paths)
    merged.load(adapter)
    context = getattr(base.config, "max_position_embeddings", _TRIED_TOKENS)
    ids_1L = torch.arange(min(_TRIED_TOKENS, base.config.vocab_size, context), device=base.device)[None]
    with torch.inference_mode():
        attached_1LV, merged_1LV = (
            model.eval()(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), use_cache=False).logits
            for model in (learning, merged.model)
        )
    return bool((attached_1LV - merged_1LV).abs().max() <= _LOGIT_TOLERANCE * merged_1LV.abs().max())


def _is_fused(base: PreTrainedModel, path: str) -> bool:
    return base.config.model_type in _FUSED and path.rsplit(".", 1)[-1] in _FUSED_LAYERS


def _is_named(base: PreTrainedModel, head: nn.Module | None, name: str) -> bool:
    """Whether this is a name of the head, which is no linear layer of its own where its weights are an embedding's."""
    paths = [path for path, module in base.named_modules() if module is head]
    return any(path == name or path.endswith(f".{name}") for path in paths)
