"""Models whose weights are kept in bf16."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def round_weights(model: PreTrainedModel, of_products_only: bool = False) -> None:
    """Turn weights into bf16, in place. Buffers, such as the angles of positions, stay as they are.

    Args:
        model: any.
        of_products_only: those alone that autocast rounds for each product, so that its results stay the same bit for
            bit: linear layers, but not the head, which multiplies in fp32, nor the embedding that is tied to it.
    """
    head = model.get_output_embeddings()
    kept = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    for module in model.modules():
        if not of_products_only or isinstance(module, nn.Linear | Conv1D):
            for parameter in module.parameters(recurse=False):
                if not of_products_only or id(parameter) not in kept:
                    parameter.data = parameter.data.to(torch.bfloat16)
