"""Attention of packed groups, which pays for no masked block: an attention implementation for transformers' models.

The tokens of all groups lie in one row, first all prompts, then all nodes, then fillers, which attend to nothing (see
:mod:`bgrpo.learning.packing`). Three dense parts cover exactly what is allowed: prompts attend to themselves, causally;
nodes attend to their group's prompt; and nodes attend to their ancestors and themselves, as causal attention within the
path of the completion that owns them. A node's last two parts are merged exactly by their log-sum-exps. On the CPU
each part is torch's flash kernel, forward and backward (a part's gradient needs only the merged output and log-sum-exp,
as in ring attention); elsewhere, and where a layer caps its scores, each is written out, and torch differentiates it.
A layer with a window masks what lies further back, if any row is longer than the window.

Shape letters: T tokens, G groups, P longest prompt, M most nodes of a group, R paths, C longest path, H heads, D their
width; B a batch, L queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from bgrpo.decoding.attention_rules import HIDDEN, AttentionRules, band, rules_of

PACKED_ATTENTION = "bgrpo_packed"
"""Name of this implementation in a model's configuration."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Where each part finds its tokens. Places count tokens in the row; slots count entries of a part's padded batch.

    Attributes:
        prompt_GP: places of the prompts, padded on the right with the prompt's last token.
        prompt_valid_GP: True at real prompt tokens.
        node_GM: places of each group's nodes, padded with its last prompt token.
        node_position_GM: their positions, as if each completion stood alone after its prompt.
        path_RC: places of the nodes on a path from the root, padded with its last node.
        prompt_slot: of each prompt token, in order, in ``prompt_GP``.
        node_slot: of each node, in order, in ``node_GM``.
        path_slot: of each node, in order, in ``path_RC``: on the path that owns it.
        ragged: whether prompts differ in length.
        longest: tokens of the longest row, prompt and completion, that is packed here.
    """

    prompt_GP: Tensor
    prompt_valid_GP: Tensor
    node_GM: Tensor
    node_position_GM: Tensor
    path_RC: Tensor
    prompt_slot: Tensor
    node_slot: Tensor
    path_slot: Tensor
    ragged: bool
    longest: int

    def prompt_bias(self, like: Tensor, window: int | None) -> Tensor | None:
        """What keeps nodes from the padding of prompts and from what they do not see, [G, 1, M, P]; None: nothing."""
        if not self.ragged and window is None:
            return None
        hidden_GMP = ~self.prompt_valid_GP[:, None]
        if window is not None:
            places_P = torch.arange(self.prompt_GP.shape[1], device=like.device)
            hidden_GMP = hidden_GMP | (places_P <= self.node_position_GM[..., None] - window)
        bias_GMP = torch.zeros(hidden_GMP.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden_GMP, HIDDEN)
        return bias_GMP[:, None].expand(-1, 1, self.node_GM.shape[1], -1)


@dataclass(frozen=True, slots=True)
class _Biases:
    """What is added to the scores of each part; None: nothing. Without it, prompts and paths are causal."""

    prompt: Tensor | None
    above: Tensor | None
    path: Tensor | None

    @classmethod
    def of(cls, layout: AttentionLayout, window: int | None, like: Tensor) -> _Biases:
        prompt, path = (
            None if window is None else band(range(places), range(places), window, like)[None, None]
            for places in (layout.prompt_GP.shape[1], layout.path_RC.shape[1])
        )
        return cls(prompt, layout.prompt_bias(like, window), path)


Attend = Callable[[Tensor, Tensor, Tensor, bool, Tensor | None, AttentionRules], tuple[Tensor, Tensor]]
"""(q_BHLD, k_BHSD, v_BHSD, causal, bias, rules) to (out_BHLD, log-sum-exp_BHL); the window is in the bias."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: AttentionLayout,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """What a model's attention layer calls: query [1, H, T, D], key and value with as many or fewer heads.

    Returns:
        Output [1, T, H, D], and None for the weights.
    """
    rules = rules_of(module, query, arguments).within(packed_layout.longest)
    groups = getattr(module, "num_key_value_groups", 1)
    if torch.is_autocast_enabled(query.device.type):  # which knows nothing of the kernel below
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, repeat_kv(key, groups), repeat_kv(value, groups)))
    if query.device.type == "cpu" and rules.cap is None:
        out_THD = _FlashPacked.apply(q_THD, k_THD, v_THD, packed_layout, rules)
    else:
        out_THD, _ = _forward(q_THD, k_THD, v_THD, packed_layout, rules, attend_written_out)
    return out_THD[None], None


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)


def _forward(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: AttentionLayout, rules: AttentionRules, attend: Attend
) -> tuple[Tensor, Tensor]:
    """Output [T, H, D] and log-sum-exp [T, H] of the three parts."""
    biases = _Biases.of(layout, rules.window, q_THD)
    prompt_k, prompt_v = batched(k_THD, layout.prompt_GP), batched(v_THD, layout.prompt_GP)
    out, lse = attend(batched(q_THD, layout.prompt_GP), prompt_k, prompt_v, True, biases.prompt, rules)
    prompt_out, prompt_lse = as_rows(out)[layout.prompt_slot], as_rows(lse)[layout.prompt_slot]
    if not len(layout.node_slot):
        return _joined(prompt_out, prompt_out[:0], len(q_THD)), _joined(prompt_lse, prompt_lse[:0], len(q_THD))
    out, lse = attend(batched(q_THD, layout.node_GM), prompt_k, prompt_v, False, biases.above, rules)
    above_out, above_lse = as_rows(out)[layout.node_slot], as_rows(lse)[layout.node_slot]
    path = [batched(tensor, layout.path_RC) for tensor in (q_THD, k_THD, v_THD)]
    out, lse = attend(path[0], path[1], path[2], True, biases.path, rules)
    path_out, path_lse = as_rows(out)[layout.path_slot], as_rows(lse)[layout.path_slot]
    node_lse = torch.logaddexp(above_lse, path_lse)
    share = (path_lse - node_lse).exp()[..., None].to(path_out.dtype)
    node_out = torch.lerp(above_out, path_out, share)
    return _joined(prompt_out, node_out, len(q_THD)), _joined(prompt_lse, node_lse, len(q_THD))


class _FlashPacked(torch.autograd.Function):
    """The three parts by the CPU's flash kernel."""

    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: AttentionLayout, rules: AttentionRules
    ) -> Tensor:
        out_THD, lse_TH = _forward(q_THD, k_THD, v_THD, layout, rules, _attend_flash)
        ctx.save_for_backward(q_THD, k_THD, v_THD, out_THD, lse_TH)
        ctx.layout, ctx.rules = layout, rules
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """A part's kernel takes the merged output and log-sum-exp; what pads its batch gets gradient 0."""
        layout, (grad_THD,), saved = ctx.layout, grads, ctx.saved_tensors  # a checkpointed layer gives them once
        biases = _Biases.of(layout, ctx.rules.window, grad_THD)
        of_prompts = slice(len(layout.prompt_slot))
        of_nodes = slice(len(layout.prompt_slot), len(layout.prompt_slot) + len(layout.node_slot))
        totals = tuple(torch.zeros_like(grad_THD) for _ in range(3))  # of queries, keys and values
        prompts = layout.prompt_GP
        prompt = _part_backward(
            saved, ctx.rules.scale, prompts, prompts, layout.prompt_slot, grad_THD[of_prompts], biases.prompt
        )
        if len(layout.node_slot):
            paths, of_node = layout.path_RC, grad_THD[of_nodes]
            above = _part_backward(
                saved, ctx.rules.scale, layout.node_GM, prompts, layout.node_slot, of_node, biases.above
            )
            path = _part_backward(saved, ctx.rules.scale, paths, paths, layout.path_slot, of_node, biases.path)
            totals[0][of_nodes] = as_rows(above[0])[layout.node_slot].add_(as_rows(path[0])[layout.path_slot])
            for total, of_prompt, of_above, of_path in zip(totals[1:], prompt[1:], above[1:], path[1:], strict=True):
                of_prompt.add_(of_above)
                total.index_add_(0, layout.path_RC.reshape(-1), as_rows(of_path))
        for total, of_prompt in zip(totals, prompt, strict=True):
            total[of_prompts] = as_rows(of_prompt)[layout.prompt_slot]
        dq, dk, dv = totals
        return dq, dk, dv, None, None


def _part_backward(
    saved: Sequence[Tensor],
    scale: float,
    queries: Tensor,
    keys: Tensor,
    slots: Tensor,
    grad: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one part, in the layout of its batch; without ``bias`` and where queries are keys it is causal."""
    q_THD, k_THD, v_THD, out_THD, lse_TH = saved
    padded = grad.new_zeros(queries.numel(), *grad.shape[1:]).index_copy_(0, slots, grad)
    return _flash_backward(
        padded.view(*queries.shape, *grad.shape[1:]).transpose(1, 2),
        batched(q_THD, queries),
        batched(k_THD, keys),
        batched(v_THD, keys),
        batched(out_THD, queries),
        batched(lse_TH, queries),
        0.0,
        queries is keys and bias is None,
        attn_mask=bias,
        scale=scale,
    )


def _attend_flash(
    q_BHLD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, causal: bool, bias: Tensor | None, rules: AttentionRules
) -> tuple[Tensor, Tensor]:
    return _flash(q_BHLD, k_BHSD, v_BHSD, 0.0, causal and bias is None, attn_mask=bias, scale=rules.scale)


def attend_written_out(
    q_BHLD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, causal: bool, bias: Tensor | None, rules: AttentionRules
) -> tuple[Tensor, Tensor]:
    """Attention by its formula, on any device; differentiable, its bias too."""
    scores_BHLS = (q_BHLD @ k_BHSD.mT).to(torch.promote_types(q_BHLD.dtype, torch.float32)) * rules.scale
    if rules.cap is not None:
        scores_BHLS = rules.cap * (scores_BHLS / rules.cap).tanh()
    if bias is not None:
        scores_BHLS = scores_BHLS + bias
    if causal and bias is None:
        later = torch.ones(scores_BHLS.shape[-2:], dtype=torch.bool, device=scores_BHLS.device).triu_(1)
        scores_BHLS = scores_BHLS.masked_fill(later, HIDDEN)
    lse_BHL = scores_BHLS.logsumexp(-1)
    weights_BHLS = (scores_BHLS - lse_BHL[..., None]).exp().to(v_BHSD.dtype)
    return weights_BHLS @ v_BHSD, lse_BHL


def _joined(prompts: Tensor, nodes: Tensor, size: int) -> Tensor:
    """Rows of prompts and nodes, and zeros for what fills up the row to its size."""
    return torch.cat((prompts, nodes, prompts.new_zeros(size - len(prompts) - len(nodes), *prompts.shape[1:])))


def batched(rows: Tensor, places: Tensor) -> Tensor:
    """[T, H, …] at [B, L] places, as [B, H, L, …]."""
    return rows.index_select(0, places.reshape(-1)).view(*places.shape, *rows.shape[1:]).transpose(1, 2)


def as_rows(batch: Tensor) -> Tensor:
    """[B, H, L, …] as [B * L, H, …]."""
    return batch.transpose(1, 2).flatten(0, 1)
